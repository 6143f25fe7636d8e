"""Costs of sampling: notes of several processes become one file, and averages cover all batches or are not given."""

import pytest

from sit_atconv.evaluation.sampling_costs import collect_costs, cost_per_image, note_cost


def test_notes_of_processes_are_merged_and_broken_lines_are_left_out(tmp_path):
    note_cost(tmp_path, 0, 0, 16, 1.0)
    note_cost(tmp_path, 1, 8, 24, 3.0)
    with (tmp_path / ".1.costs.jsonl").open("a", encoding="utf-8") as notes:
        notes.write('\n{"first_image": 16, "netw')  # cut short by a crash
    assert sorted(collect_costs(tmp_path)) == [0, 8]
    assert [file.name for file in tmp_path.iterdir()] == ["costs.jsonl"]
    note_cost(tmp_path, 0, 16, 32, 2.0)
    costs = collect_costs(tmp_path)
    assert cost_per_image(costs, 20, 8) == {"seconds_per_image": 6 / 24, "network_calls_per_image": 72 / 24}
    assert cost_per_image(costs, 25, 8) == {}  # the fourth batch is not known


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "3", '{"first_image": 8}', '{"first_image": [], "seconds": "a"}', "\udcff"]
)
def test_damaged_lines_are_left_out(tmp_path, damage):
    note_cost(tmp_path, 0, 0, 2, 1.5)
    with (tmp_path / ".0.costs.jsonl").open("ab") as notes:
        notes.write(b"\n" + damage.encode(errors="surrogateescape"))
    note_cost(tmp_path, 0, 4, 3, 2.5)
    assert collect_costs(tmp_path) == {
        0: {"first_image": 0, "network_calls": 2, "seconds": 1.5},
        4: {"first_image": 4, "network_calls": 3, "seconds": 2.5},
    }
