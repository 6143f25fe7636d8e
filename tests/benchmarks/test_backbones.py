"""The backbones that eval/backbone_latency.py times: the reference's layout computes what AttNet computes."""

import copy
import json
import sys
from pathlib import Path

import pytest
import timm
import torch

from sit_atconv.benchmarks.backbones import build_backbone, reference_layout

sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))
import backbone_latency


@pytest.mark.parametrize(
    "options", [dict(), dict(use_layer_scale=False, glu_norm=False), dict(kernel_sizes=5)], ids=str
)
def test_reference_layout_computes_the_same(options):
    torch.manual_seed(0)
    ours = timm.create_model("attnet_t1", depths=[1, 2, 1, 1], dims=[8, 12, 16, 20], num_classes=7, **options)
    with torch.no_grad():
        for parameter in ours.parameters():  # layer scale of 10⁻⁶ would hide everything
            parameter.normal_(std=0.3)
    ours.eval()
    naive = reference_layout(ours).double()
    for shape in ((2, 3, 75, 62), (3, 3, 1, 1), (1, 3, 2, 5), (3, 3, 7, 129), (1, 3, 64, 96)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = naive(x.double())
            assert expected.std() > 0.1
            torch.testing.assert_close(copy.deepcopy(ours).double()(x.double()), expected, rtol=1e-9, atol=1e-9)
            transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
            for strided in (
                x,
                x.to(memory_format=torch.channels_last),
                transposed,
                x.repeat(1, 1, 2, 2)[:, :, : shape[2], : shape[3]],
            ):
                torch.testing.assert_close(ours(strided).double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(x).detach().double(), expected, rtol=1e-4, atol=1e-4)


def test_report_compares_with_the_first_model(tmp_path, capsys):
    models = "[attnet_xxs, attnet_xxs-reference-layout, convnext_atto]"
    options = [
        "--models",
        models,
        "--image_size",
        "32",
        "--repeats",
        "3",
        "--clock",
        "cpu",
        "--device",
        "cpu",
        "--profile",
    ]
    backbone_latency.main([*options, "--output", str(tmp_path / "report.json")])
    rows = json.loads((tmp_path / "report.json").read_text())["results"]
    first = rows["attnet_xxs"]["times_ms"]
    for name, row in rows.items():
        assert len(row["times_ms"]) == 3 and row["baseline"] == "attnet_xxs"
        ratios = sorted(mine / reference for mine, reference in zip(row["times_ms"], first, strict=True))
        assert row["ratio"][1] == pytest.approx(ratios[1]), name
        assert sum(row["operations"].values()) == pytest.approx(1)
    text = capsys.readouterr().out
    assert f"{1 / rows['convnext_atto']['ratio'][1]:.2f} [" in text and "| attnet_xxs | 2.9 |" in text


def test_mistakes_are_named(capsys):
    for options, message in (
        (["--models", "[attnet_t22]"], "did you mean attnet_t2"),
        (["--models", "[convnext_atto-reference-layout]"], "only AttNet has a reference layout"),
        (["--models", "[attnet_xxs, attnet_xxs]"], "each only once"),
        (["--clock", "sun"], "clock"),
    ):
        with pytest.raises(SystemExit):
            backbone_latency.main([*options, "--device", "cpu"])
        assert message in capsys.readouterr().err
    assert isinstance(build_backbone("attnet_xxs"), torch.nn.Module)
