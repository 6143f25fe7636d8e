import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_atconv import SiTTransformer2DModel
from sit_atconv.data import DigitsDataset
from sit_atconv.models.macs import count_macs
from sit_atconv.training import run_folder
from sit_atconv.training.build import build_pipeline, build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.optimizer import learning_rate
from sit_atconv.training.plan import activation_bytes, describe_plan
from sit_atconv.training.run_folder import save_pipeline


class Letters(DigitsDataset):
    """The digits under other names, and one class less."""

    def __init__(self):
        super().__init__()
        self.classes = list("abcdefghi")
        self.labels = np.minimum(self.labels, 8)


def test_learning_rate_is_a_function_of_the_step():
    config = TrainConfig(learning_rate=0.1, lr_warmup_steps=9, max_steps=100)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[50] == pytest.approx(0.05)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    constant = TrainConfig(learning_rate=0.1, lr_warmup_steps=0, lr_schedule="constant")
    assert {learning_rate(constant, step) for step in (0, 7, 10**6)} == {0.1}


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
        ({"preset": "SiT-S/2"}, "decides what the model looks like"),
        ({"mixer": "attention"}, "decides what the model looks like"),
        ({"model": {"num_layers": 3}}, "decides what the model looks like"),
        ({"path": "gvp"}, "path=gvp: .* was trained with linear"),
    ],
)
def test_fine_tuning_refuses_what_contradicts_the_folder(trained, options, expected):
    with pytest.raises(ValueError, match=expected):
        TrainConfig(init_from=trained[0], **options)


def test_fine_tuning_needs_a_pipeline_folder(tmp_path):
    with pytest.raises(ValueError, match="is no pipeline folder"):
        TrainConfig(init_from=str(tmp_path))


@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_activation_bytes_are_those_of_a_real_forward_pass(tiny_transformer, mixer):
    model = tiny_transformer(mixer=mixer, sample_size=16, num_attention_heads=2).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dropout = torch.tensor([False])
        output = model(torch.randn(1, 3, 16, 16), torch.rand(1), torch.tensor([0]), class_dropout=dropout).sample
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert output.requires_grad
    assert activation_bytes(model) == pytest.approx(measured, rel=0.1)


def test_plan_states_the_numbers():
    config = TrainConfig(batch_size=64, gradient_accumulation_steps=2, max_steps=1000)
    transformer = build_transformer(config, DigitsDataset(), None)
    text = describe_plan(config, DigitsDataset(), transformer, None, processes=4, sharded=False, mixed_precision="bf16")
    assert "1,797 images of 10 classes" in text
    assert f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.2f} M parameters" in text
    assert f"{count_macs(transformer, 8, 8) / 1e9:.2g} GMACs" in text
    assert "64 = 4 processes × 2 accumulation steps × 8 images, bf16" in text
    assert f"{64_000 / 1797:.1f} epochs" in text


def test_new_pipeline_takes_the_place_of_the_old_one_at_once(tmp_path, monkeypatch):
    """A kill at any of its steps finds a whole folder, or none."""
    config = TrainConfig(model={"num_layers": 1})
    pipeline = build_pipeline(config, build_transformer(config, DigitsDataset(), None), None, DigitsDataset().classes)
    folder, removed, synced = tmp_path / "pipeline", [], []
    save_pipeline(pipeline, folder)
    whole = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    remove = shutil.rmtree

    def removing(path, **options):
        removed.append(path.name)
        assert not path.exists() or sorted(file.relative_to(folder) for file in folder.rglob("*")) == whole
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", removing)
    monkeypatch.setattr(run_folder, "sync", synced.append)
    save_pipeline(pipeline, folder)
    assert "pipeline" not in removed
    assert {path.name for path in synced} >= {path.name for path in whole}
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_preset_and_options_are_unchanged_without_init_from():
    config = TrainConfig()
    assert (config.preset, config.mixer, config.output_dir) == ("SiT-ATConv-Nano/2", "atconv", "runs/digits-atconv")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2", sample_size=8, in_channels=1, num_classes=10)
    built = build_transformer(config, DigitsDataset(), None).state_dict()
    assert all(torch.equal(built[name], value) for name, value in expected.state_dict().items())


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_missing_tracker_is_named_with_its_installation(tracker, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install {tracker}"):
        TrainConfig(log_with=tracker)
