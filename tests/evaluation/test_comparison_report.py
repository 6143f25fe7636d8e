"""The page of a comparison shows text as text, and pictures as pictures."""

from html import unescape

from sit_atconv.evaluation.comparison_plots import Plot, with_own_ids
from sit_atconv.evaluation.comparison_report import Comparison, Table, render_html, render_markdown


def test_text_is_escaped_and_plots_are_not(tmp_path):
    (tmp_path / "samples-b.png").write_bytes(b"picture")
    table = Table(["model", "FID"], [["<b>B</b>", 1.5]])
    plots = {"fid-steps": Plot(b"", '<svg id="plot"></svg>')}
    text = {"title": "A & <i>B</i>", "facts": ["3 < 4"], "command": "echo '<b>' \"&\""}
    comparison = Comparison(tables={"Scores": table}, plots=plots, **text)
    page = render_html(comparison, {'"<b>': tmp_path / "samples-b.png"})
    assert "<b>" not in page and "<i>" not in page
    for part in (text["title"], *text["facts"], text["command"], "<td><b>B</b></td><td>1.5</td>"):
        assert part in unescape(page)
    assert '<svg id="plot"></svg>' in page
    assert 'alt="&#34;&lt;b&gt;" src="data:image/png;base64,cGljdHVyZQ=="' in page


def test_a_report_without_a_command_has_no_such_heading():
    comparison = Comparison("A", [], {})
    assert "Command" not in render_html(comparison, {}) + render_markdown(comparison, {})
    assert "## Curves\n\n## Samples" in render_markdown(comparison, {})


def test_pictures_on_one_page_have_ids_of_their_own():
    svg = '<svg><path id="a"/><use xlink:href="#a" clip-path="url(#b)"/></svg>'
    assert with_own_ids(svg, "n") == '<svg><path id="n-a"/><use xlink:href="#n-a" clip-path="url(#n-b)"/></svg>'
