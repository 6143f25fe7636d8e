"""eval/latency.py: what is run in which order, what is reported, what is refused. Nothing here depends on time."""

import itertools
import json
from collections import Counter

import latency
import numpy as np
import pytest
import torch

from sit_atconv.macs import count_macs

NANO = ["SiT-Nano/2", "SiT-ATConv-Nano/2"]
SMALL = ["--presets", f"[{','.join(NANO)}]", "--image_sizes", "[32, 64]", "--repeats", "2", "--warmup", "1"]
SMALL += ["--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small gain nothing from threads, and lose seconds to them where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorder(torch.nn.Module):
    """Writes its name into a shared log when called, and moves a fake clock on by a fixed time."""

    def __init__(self, name: str, seconds: float, log: list, clock: list):
        super().__init__()
        self.name, self.seconds, self.log, self.clock = name, seconds, log, clock

    def forward(self, x):
        self.log.append(self.name)
        self.clock[0] += self.seconds


@pytest.fixture
def recorded(monkeypatch):
    """(models, log) on a clock that only the models move."""
    log, clock = [], [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    return {name: Recorder(name, s, log, clock) for name, s in dict(a=0.5, b=0.25, c=2.0).items()}, log


def test_models_take_turns(recorded):
    models, log = recorded
    latency.measure(models, (torch.zeros(1),), repeats=6, warmup=2, device=torch.device("cpu"))
    rounds = ["".join(log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 8
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert rounds[2:] == ["abc", "bca", "cab", "cba", "acb", "bac"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_turns_are_balanced(n):
    names = [chr(ord("a") + i) for i in range(n)]
    orders = [latency.turns(names, repeat) for repeat in range(2 * n)]
    places = Counter((name, place) for order in orders for place, name in enumerate(order))
    assert set(places.values()) == {2} and len(places) == n * n
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert all(follows[pair] == follows[pair[::-1]] for pair in follows)


def test_measure_leaves_out_warmup_and_counts_milliseconds(recorded):
    models, log = recorded
    times = latency.measure(models, (torch.zeros(1),), repeats=4, warmup=3, device=torch.device("cpu"))
    assert times == {"a": [500.0] * 4, "b": [250.0] * 4, "c": [2000.0] * 4}
    assert len(log) == 3 * (3 + 4)


def test_device_is_synchronised_around_each_call(recorded, monkeypatch):
    models, log = recorded
    monkeypatch.setattr(latency.torch.cuda, "synchronize", lambda device: log.append("wait"))
    latency.measure({"a": models["a"]}, (torch.zeros(1),), repeats=2, warmup=1, device=torch.device("cuda"))
    assert log == ["wait", "a", "wait"] * 3


def test_ratio_is_taken_within_each_repeat():
    """The machine halves its speed after two of five repeats: the ratio must not see it."""
    times = {"base": [10.0, 10.0, 20.0, 20.0, 20.0], "other": [6.0, 6.0, 10.0, 12.0, 14.0]}
    summary = latency.summarize(times, batch_size=4)
    assert summary["base"]["ratio"] == [1.0, 1.0, 1.0]
    assert summary["other"]["ratio"] == [0.6, 0.6, 0.6]
    assert summary["other"]["ms"] == [6.0, 10.0, 12.0]
    assert summary["other"]["images_per_second"] == 400.0


def test_models_compute_with_real_values():
    models = latency.build_models(NANO, torch.float32, torch.device("cpu"))
    for name, model in models.items():
        assert not model.training
        for parameter_name, parameter in model.named_parameters():
            assert (parameter != 0).any(), f"{name}: {parameter_name} is zero"
        inputs = latency.make_inputs(model, 64, 2, torch.device("cpu"))
        assert inputs[0].shape == (2, 4, 8, 8)
        with torch.inference_mode():
            sample = model(*inputs).sample
        assert sample.isfinite().all()
        assert (sample.abs() > torch.finfo(torch.float32).tiny).all()


def test_command_line_writes_report_and_table(tmp_path, capsys):
    assert latency.main([*SMALL, "--batch_sizes", "[1, 3]", "--dtype", "bfloat16", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["interrupted"] is False
    assert report["baseline"] == "SiT-Nano/2"
    assert report["command"].startswith("latency.py --presets")
    assert report["options"]["repeats"] == 2
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["threads"] == torch.get_num_threads()
    assert report["environment"]["device_name"]

    results = report["results"]
    settings = [(r["image_size"], r["batch_size"], r["preset"]) for r in results]
    assert settings == list(itertools.product([32, 64], [1, 3], NANO))
    models = latency.build_models(NANO, torch.float32, torch.device("cpu"))
    for r in results:
        assert r["dtype"] == "bfloat16"
        assert r["parameters"] == models[r["preset"]].num_parameters()
        assert r["macs_per_image"] == count_macs(models[r["preset"]], r["image_size"] // 8, r["image_size"] // 8)
        assert len(r["times_ms"]) == 2 and r["ms"][1] == np.median(r["times_ms"])
    attention, atconv = results[:2]
    assert attention["ratio"] == [1.0, 1.0, 1.0]
    assert atconv["ratio"][1] == pytest.approx(np.mean(np.divide(atconv["times_ms"], attention["times_ms"])))

    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(results)
    assert len({line.count("|") for line in table}) == 1
    assert "time / SiT-Nano/2" in table[0]
    assert table[3].startswith(f"| SiT-ATConv-Nano/2 | 32 | 1 | bfloat16 | {atconv['parameters'] / 1e6:.2f} |")
    assert f" {atconv['ms'][1]:.4g} [" in table[3]


def test_threads_are_set_and_without_output_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = []
    monkeypatch.setattr(latency.torch, "set_num_threads", threads.append)
    assert latency.main([*SMALL, "--threads", "1"]) == 0
    assert threads == [1]
    assert list(tmp_path.iterdir()) == []
    assert latency.main(SMALL) == 0
    assert threads == [1]


def test_compiled_models_are_made_for_each_setting(monkeypatch, capsys):
    compiled = []

    def fake_compile(model, **options):
        compiled.append((type(model).__name__, options))
        return model

    monkeypatch.setattr(latency.torch, "compile", fake_compile)
    latency.main(SMALL)
    assert compiled == []
    latency.main([*SMALL, "--compile", "true"])
    assert compiled == [("SiTTransformer2DModel", dict(dynamic=False, fullgraph=True))] * 4


@pytest.mark.parametrize("fault, status", [(KeyboardInterrupt, latency.INTERRUPTED), (torch.OutOfMemoryError, None)])
def test_finished_settings_survive_an_interrupt(fault, status, tmp_path, monkeypatch, capsys):
    measure, calls = latency.measure, []

    def stop_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise fault
        return measure(*args)

    monkeypatch.setattr(latency, "measure", stop_at_the_second)
    arguments = [*SMALL, "--output", str(tmp_path / "new" / "short.json")]
    if status is None:
        with pytest.raises(fault):
            latency.main(arguments)
    else:
        assert latency.main(arguments) == status
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 2 + len(NANO)
        assert "interrupted" in err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["short.json"]
    report = json.loads((tmp_path / "new" / "short.json").read_text())
    assert report["interrupted"] is True
    assert [(r["preset"], r["image_size"]) for r in report["results"]] == [(name, 32) for name in NANO]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--presets", "[SiT-Nano/2, SiT-Huge/2]"], "preset='SiT-Huge/2' is not one of: "),
        (["--presets", "[SiT-Nano/2, SiT-Nano/2]"], "must name at least one, and each only once"),
        (["--presets", "[]"], "must name at least one"),
        (["--dtype", "int8"], "dtype='int8' is not one of: float32, bfloat16, float16"),
        (["--device", "tpu"], "device='tpu' is not one of: auto, cpu, cuda"),
        (["--image_sizes", "[64, 72]"], "image_size=72 is not divisible by 16, 8 × patch size of SiT-Nano/2"),
        (["--image_sizes", "[0]"], "image_size=0 must be"),
        (["--batch_sizes", "[0]"], "batch_size=0 must be"),
        (["--repeats", "0"], "repeats=0 must be"),
        (["--warmup", "0"], "warmup=0 must be"),
        (["--threads", "0"], "threads=0 must be"),
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


@pytest.mark.parametrize("output", ["", "mine.json"])
def test_existing_output_is_kept(output, tmp_path, capsys):
    existing = tmp_path / (output or "latency.json")
    existing.write_text("precious")
    with pytest.raises(SystemExit):
        latency.main([*SMALL, "--output", str(tmp_path / output)])
    assert "exists already" in capsys.readouterr().err
    assert existing.read_text() == "precious"
