"""Options of a classifier: what follows from others, and what no run can use."""

import dataclasses

import pytest

from sit_atconv.classification.config import GROUPS, ClassifierConfig


def test_defaults_are_the_built_in_recipe():
    config = ClassifierConfig()
    assert (config.model, config.image_size, config.output_dir) == ("attnet_xxs", 32, "runs/digits-attnet_xxs")
    assert dataclasses.replace(config) == config
    other = ClassifierConfig(data="photos", image_size=64, model="timm:convnext_atto")
    assert (other.model, other.model_args, other.output_dir) == ("convnext_atto", {}, "runs/photos-convnext_atto")


def test_groups_hold_every_option_once():
    """With the default that its group shows, also where it is not the one of SiT."""
    defaults = {field.name: (field.default, field.default_factory) for g in GROUPS for field in dataclasses.fields(g)}
    assert len(defaults) == sum(len(dataclasses.fields(group)) for group in GROUPS)
    fields = dataclasses.fields(ClassifierConfig)
    assert {field.name: (field.default, field.default_factory) for field in fields} == defaults
    assert (ClassifierConfig().max_steps, ClassifierConfig().weight_decay) == (900, 0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data": "photos"}, "image_size must be given for data='photos'"),
        ({"mixup": -1}, "mixup=-1 must be a number of at least 0"),
        ({"horizontal_flip": 2}, "horizontal_flip=2 must be between 0 and 1"),
        ({"label_smoothing": 1}, "label_smoothing=1 leaves nothing of the labels"),
        ({"crop_scale": [0.9, 0.5]}, r"crop_scale=\[0.9, 0.5\] must be two numbers above 0, the smaller one first"),
        ({"crop_scale": [0.5, 2]}, "crop_scale"),
        ({"crop_pct": 0}, "crop_pct=0 must be above 0"),
        ({"held_out": 1}, "held_out=1 must be above 0 and below 1"),
        ({"drop_path": 1}, "drop_path=1 must be at least 0 and below 1"),
        ({"auto_augment": "best"}, "auto_augment='best' is no policy of timm; give one such as rand-m9"),
        ({"repeated_augmentation": 0}, "repeated_augmentation=0 must be a whole number of at least 1"),
        ({"min_learning_rate": 1}, "min_learning_rate=1 exceeds learning_rate=0.003"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"max_steps": 0}, "max_steps=0"),
    ],
    ids=str,
)
def test_values_that_no_run_can_use(options, message):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**options)
