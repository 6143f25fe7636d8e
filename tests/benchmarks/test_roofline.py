"""The roofline in closed form."""

import pytest

from sit_atconv.benchmarks.roofline import roofline_ms


def test_roofline_in_closed_form():
    """One operation bound by arithmetic (2 s), one by memory (3 s)."""
    assert roofline_ms([(200, 1), (1, 30)], flops_per_second=100, bytes_per_second=10) == pytest.approx(5000)
