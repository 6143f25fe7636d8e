from sit_atconv.utils.tables import aligned, aligned_intervals, decimals, markdown_table


def test_markdown_table():
    table = markdown_table(["solver", "setting", "calls"], [["euler", "2 steps", 2], ["heun", "", 4]], text_columns=2)
    assert table.splitlines() == [
        "| solver | setting | calls |",
        "| --- | --- | ---: |",
        "| euler | 2 steps | 2 |",
        "| heun |  | 4 |",
    ]


def test_numbers_of_a_column_have_the_same_decimals():
    assert aligned([123.456, 7.0, None]) == ["123.5", "7.0", ""]
    assert aligned([0.01234, -0.5], signed=True) == ["+0.0123", "-0.5000"]
    assert aligned([20.0, 1797.0]) == ["20", "1797"]
    assert aligned([123456.7, 1.5]) == ["123457", "2"]
    assert aligned([None]) == [""] and aligned([]) == []
    assert [decimals([9.99]), decimals([10.5], digits=2), decimals([0.0])] == [3, 0, 0]


def test_intervals_have_the_decimals_of_their_column():
    assert aligned_intervals([9.5, 12.25], [None, (8.125, 13.0)]) == ["9.50", "12.25 [8.12, 13.00]"]
    assert aligned_intervals([3.0, 4.0], [None, None]) == ["3", "4"]
