"""The table of metrics and the options of an evaluation."""

import dataclasses
import inspect

import pytest

from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.metrics import METRICS


@pytest.mark.parametrize("name", METRICS)
def test_settings_of_a_metric_are_options_that_its_functions_take(name):
    metric = METRICS[name]
    assert set(metric.settings) <= {field.name for field in dataclasses.fields(MetricOptions)}
    for function in filter(None, (metric.compute, metric.check)):
        assert tuple(inspect.signature(function).parameters)[2:] == metric.settings


def test_only_what_values_depend_on_is_recorded():
    assert MetricOptions("fid,sfid").settings() == {}
    assert MetricOptions("fid", bootstrap=50).settings() == {"bootstrap": 50, "metric_seed": 0}
    options = MetricOptions("kid, precision_recall", neighbours=4)
    assert options.names == ["kid", "precision_recall"]
    settings = {"kid_subsets": 100, "kid_subset_size": 1000, "metric_seed": 0, "neighbours": 4}
    assert options.settings() == settings


def test_a_torchscript_file_needs_trust(tmp_path):
    program, weights = tmp_path / "net.pt", tmp_path / "inception-2015-12-05.pt"
    program.touch()
    weights.touch()
    for options in (
        {"extractor": f"torchscript:{program}"},
        {"extractor": f"torchscript:{program}@64"},
        {"extractor": "inception", "weights": str(weights)},
        {"extractor": "inception-adm", "weights": str(weights)},
    ):
        with pytest.raises(ValueError, match=r"\.pt is TorchScript, a program .* add --trust_torchscript true"):
            MetricOptions(**options).check()
        MetricOptions(**options, trust_torchscript=True).check()
    for extractor in ("inception", "inception-adm", "pixels", "dinov2"):
        MetricOptions(extractor=extractor).check()


def test_features_are_kept_only_for_metrics_that_need_them():
    for metrics, bootstrap, samples, reference in (
        ("fid,sfid,inception_score", 0, False, False),
        ("fid", 20, True, False),
        ("fid_infinity", 0, True, False),
        ("kid", 0, True, True),
    ):
        options = MetricOptions(metrics, bootstrap=bootstrap)
        assert (options.keeps_samples, options.keeps_reference) == (samples, reference), metrics
    assert MetricOptions("fid,sfid,inception_score").outputs == {"features", "spatial", "probabilities"}
