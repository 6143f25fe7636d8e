"""The recipes of AttNet are those of the paper, and build."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import train_attnet
from PIL import Image

from sit_atconv.classification.models import build_classifier

CONFIGS = Path(train_attnet.__file__).with_name("configs")
# drop path, weight decay, mixup, random erasing, RandAugment (arXiv 2510.20092)
PAPER = {
    "xxs": (0.0, 0.015, 0.05, 0.0, False),
    "xs": (0.02, 0.025, 0.1, 0.0, False),
    "s": (0.05, 0.025, 0.3, 0.0, True),
    "t1": (0.1, 0.025, 0.6, 0.15, True),
    "t2": (0.2, 0.05, 0.8, 0.25, True),
    "t3": (0.4, 0.05, 0.8, 0.25, True),
    "t4": (0.5, 0.05, 0.8, 0.25, True),
}


def test_every_size_has_a_recipe():
    assert {file.stem for file in CONFIGS.glob("attnet_*.yaml")} == {f"attnet_{name}" for name in (*PAPER, "cifar10")}


@pytest.mark.parametrize("name", PAPER)
def test_recipe_is_that_of_the_paper(name, tmp_path):
    config = train_attnet.parse_arguments(["--config", str(CONFIGS / f"attnet_{name}.yaml"), "--data", str(tmp_path)])
    drop_path, weight_decay, mixup, erase, augments = PAPER[name]
    assert (config.drop_path, config.weight_decay, config.mixup) == (drop_path, weight_decay, mixup)
    assert (config.random_erase, config.auto_augment) == (erase, "rand-m9-mstd0.5-inc1" if augments else None)
    assert (config.model, config.batch_size, config.learning_rate) == (f"attnet_{name}", 4096, 4e-3)
    assert config.max_steps == round(300 * 1_281_167 / 4096) and config.lr_warmup_steps == round(5 * 1_281_167 / 4096)
    assert (config.cutmix, config.mixup_prob, config.mixup_switch_prob, config.label_smoothing) == (1, 1, 0.5, 0.1)
    assert (config.repeated_augmentation, config.ema_decay, config.min_learning_rate) == (3, 0.99995, 1e-6)
    assert (config.interpolation, config.crop_pct, config.image_size, config.max_grad_norm) == (
        "bicubic",
        0.875,
        224,
        None,
    )
    with torch.device("meta"):
        model = build_classifier(config, 3, 1000)
    assert model.stages[-1].blocks[-1].drop_path1.__class__.__name__ == ("DropPath" if drop_path else "Identity")


@pytest.mark.slow
def test_recipes_train(tmp_path):
    """One step of the smallest recipe with everything random, as its head says, on pictures made here."""
    rng = np.random.default_rng(0)
    for i in range(8):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(file)
    for name in ("xxs", "t1"):
        options = [
            "--config",
            str(CONFIGS / f"attnet_{name}.yaml"),
            "--data",
            str(tmp_path / "photos"),
            "--num_workers=0",
        ]
        options += ["--validation", str(tmp_path / "photos"), "--batch_size=4", "--image_size=32", "--max_steps=1"]
        train_attnet.main([*options, "--mixed_precision=no", "--log_with=none", "--output_dir", str(tmp_path / name)])
        assert timm.create_model(f"local-dir:{tmp_path / name / 'model'}", pretrained=True).num_classes == 2


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model", "timm:convnext_atto", "--model_args", "{depths: [2, 2, 5, 1], dims: [32, 64, 128, 192]}"),
        ("--model", "timm:inception_next_tiny", "--model_args", "{depths: [2, 2, 5, 1], dims: [32, 64, 128, 192]}"),
        (
            *("--model", "timm:pvt_v2_b0", "--model_args"),
            "{depths: [1, 1, 2, 1], embed_dims: [32, 64, 112, 160], num_heads: [1, 2, 4, 5]}",
        ),
    ],
    ids=["attnet", "convnext", "inception_next", "pvt"],
)
def test_models_of_the_comparison_have_the_same_size(options, tmp_path):
    """They are the commands in the head of the recipe."""
    file = CONFIGS / "attnet_cifar10.yaml"
    assert all(word in file.read_text() for word in options)
    config = train_attnet.parse_arguments(["--config", str(file), "--data", str(tmp_path), *options])
    with torch.device("meta"):
        model = build_classifier(config, 3, 10)
    assert abs(sum(parameter.numel() for parameter in model.parameters()) / 1.22e6 - 1) < 0.02
