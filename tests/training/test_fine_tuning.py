import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_atconv.data import DigitsDataset
from sit_atconv.training.build import build_pipeline, build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.finish import save_pipeline
from sit_atconv.training.stored_config import resolve_config


class Letters(DigitsDataset):
    """The digits under other names, and one class less."""

    def __init__(self):
        super().__init__()
        self.classes = list("abcdefghi")
        self.labels = np.minimum(self.labels, 8)


@pytest.fixture
def trained(tmp_path):
    """A pipeline folder of digits whose weights are all random."""
    config = TrainConfig(preset="SiT-ATConv-Nano/2", model={"num_layers": 2, "kernel_pool": "grid"})
    transformer = build_transformer(config, DigitsDataset(), None)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    save_pipeline(build_pipeline(config, transformer, None, DigitsDataset().classes), tmp_path / "pipeline")
    return str(tmp_path / "pipeline"), transformer


def test_fine_tuning_takes_over_architecture_and_weights(trained):
    folder, transformer = trained
    tuned = build_transformer(TrainConfig(init_from=folder), DigitsDataset(), None)
    assert tuned.config.kernel_pool == "grid"
    for name, value in transformer.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], value), name


def test_fine_tuning_on_other_classes_has_new_embeddings(trained):
    folder, transformer = trained
    tuned = build_transformer(TrainConfig(init_from=folder), Letters(), None)
    assert tuned.config.num_classes == 9
    old, new = transformer.class_embed.weight, tuned.class_embed.weight
    assert torch.equal(new[tuned.null_class], old[transformer.null_class])
    assert new[:9].std() < 0.03  # freshly drawn, not the old ones
    for name, value in transformer.state_dict().items():
        if name != "class_embed.weight":
            assert torch.equal(tuned.state_dict()[name], value), name


class Unlabelled(DigitsDataset):
    """The digits without their classes."""

    def __init__(self):
        super().__init__()
        self.classes = []
        self.labels = np.zeros_like(self.labels)


@pytest.mark.parametrize("named", [True, False])
def test_fine_tuning_without_classes_goes_on_from_the_null_embedding(trained, named):
    folder, transformer = trained
    if not named:
        index = Path(folder) / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": None}))
    tuned = build_transformer(TrainConfig(init_from=folder), Unlabelled(), None)
    assert tuned.class_embed.weight.shape[0] == 1
    assert torch.equal(tuned.class_embed.weight[0], transformer.class_embed.weight[transformer.null_class])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"preset": "SiT-S/2"}, "sets the architecture; remove: preset='SiT-S/2'$"),
        ({"mixer": "attention"}, "mixer='attention': the trained model has no self-attention to replace; leave mixer"),
        ({"model": {"num_layers": 3}}, "remove: model.num_layers=3$"),
        ({"path": "gvp"}, "path=gvp: .* was trained with linear"),
        ({"noise_scale": 2.0}, "noise_scale=2.0: .* was trained with 1.0; give --noise_scale 1.0"),
    ],
)
def test_fine_tuning_refuses_what_contradicts_the_folder(trained, options, expected):
    with pytest.raises(ValueError, match=expected):
        resolve_config(TrainConfig(init_from=trained[0], **options))


def test_fine_tuning_needs_a_pipeline_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a pipeline folder"):
        resolve_config(TrainConfig(init_from=str(tmp_path)))
