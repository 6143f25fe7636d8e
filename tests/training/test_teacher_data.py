"""Samples of a trained model as data: the same whenever and in however many goes they are drawn."""

import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from sit_atconv.data import DigitsDataset
from sit_atconv.training import teacher_data
from sit_atconv.training.build import build_pipeline, build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.finish import save_pipeline
from sit_atconv.training.teacher_data import SampledWhenRead, TeacherDataset

SOURCE = "teacher:13?steps=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline folder of digits whose weights are all random."""
    config = TrainConfig(preset="SiT-Nano/2", model={"num_layers": 1, "num_attention_heads": 1})
    transformer = build_transformer(config, DigitsDataset(), None)
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    folder = tmp_path_factory.mktemp("teacher") / "pipeline"
    save_pipeline(build_pipeline(config, transformer, None, DigitsDataset().classes), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(teacher_data, "SHARD_SIZE", 5)
    monkeypatch.setattr(teacher_data, "BATCH_SIZE", 3)
    AcceleratorState._reset_state(reset_partial_state=True)
    return tmp_path / "cache" / "sit_atconv" / "teacher"


def drawn(folder, source=SOURCE, kind=TeacherDataset):
    dataset = kind(source, folder)
    dataset.draw(Accelerator(cpu=True))
    return dataset


def items(dataset):
    return torch.stack([dataset.training_tensors(i, False)["x"] for i in range(len(dataset))])


def test_each_sample_depends_on_its_index_alone(folder, cache):
    dataset = drawn(folder)
    assert dataset.classes == DigitsDataset().classes and dataset.labels.tolist() == [*range(10), 0, 1, 2]
    assert (dataset.image_size, dataset.channels, len(list(dataset.cache.glob("shard-*")))) == (8, 1, 3)
    torch.testing.assert_close(items(dataset)[7], dataset.samples(range(7, 8))[0])
    lazy = SampledWhenRead(SOURCE, folder)
    torch.testing.assert_close(lazy.training_tensors(7, True)["x"], items(dataset)[7].flip(-1))
    longer = drawn(folder, "teacher:14?steps=2")
    torch.testing.assert_close(items(longer)[:13], items(dataset))
    assert torch.equal(items(pickle.loads(pickle.dumps(dataset))), items(dataset))


def test_a_drawing_that_was_interrupted_goes_on(folder, monkeypatch):
    dataset = drawn(folder)
    before, fingerprint = items(dataset), dataset.fingerprint()
    kept = (dataset.cache / "shard-00000.safetensors").stat().st_mtime_ns
    for name in ("shard-00001.safetensors", "shards.json"):
        (dataset.cache / name).unlink()
    again = drawn(folder)
    assert torch.equal(items(again), before) and again.fingerprint() == fingerprint
    assert (dataset.cache / "shard-00000.safetensors").stat().st_mtime_ns == kept
    monkeypatch.setattr(TeacherDataset, "samples", lambda *_: pytest.fail("drawn twice"))
    assert torch.equal(items(drawn(folder)), before)


def test_other_samples_have_another_place(folder):
    sources = (SOURCE, "teacher:13?steps=3", "teacher:13?steps=2&seed=1", "teacher:13?steps=2&guidance_scale=2")
    datasets = [drawn(folder, source) for source in sources]
    assert len({dataset.cache for dataset in datasets}) == len({dataset.fingerprint() for dataset in datasets}) == 4
    for other in datasets[1:]:
        assert not torch.equal(items(other), items(datasets[0]))


def test_damage_is_named(folder):
    dataset = drawn(folder)
    dataset.verify()
    shard = dataset.cache / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert load_file(shard)  # which does not notice
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing or not as it was written; remove"):
        dataset.verify()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("teacher:all", "data='teacher:all'"),
        ("teacher:0", "its number of samples"),
        ("teacher:9?step=2", "unknown options: step; there are: steps, guidance_scale, seed"),
        ("teacher:9?steps=0", "steps"),
        ("teacher:9?guidance_scale=big", "guidance_scale='big' must be a number"),
    ],
)
def test_sources_that_cannot_be_drawn(source, message, folder):
    with pytest.raises(ValueError, match=message):
        TeacherDataset(source, folder)


def test_another_size_or_no_teacher(folder):
    with pytest.raises(ValueError, match=r"image_size=16: .* is drawn at 8 pixels"):
        TeacherDataset(SOURCE, folder, 16)
    with pytest.raises(ValueError, match="is drawn by a trained model; give --teacher or --init_from"):
        TrainConfig(data=SOURCE)
    assert TrainConfig(data=SOURCE, teacher=folder).output_dir == "runs/teacher-13-atconv"
    with pytest.raises(ValueError, match="holds what a transformer draws, no images"):
        TeacherDataset(SOURCE, folder).check_pixels("repa needs images, but")
