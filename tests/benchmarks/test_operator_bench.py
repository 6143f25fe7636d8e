"""The table of the operator benchmark."""

from sit_atconv.benchmarks.operator_bench import times_table


def test_ratios_are_taken_within_each_round():
    table = times_table("title", {"a": [1.0, 2.0, 4.0], "b": [3.0, 6.0, 12.0]})
    assert "| b | 6.000 | 3.000 [3.000–3.000] | 3.000 | 3.000 |" in table
