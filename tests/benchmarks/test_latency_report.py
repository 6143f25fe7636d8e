"""The plot of the latency report."""

from sit_atconv.benchmarks.report import machine_title, plot_forward, time_text


def test_the_plot_shows_medians_of_the_most_resolutions():
    def row(name, size, dtype, ms):
        facts = dict(measurement="forward", name=name, baseline="a", image_size=size, batch_size=1, dtype=dtype)
        return facts | {"ms": [ms - 1, ms, ms + 5], "ratio": [0.9 * ms, ms / 10, 2 * ms]}

    rows = [row("a", 512, "bfloat16", 3.0), row("b", 512, "bfloat16", 4.0)]
    rows += [row(name, size, "float32", ms) for size, ms in [(512, 20.0), (256, 10.0)] for name in "ab"]
    assert plot_forward(rows[:2]) is None
    figure = plot_forward(rows)
    for axes, values in zip(figure.axes, ([10.0, 20.0], [1.0, 2.0]), strict=True):
        for line in axes.lines:
            assert (list(line.get_xdata()), list(line.get_ydata())) == ([256, 512], values)
    assert [line.get_label() for line in figure.axes[0].lines] == ["a", "b"]
    assert "float32" in figure.axes[0].get_title()
    for axes in figure.axes:
        assert len({line.get_marker() for line in axes.lines}) == 2
    environment = {"device": "cpu", "device_name": "A$1$ chip", "threads": 2, "torch": "2.14"}
    figure = plot_forward(rows, machine_title(environment))
    assert figure.get_suptitle() == "A$1$ chip, 2 threads, torch 2.14"
    figure.canvas.draw()  # "$" begins no formula
    assert machine_title({**environment, "device": "cuda"}) == "A$1$ chip, torch 2.14"


def test_times_of_a_second_and_more_are_seconds():
    assert time_text(14.934, 15.251, 15.38) == "15.25 ms [14.93–15.38]"
    assert time_text(56090, 56240, 56260) == "56.24 s [56.09–56.26]"
    assert time_text(990, 1000, 1010) == "1 s [0.99–1.01]"
