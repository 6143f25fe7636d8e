from sit_atconv.evaluation.solver_plot import plot_errors


def test_each_sampler_is_a_line_in_the_style_of_its_kind():
    rows = [
        {"sampler": name, "setting": setting, "network_calls": calls, "rms_error": 1 / calls}
        for name, setting in (("euler", "n steps"), ("dopri5", "rtol 0.01"), ("diffusers UniPC", "n steps"))
        for calls in (10, 20)
    ]
    (axes,) = plot_errors(rows).axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", ":"]
    assert all(list(line.get_xdata()) == [10, 20] and list(line.get_ydata()) == [0.1, 0.05] for line in axes.lines)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
