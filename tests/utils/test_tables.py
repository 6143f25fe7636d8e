from sit_atconv.utils.tables import markdown_table


def test_markdown_table():
    table = markdown_table(["solver", "setting", "calls"], [["euler", "2 steps", 2], ["heun", "", 4]], text_columns=2)
    assert table.splitlines() == [
        "| solver | setting | calls |",
        "| --- | --- | ---: |",
        "| euler | 2 steps | 2 |",
        "| heun |  | 4 |",
    ]
