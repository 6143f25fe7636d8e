"""eval/latency.py as a command: what is measured, reported and refused. Nothing here depends on time."""

import itertools
import json
import signal

import latency
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn.attention import SDPBackend

from sit_atconv.benchmarks import calls
from sit_atconv.benchmarks import latency as run
from sit_atconv.benchmarks.calls import VAE_CONFIG, VAE_ROW, build_models
from sit_atconv.benchmarks.latency import INTERRUPTED
from sit_atconv.benchmarks.settings import MEASUREMENTS
from sit_atconv.models.macs import count_macs
from sit_atconv.models.transformer_sit import SiTTransformer2DModel
from sit_atconv.ops.linear_onednn import HAS_ONEDNN_PRODUCT
from sit_atconv.utils.environment import git_commit

CPU = torch.device("cpu")
NANO = ["SiT-Nano/2", "SiT-ATConv-Nano/2"]
SMALL = ["--presets", f"[{','.join(NANO)}]", "--repeats", "2", "--warmup", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What the machine is capable of takes seconds to find out."""
    monkeypatch.setattr(run, "matrix_rate", lambda *_: 1e10)
    monkeypatch.setattr(run, "copy_bandwidth", lambda *_: 1e9)


@pytest.fixture
def tiny_vae(monkeypatch):
    config = dict(block_out_channels=(8,) * 4, norm_num_groups=4, layers_per_block=1)
    monkeypatch.setattr(calls, "VAE_CONFIG", VAE_CONFIG | config)


@pytest.mark.slow
def test_command_line_writes_report_table_and_plot(tmp_path, capsys):
    folder = tmp_path / "new"
    lists = ["--image_sizes", "[32, 64]", "--batch_sizes", "[1, 3]", "--dtypes", "[bfloat16]"]
    assert latency.main([*SMALL, *lists, "--output", str(folder)]) == 0
    report = json.loads((folder / "latency.json").read_text())
    assert report["interrupted"] is False
    assert report["command"].startswith("python eval/latency.py --presets")
    assert report["options"]["repeats"] == 2
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["threads"] == torch.get_num_threads()
    assert report["environment"]["device_name"]
    assert report["environment"]["git_commit"] == git_commit()
    assert report["environment"]["onednn_products"] is HAS_ONEDNN_PRODUCT
    assert report["rates"] == {"flops_per_second": {"bfloat16": 1e10}, "bytes_per_second": 1e9}

    results = report["results"]
    settings = [(r["image_size"], r["batch_size"], r["name"]) for r in results]
    assert settings == list(itertools.product([32, 64], [1, 3], NANO))
    models = build_models(NANO, torch.float32, CPU)
    for r in results:
        assert (r["measurement"], r["dtype"], r["baseline"]) == ("forward", "bfloat16", "SiT-Nano/2")
        assert r["parameters"] == models[r["name"]].num_parameters()
        assert r["macs_per_image"] == count_macs(models[r["name"]], r["image_size"] // 8, r["image_size"] // 8)
        assert len(r["times_ms"]) == 2 and r["ms"][1] == np.median(r["times_ms"])
        assert r["images_per_second"] == pytest.approx(r["batch_size"] * 1000 / r["ms"][1])
        least = 2 * r["macs_per_image"] * r["batch_size"] / 1e10 * 1e3
        assert r["roofline_share"] > least / r["ms"][1]
        assert r["peak_bytes"] > 0
    attention, atconv = results[:2]
    assert attention["attention"] in SDPBackend.__members__ and atconv["attention"] is None
    assert attention["ratio"] == [1.0, 1.0, 1.0]
    assert atconv["ratio"][1] == pytest.approx(np.mean(np.divide(atconv["times_ms"], attention["times_ms"])))

    assert all(sum(r["operations"].values()) == pytest.approx(1) for r in results)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results)
    assert len({line.count("|") for line in table}) == 1
    assert table[3].startswith("| forward | SiT-ATConv-Nano/2 | 32 | 1 | bfloat16 |")
    assert f" {atconv['ms'][1]:.4g} ms [" in table[3]
    text = (folder / "latency.md").read_text()
    assert "\n".join(table) in text and "| forward | SiT-ATConv-Nano/2 | 64 | aten::" in text
    assert f"attention {attention['attention']}, commit {git_commit() or 'unknown'}" in text
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_measurement(tmp_path, tiny_vae):
    """One row a model and variant, each with the facts of its kind."""
    arguments = ["--measurements", f"[{','.join(MEASUREMENTS)}]", "--image_sizes", "[64]"]
    arguments += ["--steps", "2", "--sde_steps", "3", "--output", str(tmp_path / "new")]
    assert latency.main([*SMALL, *arguments]) == 0
    results = json.loads((tmp_path / "new" / "latency.json").read_text())["results"]
    attention, atconv = NANO
    names = {what: [(r["name"], r["baseline"]) for r in results if r["measurement"] == what] for what in MEASUREMENTS}
    for what in ("operator", "forward", "training"):
        assert names[what] == [(attention, attention), (atconv, attention)]
    assert names["checkpointing"] == [(f"{name}{suffix}", name) for name in NANO for suffix in ("", ", checkpointing")]
    assert names["sampling"] == [(attention, attention), (atconv, attention), (VAE_ROW, VAE_ROW)]
    twice = ", 2 calls a step"
    assert names["sde"] == [(f"{name}{suffix}", f"{name}{twice}") for name in NANO for suffix in (twice, "")]
    for r in results:
        assert ("roofline_share" in r) == (r["measurement"] in ("operator", "forward", "training"))
        assert ("operations" in r) == (r["measurement"] in ("operator", "forward", "training", "sampling"))
        assert ("vae_share" in r) == (r["measurement"] == "sampling" and r["name"] != VAE_ROW)
        assert r["ms"][1] > 0
    sampling = [r for r in results if r["measurement"] == "sampling"]
    for r in sampling[:2]:
        assert r["vae_share"] == pytest.approx(np.median(sampling[2]["times_ms"]) / np.median(r["times_ms"]))
    macs = {(r["measurement"], r["name"]): r.get("macs_per_image") for r in results}
    for name in NANO:
        assert 2.9 < macs["training", name] / macs["forward", name] < 3.1
    assert not (tmp_path / "new" / "latency.png").exists()  # one resolution makes no curve


def test_threads_are_set_and_results_go_to_a_folder_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert latency.main([*SMALL, "--image_sizes", "[32]", "--threads", "1"]) == 0
    assert threads == [1]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("latency-2")
    assert f"runs/{folder.name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("fault", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError("no such kernel")])
def test_other_settings_survive(fault, tmp_path, monkeypatch, capsys):
    """An interrupt ends the run with what it has; where one setting fails, those after it are measured."""
    measure, seen = run.measure, []

    def fail_at_the_second(*args, **options):
        seen.append(args)
        if len(seen) == 2:
            raise fault
        return measure(*args, **options)

    monkeypatch.setattr(run, "measure", fail_at_the_second)
    arguments = [*SMALL, "--image_sizes", "[32, 64, 96]", "--output", str(tmp_path / "new")]
    interrupted = fault is KeyboardInterrupt
    failed = isinstance(fault, RuntimeError)
    assert latency.main(arguments) == (INTERRUPTED if interrupted else int(failed))
    out, err = capsys.readouterr()
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    report = json.loads((tmp_path / "new" / "latency.json").read_text())
    assert report["interrupted"] is interrupted
    rows = [(r["name"], r["image_size"], r.get("error")) for r in report["results"]]
    expected = [(name, 32, None) for name in NANO]
    if interrupted:
        assert "interrupted" in err
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["latency.json", "latency.md"]
    else:
        reason = "failed: RuntimeError" if failed else "out of memory"
        expected += [(", ".join(NANO), 64, reason), *((name, 96, None) for name in NANO)]
        assert f"| {reason} |" in out and ("no such kernel" in err) == failed
    assert rows == expected
    assert len(table) == 2 + len(expected)


@pytest.mark.parametrize("rounds", [0, 2])
def test_rounds_before_an_interrupt_are_kept(rounds, tmp_path, monkeypatch, capsys):
    """Ctrl-C within the only setting: its finished rounds are written, and nothing more is run."""
    steps = []

    def interrupted(*_):
        if len(steps) == 2 * (1 + rounds) - (rounds == 0):  # after one round to warm up, or in its midst
            raise KeyboardInterrupt
        steps.append(1)

    monkeypatch.setattr(calls, "train_step", interrupted)
    arguments = ["--measurements", "[training]", "--image_sizes", "[32]", "--output", str(tmp_path / "new")]
    assert latency.main([*SMALL, *arguments, "--repeats", "7"]) == INTERRUPTED
    out, err = capsys.readouterr()
    if rounds:
        report = json.loads((tmp_path / "new" / "latency.json").read_text())
        assert report["interrupted"] is True
        assert [len(r["times_ms"]) for r in report["results"]] == [rounds] * len(NANO)
        assert all(r["peak_bytes"] is None and "operations" not in r for r in report["results"])
        assert "only what follows was measured" in err and "| training | SiT-ATConv-Nano/2 |" in out
    else:
        assert not (tmp_path / "new").exists()
        assert "nothing was measured" in err and out == ""


@pytest.mark.slow
def test_compiled_blocks_are_measured(tmp_path, monkeypatch, capsys):
    compile_blocks = SiTTransformer2DModel.compile_repeated_blocks
    monkeypatch.setattr(  # the compiler itself takes half a minute
        SiTTransformer2DModel,
        "compile_repeated_blocks",
        lambda self, fullgraph, mode: compile_blocks(self, fullgraph=fullgraph, mode=mode, backend="eager"),
    )
    arguments = [*SMALL, "--compile", "blocks", "--image_sizes", "[32]", "--output", str(tmp_path / "new")]
    assert latency.main(arguments) == 0
    results = json.loads((tmp_path / "new" / "latency.json").read_text())["results"]
    assert [r["name"] for r in results] == NANO and all(r["macs_per_image"] > 0 for r in results)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--presets", "[SiT-Nano/2, SiT-Huge/2]"], "preset='SiT-Huge/2' is not one of: "),
        (["--presets", "[SiT-Nano/2, SiT-Nano/2]"], "must name at least one, and each only once"),
        (["--presets", "[]"], "must name at least one"),
        (["--measurements", "[speed]"], "measurement='speed' is not one of: operator, forward"),
        (["--measurements", "[operator]", "--presets", "[SiT-ATConv-Nano/2-Hybrid]"], "has two operators"),
        (["--dtypes", "[int8]"], "dtype='int8' is not one of: float32, bfloat16, float16"),
        (["--device", "tpu"], "device='tpu' is not one of: auto, cpu, cuda"),
        (["--compile", "yes"], "compile='yes' is not one of: none, blocks, whole"),
        (["--cuda_graphs", "true"], "cuda_graphs=True needs --device cuda and --compile blocks or whole"),
        (["--image_sizes", "[64, 72]"], "image_size=72 is not divisible by 16, 8 × patch size of SiT-Nano/2"),
        (["--image_sizes", "[0]"], "image_size=0 must be"),
        (["--batch_sizes", "[0]"], "batch_size=0 must be"),
        (["--repeats", "0"], "repeats=0 must be"),
        (["--warmup", "0"], "warmup=0 must be"),
        (["--max_seconds", "0"], "max_seconds=0.0 must be"),
        (["--threads", "0"], "threads=0 must be"),
        (["--vae", "somewhere"], "vae='somewhere' is for the measurement sampling"),
        (["--output", f"{__file__}/new"], "cannot be written: "),
    ],
)
def test_refused_before_anything_is_built(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(run, "build_models", lambda *args: pytest.fail("built models"))
    with pytest.raises(SystemExit) as exit_info:
        latency.main([*SMALL, *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_cuda_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        latency.main([*SMALL, "--device", "cuda"])
    assert "PyTorch sees no GPU" in capsys.readouterr().err


def test_existing_output_is_kept(tmp_path, capsys):
    with pytest.raises(SystemExit):
        latency.main([*SMALL, "--output", str(tmp_path)])
    assert "already exists; choose another name" in capsys.readouterr().err


def test_a_vae_of_other_latents_is_refused(tmp_path, monkeypatch, capsys):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(run, "build_models", lambda *args: pytest.fail("built models"))
    for vae, message in (
        ("vae", "has 1 pixels per latent pixel and 4 channels; the presets need 8 and 4"),
        ("no", "is not a VAE folder"),
    ):
        with pytest.raises(SystemExit):
            latency.main([*SMALL, "--measurements", "[sampling]", "--vae", str(tmp_path / vae)])
        assert message in capsys.readouterr().err


def test_every_operator_gets_tokens_of_its_own_width_and_grid(tmp_path):
    presets = ["--presets", "[SiT-Nano/2, SiT-Nano/4, SiT-S/2]", "--measurements", "[operator]"]
    arguments = ["--image_sizes", "[64]", "--output", str(tmp_path / "new")]
    assert latency.main([*SMALL, *presets, *arguments]) == 0
    results = json.loads((tmp_path / "new" / "latency.json").read_text())["results"]
    assert [r["macs_per_image"] for r in results] == [
        4 * N * D**2 + 2 * N**2 * D for N, D in [(16, 96), (4, 96), (16, 384)]
    ]


@pytest.mark.slow
def test_training_below_float32_has_float32_weights(tmp_path, monkeypatch):
    """Autocast casts them, and so the roofline reads and writes half the bytes."""
    seen, step = set(), calls.train_step

    def spy(model, *args):
        seen.add((model.dtype, args[1]))
        return step(model, *args)

    monkeypatch.setattr(calls, "train_step", spy)
    monkeypatch.setattr(run, "matrix_rate", lambda *_: 1e30)  # all is bound by memory
    arguments = ["--measurements", "[training]", "--image_sizes", "[64]", "--dtypes", "[float32, bfloat16]"]
    assert latency.main([*SMALL, *arguments, "--output", str(tmp_path / "new")]) == 0
    results = json.loads((tmp_path / "new" / "latency.json").read_text())["results"]
    assert seen == {(torch.float32, torch.float32), (torch.float32, torch.bfloat16)}
    least = {(r["dtype"], r["name"]): r["roofline_ms"] for r in results}
    for name in NANO:
        assert least["bfloat16", name] == pytest.approx(least["float32", name] / 2, rel=0.01)


@pytest.mark.parametrize("place", ["write_results", "matrix_rate", "build_models"])
def test_an_interrupt_anywhere_leaves_whole_files_and_one_line(place, ctrl_c, tmp_path, monkeypatch, capsys):
    original, seen = getattr(run, place), []

    def pressed(*args):
        seen.append(1)
        if len(seen) == 1:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(run, place, pressed)
    folder = tmp_path / "new"
    status = latency.main([*SMALL, "--image_sizes", "[32, 64]", "--output", str(folder)])
    err = capsys.readouterr().err
    assert status == INTERRUPTED and "was measured" in err and "Traceback" not in err
    if place == "write_results":
        report = json.loads((folder / "latency.json").read_text())
        assert len(report["results"]) == len(NANO) and report["interrupted"] is True
    else:
        assert not folder.exists()
