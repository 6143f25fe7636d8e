"""Help and mistakes are answered before anything that takes seconds is imported."""

from pathlib import Path

import pytest
from start_up import REPO, run

import sit_atconv

SCRIPTS = sorted(str(path.relative_to(REPO)) for folder in ("train", "eval") for path in (REPO / folder).glob("*.py"))


def run_script(script: str, *arguments: str) -> tuple[int, str, str]:
    return run(f"sys.argv[0] = {script!r}; runpy.run_path({script!r}, run_name='__main__')", *arguments)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_answer_at_once(script):
    code, output, _ = run_script(script, "--help")
    assert code == 0 and "--" in output
    assert output.count("\n") <= 110 and max(map(len, output.splitlines())) <= 120
    code, _, error = run_script(script, "--bogus", "1")
    assert code == 2 and f"{Path(script).name}: error: " in error.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "SiT-ATConv-s/2"], "did you mean SiT-ATConv-S/2?"),
        (["--mixer", "attension"], "mixer='attension' is not one of: atconv, attention, "),
        (["--max_steps", "0"], "max_steps=0 must be a whole number of at least 1"),
        (["--ema_decay", "1.5"], "ema_decay=1.5 must be in [0, 1)"),
        (["--weighting", "nun"], "weighting='nun' is not one of"),
    ],
)
def test_values_of_training_options_are_checked_at_once(arguments, message):
    code, output, error = run_script("train/train_sit.py", *arguments)
    assert (code, output) == (2, "") and error.startswith("train_sit.py: error: ") and message in error
    assert error.count("\n") == 1


NOT_THERE = "does not exist, or is not a known kind of source; use one of: "


@pytest.mark.parametrize(
    "command, message",
    [
        ("train/train_sit.py --model.kernel_sise 5", "model has no option kernel_sise; did you mean kernel_size?"),
        ("train/train_sit.py --model.num_layers 0", "model.num_layers=0 must be a whole number of at least 1"),
        ("train/train_sit.py --model.num_classes 5", "model: num_classes follow from --data"),
        ("train/train_sit.py --data nowhere --image_size 8", "data='nowhere' " + NOT_THERE),
        ("train/train_sit.py --init_from nowhere", "init_from='nowhere' is not a pipeline folder"),
        (
            "train/train_sit.py --vae nowhere",
            "vae='nowhere' is no folder here; correct the path, or",
        ),
        ("train/train_attnet.py --validation nowhere", "validation='nowhere' " + NOT_THERE),
        ("train/encode_latents.py --data digits --vae v --output_dir o --shard_size 0", "shard_size=0 must be"),
        ("train/encode_latents.py --data nowhere --vae v --output_dir o", "data='nowhere' " + NOT_THERE),
        ("train/export_average.py nowhere --out o", "run='nowhere' is not a run folder"),
        ("eval/compare.py A B --output o --repeats 0", "repeats=0 must be a whole number of at least 1"),
        ("eval/compare.py A B --output o", "run='A' is not a run folder"),
        ("eval/class_accuracy.py A --samples_per_class 0", "samples_per_class=0 must be a whole number"),
        ("eval/class_accuracy.py A --guidance_scale -1", "guidance_scale=-1.0 must be a number of at least 0"),
        ("eval/operator_bench.py --rounds 0", "rounds=0 must be a whole number of at least 1"),
        ("eval/operator_bench.py --shapes [[1,3,64]]", "shape=[1, 3, 64] must be [B, N, C]"),
        ("eval/backbone_latency.py --clock sun", "clock='sun' is not one of: wall, cpu"),
        ("eval/classify.py A --data nowhere", "data='nowhere' " + NOT_THERE),
        ("eval/few_steps.py a=A --reference digits --output o --budgets [0]", "budgets=0 must be a whole number"),
        ("eval/samplers.py A --num_images 0", "num_images=0 must be a whole number"),
        ("eval/caches.py A --num_images 0", "num_images=0 must be a whole number"),
        ("eval/sweep.py A --reference digits --output o --confirm 0", "confirm=0 must be a whole number"),
        ("train/train_sit.py --lora_rank 2", "lora_rank=2: an adapter belongs to a trained model"),
        ("eval/classify.py attnet_t22 --data digits", "model='attnet_t22': timm has no model 'attnet_t22'; did "),
        ("train/train_sit.py --repa vit_bass.tag", "repa='vit_bass.tag': timm has no model 'vit_bass'"),
        ("eval/fid.py digits --reference digits --device gpu", "device='gpu' is no device of PyTorch; give auto, cpu"),
        ("train/train_sit.py --model.kernel_pool gird", "model.kernel_pool='gird' is not one of: strips, grid; did"),
        ("eval/parity.py digits --reference nowhere", "reference='nowhere' " + NOT_THERE),
        ("eval/fid.py nowhere --reference digits", "samples='nowhere' " + NOT_THERE),
        ("eval/validation_loss.py a=A --data nowhere", "data='nowhere' " + NOT_THERE),
        ("eval/sample.py A --output o --solver eulr", "solver='eulr' is not one of"),
    ],
)
def test_values_and_places_are_checked_at_once(command, message):
    script, *arguments = command.split()
    code, output, error = run_script(script, *arguments)
    assert (code, output) == (2, "") and error.startswith(f"{Path(script).name}: error: {message}")
    assert error.count("\n") == 1


def test_what_a_graft_cannot_be_is_said_at_once(tmp_path):
    """From the config of the trained model alone."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"mixer": "hybrid", "num_layers": 6}')
    arguments = ["--init_from", str(tmp_path), "--mixer", "auto:4"]
    code, output, error = run_script("train/train_sit.py", *arguments)
    message = f"init_from={str(tmp_path)!r}, mixer='auto:4': the trained model has self-attention in 3 blocks; name at"
    assert (code, output) == (2, "") and error.startswith(f"train_sit.py: error: {message}")


def test_the_folder_of_another_run_is_named_at_once(tmp_path):
    """With what differs; the precision, which may come from accelerate's configuration, is not known yet."""
    (tmp_path / "config.yaml").write_text("seed: 1\nmixed_precision: bf16\n")
    code, output, error = run_script("train/train_sit.py", "--output_dir", str(tmp_path))
    message = f"output_dir={str(tmp_path)!r} holds another run (seed: 1 -> 0), which has no checkpoint; choose another"
    assert (code, output) == (2, "") and error.startswith(f"train_sit.py: error: {message}")


def test_importing_the_package_is_cheap_and_its_names_are_there():
    assert run("import sit_atconv; print(sit_atconv.__version__)") == (0, f"{sit_atconv.__version__}\n", "")
    assert set(sit_atconv.__all__) == {*sit_atconv._PUBLIC, "__version__"}
    for name in sit_atconv.__all__:
        assert getattr(sit_atconv, name) is not None
