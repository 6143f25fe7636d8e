"""eval/throughput.py: all that take turns do the same work, and what is reported is what was timed."""

import importlib.util
import json
from functools import partial

import numpy as np
import pytest
import torch

from sit_atconv.benchmarks.calls import TimedCalls
from sit_atconv.evaluation import throughput, throughput_files, throughput_scores
from sit_atconv.evaluation.extractor import Extractor
from sit_atconv.evaluation.resize import resize_clean
from sit_atconv.evaluation.throughput_files import BenchmarkFiles
from sit_atconv.evaluation.throughput_loaders import loader_calls
from sit_atconv.evaluation.throughput_models import encoding_calls, sampling_calls
from sit_atconv.evaluation.throughput_options import ThroughputOptions
from sit_atconv.evaluation.throughput_scores import Scorer, distance_calls, fid_calls

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(throughput_files, "MADE_SIZE", (75, 50))
    monkeypatch.setattr(throughput_scores, "INCEPTION_FEATURES", 6)


def options(**others) -> ThroughputOptions:
    return ThroughputOptions(
        **{"num_images": 12, "num_drawn": 2, "image_size": 16, "batch_size": 4, "steps": 1, **others}
    )


@pytest.mark.slow
def test_every_loader_yields_every_picture_once(tmp_path):
    chosen, missing = options(), []
    timed = loader_calls(BenchmarkFiles(tmp_path, chosen), chosen, missing)
    assert (" ".join(missing).count("webdataset is not installed") == 0) == bool(importlib.util.find_spec("webdataset"))
    assert set(timed.calls) >= {"folder", "tar shard", "parquet", "Hugging Face data set", "latents"}
    for name, call in timed.calls.items():
        batches = [batch["x"] if isinstance(batch, dict) else batch[0] for batch in call.args[0]]
        expected = (4, 4, 2, 2) if name == "latents" else (4, 3, 16, 16)
        assert [tuple(batch.shape) for batch in batches] == [expected] * 3, name
        images = torch.cat(batches)
        means = sorted({round(float(image.mean()), 3) for image in images})
        assert len(means) == 12, name
        if name != "latents":  # the same pictures, up to the filter that halves large ones first
            ours = sorted(float(batch.mean()) for batch in torch.cat([b["x"] for b in timed.calls["folder"].args[0]]))
            np.testing.assert_allclose(means, ours, atol=0.02)


def test_every_tool_computes_the_same_distance(tmp_path):
    weight = torch.randn(3 * 24 * 20, 5, generator=torch.Generator().manual_seed(0))
    prepare = partial(resize_clean, size=(24, 20))
    extractor = Extractor("projection", "", prepare, lambda x: {"features": x.flatten(1) @ weight / 255})
    chosen, missing = options(), []
    values = {
        name: call()
        for name, call in fid_calls(
            Scorer(BenchmarkFiles(tmp_path, chosen), chosen, extractor, CPU), missing
        ).calls.items()
    }
    assert values["sit-atconv"] == pytest.approx(values["clean-fid"], rel=1e-5) and values["clean-fid"] > 1
    if "torch-fidelity" in values:  # which resizes in its own way
        assert values["torch-fidelity"] == pytest.approx(values["clean-fid"], rel=0.2)
    else:
        assert missing == [throughput_scores.NOT_INSTALLED]
    distances = [call() for call in distance_calls(40, missing).calls.values()]
    np.testing.assert_allclose(distances, distances[0], rtol=1e-5)


def test_speed_is_the_baseline_s_time_in_the_same_round_over_the_call_s():
    timed = TimedCalls({"peer": int, "ours": int}, {"peer": "peer", "ours": "peer"})
    peer, ours = throughput.rows_of("m", 10, timed, {"peer": [10.0, 40.0, 20.0], "ours": [5.0, 10.0, 40.0]})
    assert ours["speed"] == [1.25, 2.0, 3.0] and peer["speed"] == [1.0, 1.0, 1.0]
    assert ours["images_per_second"] == 1000.0


def test_the_report_is_written_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput_scores.importlib.util, "find_spec", lambda name: None)
    chosen = options(measurements=["distance"], output=str(tmp_path / "new"), repeats=2, clock="cpu")
    assert throughput.run_throughput(chosen, "the command") == 0
    report = json.loads((tmp_path / "new" / "throughput.json").read_text())
    assert report["command"] == "the command" and report["interrupted"] is False
    assert [(row["name"], row["images"], len(row["times_ms"])) for row in report["results"]] == [
        ("clean-fid", 12, 2),
        ("sit-atconv", 12, 2),
    ]
    assert report["missing"] == [throughput_scores.NOT_INSTALLED]
    output = capsys.readouterr().out
    assert throughput_scores.NOT_INSTALLED in output and "| distance of 2048 features | sit-atconv | 12 |" in output
    assert throughput.results_table(report["results"]) in (tmp_path / "new" / "throughput.md").read_text()


@pytest.mark.slow
def test_sampling_and_encoding_write_what_the_networks_alone_compute(tmp_path, monkeypatch):
    tiny = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
    monkeypatch.setattr(throughput_files, "VAE_CONFIG", throughput_files.VAE_CONFIG | tiny)
    chosen = options()
    files = BenchmarkFiles(tmp_path, chosen)
    for calls, pattern, count in (
        (sampling_calls(files, chosen, CPU), "drawn-*/*.png", 2),
        (encoding_calls(files, chosen, CPU), "encoded-*/manifest.json", 1),
    ):
        for repeat in (1, 2):
            for call in calls.calls.values():
                call()
            assert len(list(tmp_path.glob(pattern))) == repeat * count


@pytest.mark.parametrize(
    "given, message",
    [
        ({"measurements": ["speed"]}, "measurement='speed' is not one of: loaders"),
        ({"image_size": 20}, "image_size=20 must be a multiple of 8"),
        ({"clock": "cpu", "num_workers": 2}, "num_workers=2; make it 0, or choose the clock wall"),
        ({"extractors": ["inception", "inception"]}, "must name at least one, and each only once"),
        ({"data": "nowhere"}, "data='nowhere' does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        options(**given)
