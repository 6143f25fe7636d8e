"""What eval/growth.py draws from reports, and its formula of training over many GPUs."""

import json

import pytest

from sit_atconv.benchmarks.growth import draw_growth, growth_figure, paper_steps, paper_table


def row(name: str, size: int, batch: int, ms: float) -> dict:
    facts = {"measurement": "forward", "name": name, "image_size": size, "batch_size": batch}
    return {**facts, "ms": [ms - 1, ms, ms + 1], "peak_bytes": ms * 2**20}


ROWS = [row("SiT-Nano/2", 256, 1, 5.0), row("SiT-Nano/2", 128, 1, 2.0)]
ROWS += [row("SiT-Nano/2", 256, 4, 20.0), row("SiT-ATConv-Nano/4", 256, 1, 3.0)]

OTHER = [row("SiT-Nano/2", 256, 1, 50.0)]  # a report of a busier hour


def test_curves_hold_what_was_measured():
    figure = growth_figure([ROWS, OTHER], {"a": paper_steps("SiT-XL/2", 32, 396, 450, 400)}, "a machine")
    for axes in figure.axes[0], figure.axes[3]:  # time and memory against tokens
        curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
        assert curves == {"SiT-Nano/2": ([64, 256], [2.0, 5.0]), "SiT-ATConv-Nano/4": ([64], [3.0])}
    batch = figure.axes[1].lines[0]
    assert (list(batch.get_xdata()), list(batch.get_ydata())) == ([1, 4], [5.0, 20.0])


def test_a_step_over_gpus_follows_the_formula():
    one_node, *_, largest = paper_steps("SiT-ATConv-XL/2", 32, 396, 450, 400)
    assert one_node["compute"] == pytest.approx(6 * 95.77e9 * 32 / 396e12, rel=1e-3)
    assert one_node["sent"] == pytest.approx(2 * 7 / 8 * 4 * 637.66e6, rel=1e-4)
    assert one_node["reduce"] == pytest.approx(one_node["sent"] / 450e9)
    assert largest["reduce"] == pytest.approx(2 * 1023 / 1024 * 4 * 637.66e6 / 400e9, rel=1e-4)
    assert largest["best"] == largest["compute"]  # the backward pass hides it
    slow = paper_steps("SiT-ATConv-XL/2", 32, 396, 450, 10)[-1]
    assert slow["best"] == pytest.approx(slow["compute"] / 3 + slow["reduce"])
    assert paper_table({"x": [slow]}).count("|") == 3 * 8


def test_a_picture_is_drawn_and_other_files_are_refused(tmp_path):
    report, other = tmp_path / "latency.json", tmp_path / "other.json"
    report.write_text(json.dumps({"results": ROWS, "environment": {"device_name": "x", "torch": "2"}}))
    other.write_text("{}")
    picture = tmp_path / "growth.png"
    assert "SiT-XL/2" in draw_growth([str(report)], str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="already exists"):
        draw_growth([str(report)], str(picture))
    with pytest.raises(ValueError, match=r"is not a report; name a latency\.json"):
        draw_growth([str(other)], str(tmp_path / "new.png"))
    with pytest.raises(ValueError, match="cannot be read"):
        draw_growth([str(tmp_path / "none.json")], str(tmp_path / "new.png"))
