"""Which folders make a demo, and under which names."""

import pytest
import torch

from sit_atconv.demo.folders import load_pipelines
from sit_atconv.demo.names import page_names


@pytest.fixture(scope="module")
def folders(tiny_pipeline, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, options in {
        "atconv": {},
        "attention": {"mixer": "attention", "seed": 1},
        "large": {"sample_size": 16},
        "many": {"num_classes": 6},
    }.items():
        tiny_pipeline(**options).save_pretrained(root / name / "pipeline")
    return root


def test_pipelines_are_named_after_their_runs(folders):
    names = [str(folders / name / "pipeline") for name in ("atconv", "attention")]
    loaded = load_pipelines(names, torch.device("cpu"))
    assert {name: pipeline.transformer.config.mixer for name, pipeline in loaded.items()} == {
        "atconv": "atconv",
        "attention": "attention",
    }
    assert page_names([*names, names[1]]) == ["atconv", "attention", "attention (3)"]
    assert page_names(["someone/model"]) == ["model"]


@pytest.mark.parametrize(
    "other, reason",
    [("large", "image size 16, but .* has 8"), ("many", "number of classes 6, but .* has 5")],
)
def test_pipelines_that_draw_other_things_are_refused(folders, other, reason):
    with pytest.raises(ValueError, match=reason):
        load_pipelines([str(folders / name / "pipeline") for name in ("atconv", other)], torch.device("cpu"))


def test_what_is_no_pipeline_is_refused(folders):
    with pytest.raises(ValueError, match=r"is not a pipeline folder: it has no model_index\.json"):
        load_pipelines([str(folders / "atconv")], torch.device("cpu"))
    with pytest.raises(ValueError, match="is not a pipeline folder"):
        load_pipelines([str(folders / "nothing")], torch.device("cpu"))
