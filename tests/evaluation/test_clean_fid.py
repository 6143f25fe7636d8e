"""Commands that compare with clean-fid say at once which SciPy it needs."""

import pytest
import scipy.linalg

from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.parity import check_parity
from sit_atconv.evaluation.throughput import run_throughput
from sit_atconv.evaluation.throughput_options import ThroughputOptions


def test_a_scipy_that_clean_fid_cannot_use_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda A: A)  # as SciPy 1.18 has it: without `disp`
    message = r"clean-fid .* cannot compute its Fréchet distance with SciPy .*pip install 'scipy<1.18'"
    with pytest.raises(ValueError, match=message):
        check_parity("nowhere", "digits", MetricOptions("fid,kid", extractor="efficientnet-lite0"))
    for measurements in (["loaders", "distance"], None):
        chosen = ThroughputOptions(measurements=measurements, output=str(tmp_path / "new"))
        with pytest.raises(ValueError, match=message):
            run_throughput(chosen, "the command")
    assert not (tmp_path / "new").exists()
