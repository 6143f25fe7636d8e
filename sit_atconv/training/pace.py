"""How long a run will take, measured on its first steps."""

import statistics
import time

MEASURED = 10  # steps, of which the median counts
SKIPPED = 2  # the first ones, which start workers and compile


class Pace:
    """The time from each step to the next.

    Args:
        steps_left: number of steps that the run is going to make.
    """

    def __init__(self, steps_left: int):
        self.steps_left = steps_left
        self.times: list[float] = []

    def tick(self) -> str | None:
        """Call this before each step. Once enough steps were made, return how long the run will take, in words."""
        self.times.append(time.perf_counter())
        if len(self.times) != SKIPPED + MEASURED + 1:
            return None
        each = statistics.median(b - a for a, b in zip(self.times[SKIPPED:-1], self.times[SKIPPED + 1 :], strict=True))
        left = self.steps_left - SKIPPED - MEASURED
        return f"time        about {duration(each * left)} for {left:,} steps, at {seconds(each)} a step"


def duration(total: float) -> str:
    """A time in seconds in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if total >= 1.5 * size:
            return f"{total / size:.1f} {unit}"
    return seconds(total)


def seconds(value: float) -> str:
    """Seconds, or milliseconds below a tenth."""
    return f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
