"""The time that a run will take, from its first steps."""

import pytest

from sit_atconv.training import pace
from sit_atconv.training.pace import MEASURED, SKIPPED, Pace, duration


def test_the_median_of_steps_after_the_first_ones_counts(monkeypatch):
    """Two slow steps at the start, and one in between with a grid, do not count."""
    steps = [30.0] * SKIPPED + [2.0] * MEASURED
    steps[SKIPPED + 3] = 50.0
    times = [sum(steps[:i]) for i in range(len(steps) + 1)]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: times.pop(0))
    measured = Pace(3600 + SKIPPED + MEASURED)
    said = [measured.tick() for _ in range(len(times))]
    assert said[:-1] == [None] * (SKIPPED + MEASURED)
    assert said[-1] == "time        about 2.0 h for 3,600 steps, at 2 s a step"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02, "20 ms"), (3, "3 s"), (42, "42 s"), (300, "5.0 min"), (7200, "2.0 h"), (400_000, "4.6 days")],
)
def test_durations_are_in_units_that_suit_them(value, text):
    assert duration(value) == text
