"""The page of a comparison shows text as text, and pictures as pictures."""

import json
from html import unescape

import pytest
import torch

from sit_atconv.evaluation import comparison_report
from sit_atconv.evaluation.comparison_plots import Plot, with_own_ids
from sit_atconv.evaluation.comparison_report import Comparison, render_html, render_markdown, write_report_files
from sit_atconv.evaluation.comparison_tables import Table
from sit_atconv.evaluation.output_files import check_report_folder


def test_text_is_escaped_and_plots_are_not(tmp_path):
    (tmp_path / "samples-b.png").write_bytes(b"picture")
    table = Table(["model", "FID"], [["<b>B</b>", 1.5]])
    plots = {"fid-steps": Plot(b"", '<svg id="plot"></svg>')}
    text = {"title": "A & <i>B</i>", "facts": ["3 < 4"], "command": "echo '<b>' \"&\""}
    comparison = Comparison(tables={"Scores": table}, plots=plots, **text)
    page = render_html(comparison, {'"<b>': tmp_path / "samples-b.png"})
    assert "<b>" not in page and "<i>" not in page
    for part in (text["title"], *text["facts"], text["command"], '<td data-head="FID">1.5</td>'):
        assert part in unescape(page)
    assert '<svg id="plot"></svg>' in page
    assert 'alt="Samples of &#34;&lt;b&gt;. " src="data:image/png;base64,cGljdHVyZQ=="' in page


def test_markdown_shows_names_as_they_are(tmp_path):
    name = "<script>alert(1)</script>|![x](http://y)\x1b[2J"
    shown = r"&lt;script&gt;alert(1)&lt;/script&gt;\|![x\](http://y)\\x1b[2J"
    table = Table(["model", f"FID of {name}"], [[name, 1.5]])
    comparison = Comparison(name, [name], {"Scores": table}, command="echo '```' '<b>\x1b'")
    page = render_markdown(comparison, {name: tmp_path / "samples-x.png"})
    assert f"# {shown}\n\n{shown}\n" in page
    assert f"| {shown} | 1.5 |" in page and f"| model | FID of {shown} |" in page
    assert "<script>" not in page and "\x1b" not in page
    assert page.endswith("````bash\necho '```' '<b>\\x1b'\n````\n")
    assert r"![&lt;script&gt;alert(1)&lt;/script&gt;\|!\[x\](http://y)\\x1b\[2J](samples-x.png)" in page
    (tmp_path / "samples-x.png").touch()
    assert "\x1b" not in render_html(comparison, {name: tmp_path / "samples-x.png"})


def test_an_interrupted_report_is_written_again(tmp_path, monkeypatch):
    grids = {"a b": torch.zeros(2, 3, 8, 8), "a_b": torch.ones(2, 3, 8, 8), "A_b": torch.ones(2, 3, 8, 8)}
    comparison = Comparison("T", [], {}, grids=grids, columns=2)
    with monkeypatch.context() as patch:
        patch.setattr(comparison_report, "save_grid", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_report_files(comparison, tmp_path / "report")
    check_report_folder(tmp_path / "report")
    write_report_files(comparison, tmp_path / "report")
    names = sorted(file.name for file in (tmp_path / "report").iterdir())
    assert names == ["report.html", "report.md", "samples-A_b-3.png", "samples-a_b-2.png", "samples-a_b.png"]
    (tmp_path / "report" / "report.md").unlink()
    with pytest.raises(ValueError, match="holds other files"):
        check_report_folder(tmp_path / "report")


def test_a_report_without_a_command_has_no_such_heading():
    comparison = Comparison("A", [], {})
    assert "Command" not in render_html(comparison, {}) + render_markdown(comparison, {})
    assert "## Curves\n\n## Samples" in render_markdown(comparison, {})


def test_pictures_on_one_page_have_ids_of_their_own():
    svg = '<svg><path id="a"/><use xlink:href="#a" clip-path="url(#b)"/></svg>'
    assert with_own_ids(svg, "n") == '<svg><path id="n-a"/><use xlink:href="#n-a" clip-path="url(#n-b)"/></svg>'


def test_the_verdict_comes_first_and_the_versions_last(tmp_path):
    table = Table(["model", "FID"], [["A", 1.5]])
    record = {"scores": [{"model": "A", "fid": 1.5, "kid": None}, {"model": "B,C", "fid": 0.1, "extra": 2}]}
    comparison = Comparison("T", ["fact"], {"Scores": table}, ["verdict <1>"], origin=["torch 2"], record=record)
    page = write_report_files(comparison, tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    for text in (unescape(page.partition("<body>")[2]), unescape(markdown)):
        places = [text.index(part) for part in ("verdict <1>", "fact", "Scores", "Curves", "torch 2")]
        assert places == sorted(places)
    assert json.loads((tmp_path / "report.json").read_text()) == record
    assert (tmp_path / "scores.csv").read_text() == 'model,fid,kid,extra\nA,1.5,,\n"B,C",0.1,,2\n'


def test_sample_columns_are_named_if_each_is_of_one_class(tmp_path):
    classes = ["cat", "<dog>", "owl"]
    (tmp_path / "samples.png").touch()
    page = render_html(Comparison("T", [], {}, columns=3, classes=classes * 2), {"A": tmp_path / "samples.png"})
    assert '<span title="cat">cat</span><span title="&lt;dog&gt;">&lt;dog&gt;</span>' in page
    assert "Columns from left to right: cat, &lt;dog&gt;, owl." in page
    mixed = Comparison("T", [], {}, columns=2, classes=classes)
    assert mixed.column_names == [] and mixed.caption == "Row by row: cat, <dog>, owl."
    page = render_html(mixed, {"A": tmp_path / "samples.png"})
    assert "<span" not in page and "Row by row: cat, &lt;dog&gt;, owl." in page
    assert Comparison("T", [], {}).caption == ""
