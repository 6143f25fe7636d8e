"""eval/latency.py: what is measured, what is reported, what is refused. Nothing here depends on time."""

import itertools
import json
import signal

import latency
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn.attention import SDPBackend

from sit_atconv.models.macs import count_macs
from sit_atconv.ops.linear import HAS_ONEDNN_PRODUCT
from sit_atconv.utils.environment import git_commit

CPU = torch.device("cpu")
NANO = ["SiT-Nano/2", "SiT-ATConv-Nano/2"]
SMALL = ["--presets", f"[{','.join(NANO)}]", "--repeats", "2", "--warmup", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What the machine is capable of takes seconds to find out."""
    monkeypatch.setattr(latency, "matrix_rate", lambda *_: 1e10)
    monkeypatch.setattr(latency, "copy_bandwidth", lambda *_: 1e9)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, which shells switch off for what they run in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def tiny_vae(monkeypatch):
    config = dict(block_out_channels=(8,) * 4, norm_num_groups=4, layers_per_block=1)
    monkeypatch.setattr(latency, "VAE_CONFIG", latency.VAE_CONFIG | config)


def test_models_compute_with_real_values():
    models = latency.build_models(NANO, torch.float32, CPU)
    for name, model in models.items():
        assert not model.training
        for parameter_name, parameter in model.named_parameters():
            assert (parameter != 0).any(), f"{name}: {parameter_name} is zero"
        inputs = latency.make_inputs(model, 64, 2, CPU)
        assert inputs[0].shape == (2, 4, 8, 8)
        with torch.inference_mode():
            sample = model(*inputs).sample
        assert sample.isfinite().all()
        assert (sample.abs() > torch.finfo(torch.float32).tiny).all()


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
    models = latency.build_models(NANO, torch.float32, CPU)
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
    assert f" {atconv['ms'][1]:.4g} [" in table[3]
    text = (folder / "latency.md").read_text()
    assert "\n".join(table) in text and "| forward | SiT-ATConv-Nano/2 | 64 | aten::" in text
    assert f"attention {attention['attention']}, commit {git_commit() or 'unknown'}" in text
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_every_measurement(tmp_path, tiny_vae):
    """One row a model and variant, each with the facts of its kind."""
    arguments = ["--measurements", f"[{','.join(latency.MEASUREMENTS)}]", "--image_sizes", "[64]"]
    arguments += ["--steps", "2", "--sde_steps", "3", "--output", str(tmp_path / "new")]
    assert latency.main([*SMALL, *arguments]) == 0
    results = json.loads((tmp_path / "new" / "latency.json").read_text())["results"]
    attention, atconv = NANO
    names = {
        what: [(r["name"], r["baseline"]) for r in results if r["measurement"] == what] for what in latency.MEASUREMENTS
    }
    for what in ("operator", "forward", "training"):
        assert names[what] == [(attention, attention), (atconv, attention)]
    assert names["checkpointing"] == [(f"{name}{suffix}", name) for name in NANO for suffix in ("", ", checkpointing")]
    assert names["sampling"] == [(attention, attention), (atconv, attention), (latency.VAE_ROW, latency.VAE_ROW)]
    twice = ", 2 calls a step"
    assert names["sde"] == [(f"{name}{suffix}", f"{name}{twice}") for name in NANO for suffix in (twice, "")]
    for r in results:
        assert ("roofline_share" in r) == (r["measurement"] in ("operator", "forward", "training"))
        assert ("operations" in r) == (r["measurement"] in ("operator", "forward", "training", "sampling"))
        assert ("vae_share" in r) == (r["measurement"] == "sampling" and r["name"] != latency.VAE_ROW)
        assert r["ms"][1] > 0
    sampling = [r for r in results if r["measurement"] == "sampling"]
    for r in sampling[:2]:
        assert r["vae_share"] == pytest.approx(np.median(sampling[2]["times_ms"]) / np.median(r["times_ms"]))
    macs = {(r["measurement"], r["name"]): r.get("macs_per_image") for r in results}
    for name in NANO:
        assert 2.9 < macs["training", name] / macs["forward", name] < 3.1
    assert not (tmp_path / "new" / "latency.png").exists()  # one resolution makes no curve


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_leaves_the_gradients_of_the_mean_square(checkpointing, assert_close):
    model = latency.build_models(NANO[1:], torch.float32, CPU)[NANO[1]]
    model.enable_gradient_checkpointing()
    inputs = latency.make_inputs(model, 64, 2, CPU)
    for _ in range(2):  # anew each time
        latency.train_step(model, inputs, torch.float32, checkpointing)
    actual = model.proj_out.weight.grad.clone()
    (expected,) = torch.autograd.grad(model(*inputs).sample.square().mean(), model.proj_out.weight)
    assert_close(actual, expected, 1e-5)
    assert model.gradient_checkpointing is False


def test_the_sde_takes_one_call_a_step_and_its_baseline_two():
    models = latency.build_models(NANO[1:], torch.float32, CPU)
    calls = []
    models[NANO[1]].register_forward_hook(lambda *_: calls.append(1))
    options = latency.Options(device="cpu", sde_steps=4)
    setting = latency.Setting("sde", tuple(NANO[1:]), 64, 1, "float32")
    counts = {}
    with torch.inference_mode():
        for name, call in latency.make_calls(models, setting, options, CPU)[0].items():
            calls.clear()
            call()
            counts[name] = len(calls)
    assert counts == {f"{NANO[1]}, 2 calls a step": 8, NANO[1]: 4}


def test_plans_can_be_measured():
    for plan in latency.PLANS.values():
        assert {setting.measurement for setting in plan} == set(latency.MEASUREMENTS)
        for setting in plan:
            latency.check_setting(setting)
    assert latency.Options(device="cpu").plan == latency.PLANS["cpu"]
    sizes = {setting.image_size for setting in latency.PLANS["cpu"] if setting.measurement == "forward"}
    assert sizes == {256, 512, 1024, 2048}


def test_threads_are_set_and_results_go_to_a_folder_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = []
    monkeypatch.setattr(latency.torch, "set_num_threads", threads.append)
    assert latency.main([*SMALL, "--image_sizes", "[32]", "--threads", "1"]) == 0
    assert threads == [1]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("latency-2")
    assert f"runs/{folder.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("none", []), ("whole", ["model"] * 2 + ["mixer"] * 2), ("blocks", ["blocks"] * 2 + ["mixer"] * 2)],
)
def test_what_is_compiled(choice, expected, monkeypatch):
    seen = []

    def fake_compile(module, dynamic, fullgraph, mode):
        assert (dynamic, fullgraph, mode) == (False, True, None)
        seen.append("model" if isinstance(module, latency.SiTTransformer2DModel) else "mixer")
        return module

    monkeypatch.setattr(latency.torch, "compile", fake_compile)
    monkeypatch.setattr(
        latency.SiTTransformer2DModel, "compile_repeated_blocks", lambda self, fullgraph: seen.append("blocks")
    )
    models = latency.build_models(NANO, torch.float32, CPU)
    options = latency.Options(device="cpu", compile=choice)
    for measurement in ("forward", "operator"):
        latency.make_calls(models, latency.Setting(measurement, tuple(NANO), 64, 1, "float32"), options, CPU)
    assert seen == expected


@pytest.mark.parametrize("fault", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_other_settings_survive(fault, tmp_path, monkeypatch, capsys):
    """An interrupt ends the run with what it has; where memory is short, the settings after it are measured."""
    measure, calls = latency.measure, []

    def fail_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise fault
        return measure(*args)

    monkeypatch.setattr(latency, "measure", fail_at_the_second)
    arguments = [*SMALL, "--image_sizes", "[32, 64, 96]", "--output", str(tmp_path / "new")]
    interrupted = fault is KeyboardInterrupt
    assert latency.main(arguments) == (latency.INTERRUPTED if interrupted else 0)
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
        expected += [(", ".join(NANO), 64, "out of memory"), *((name, 96, None) for name in NANO)]
        assert "| out of memory |" in out
    assert rows == expected
    assert len(table) == 2 + len(expected)


@pytest.mark.parametrize("rounds", [0, 2])
def test_rounds_before_an_interrupt_are_kept(rounds, tmp_path, monkeypatch, capsys):
    """Ctrl-C within the only setting: its finished rounds are written, and nothing more is run."""
    calls = []

    def interrupted(*_):
        if len(calls) == 2 * (1 + rounds) - (rounds == 0):  # after one round to warm up, or in its midst
            raise KeyboardInterrupt
        calls.append(1)

    monkeypatch.setattr(latency, "train_step", interrupted)
    arguments = ["--measurements", "[training]", "--image_sizes", "[32]", "--output", str(tmp_path / "new")]
    assert latency.main([*SMALL, *arguments, "--repeats", "7"]) == latency.INTERRUPTED
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


def test_compiled_blocks_are_measured(tmp_path, monkeypatch, capsys):
    compile_blocks = latency.SiTTransformer2DModel.compile_repeated_blocks
    monkeypatch.setattr(  # the compiler itself takes half a minute
        latency.SiTTransformer2DModel,
        "compile_repeated_blocks",
        lambda self, fullgraph: compile_blocks(self, fullgraph=fullgraph, backend="eager"),
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
        (["--cuda_graphs", "true"], "cuda_graphs=True needs --device cuda and --compile whole"),
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
    monkeypatch.setattr(latency, "build_models", lambda *args: pytest.fail("built models"))
    with pytest.raises(SystemExit) as exit_info:
        latency.main([*SMALL, *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_cuda_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(latency.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        latency.main([*SMALL, "--device", "cuda"])
    assert "PyTorch sees no GPU" in capsys.readouterr().err


def test_existing_output_is_kept(tmp_path, capsys):
    with pytest.raises(SystemExit):
        latency.main([*SMALL, "--output", str(tmp_path)])
    assert "exists; name another" in capsys.readouterr().err


def test_a_vae_of_other_latents_is_refused(tmp_path, monkeypatch, capsys):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(latency, "build_models", lambda *args: pytest.fail("built models"))
    for vae, message in ("vae", "has 1 pixels a latent and 4 channels; the presets need 8 and 4"), ("no", "is no auto"):
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


def test_the_operator_is_not_measured_of_hybrids_by_default():
    for measurements in ["operator"], ["forward", "operator"]:
        options = latency.Options(device="cpu", measurements=measurements)
        assert {setting.presets for setting in options.plan} == {latency.family("S/2")[:2]}


def test_training_below_float32_has_float32_weights(tmp_path, monkeypatch):
    """Autocast casts them, and so the roofline reads and writes half the bytes."""
    seen, step = set(), latency.train_step

    def spy(model, *args):
        seen.add((model.dtype, args[1]))
        return step(model, *args)

    monkeypatch.setattr(latency, "train_step", spy)
    monkeypatch.setattr(latency, "matrix_rate", lambda *_: 1e30)  # all is bound by memory
    arguments = ["--measurements", "[training]", "--image_sizes", "[64]", "--dtypes", "[float32, bfloat16]"]
    assert latency.main([*SMALL, *arguments, "--output", str(tmp_path / "new")]) == 0
    results = json.loads((tmp_path / "new" / "latency.json").read_text())["results"]
    assert seen == {(torch.float32, torch.float32), (torch.float32, torch.bfloat16)}
    least = {(r["dtype"], r["name"]): r["roofline_ms"] for r in results}
    for name in NANO:
        assert least["bfloat16", name] == pytest.approx(least["float32", name] / 2, rel=0.01)


def test_the_plot_shows_medians_of_the_most_resolutions():
    def row(name, size, dtype, ms):
        facts = dict(measurement="forward", name=name, baseline="a", image_size=size, batch_size=1, dtype=dtype)
        return facts | {"ms": [ms - 1, ms, ms + 5], "ratio": [0.9 * ms, ms / 10, 2 * ms]}

    rows = [row("a", 512, "bfloat16", 3.0), row("b", 512, "bfloat16", 4.0)]
    rows += [row(name, size, "float32", ms) for size, ms in [(512, 20.0), (256, 10.0)] for name in "ab"]
    assert latency.plot(rows[:2]) is None
    figure = latency.plot(rows)
    for axes, values in zip(figure.axes, ([10.0, 20.0], [1.0, 2.0]), strict=True):
        for line in axes.lines:
            assert (list(line.get_xdata()), list(line.get_ydata())) == ([256, 512], values)
    assert [line.get_label() for line in figure.axes[0].lines] == ["a", "b"]
    assert "float32" in figure.axes[0].get_title()


def test_attention_in_training_is_that_of_tensors_with_gradients(monkeypatch):
    seen = []

    def choice(q, k, v):
        seen.append((tuple(q.shape), q.dtype, q.requires_grad, torch.is_grad_enabled()))
        return latency.SDPBackend.MATH.value

    monkeypatch.setattr(latency.torch, "_fused_sdp_choice", choice)
    model = latency.SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2-Hybrid")
    for measurement in ("forward", "training"):
        setting = latency.Setting(measurement, (), 64, 3, "bfloat16")
        assert latency.attention_backend(model, setting, CPU) == "MATH"
    shape = (3, 4, 16, 24)
    assert seen == [(shape, torch.bfloat16, False, False), (shape, torch.bfloat16, True, True)]


def test_an_interrupt_waits_for_what_must_be_whole(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with latency.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("place", ["write_results", "matrix_rate", "build_models"])
def test_an_interrupt_anywhere_leaves_whole_files_and_one_line(place, ctrl_c, tmp_path, monkeypatch, capsys):
    original, calls = getattr(latency, place), []

    def pressed(*args):
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(latency, place, pressed)
    folder = tmp_path / "new"
    status = latency.main([*SMALL, "--image_sizes", "[32, 64]", "--output", str(folder)])
    err = capsys.readouterr().err
    assert status == latency.INTERRUPTED and "was measured" in err and "Traceback" not in err
    if place == "write_results":
        report = json.loads((folder / "latency.json").read_text())
        assert len(report["results"]) == len(NANO) and report["interrupted"] is True
    else:
        assert not folder.exists()
