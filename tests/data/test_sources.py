"""From one string to a data set."""

import pickle

import pytest
import torch
from pictures import COLOURS, png
from torch.utils.data import DataLoader

from sit_atconv.data import (
    TrainingView,
    open_dataset,
    source_name,
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"),
        ("some/photos/", "photos"),
        ("hf:uoft-cs/cifar10?split=test", "cifar10"),
        ("data/train-*.parquet", "train"),
        ("https://host/imagenet-{000..145}.tar?label=cls", "imagenet"),
        ("latents:cats", "cats"),
        ("ffhq.lmdb", "ffhq"),
        ("data/caf\udce9s", "caf_s"),
    ],
)
def test_names_for_run_folders(source, name):
    assert source_name(source) == name


def test_sources_are_read_by_workers(database, shards):
    """Also where the source was opened, and read from, before the workers were started."""
    for place in (shards, database({str(i).encode(): png(colour) for i, colour in enumerate(COLOURS)})):
        dataset = open_dataset(place, 4)
        view = TrainingView(dataset, 0, False, (3, 4, 4))
        expected = [dataset.tensor(i) for i in range(6)]
        batches = [[(i, i), (i + 1, i + 1)] for i in (0, 2, 4)]
        loader = DataLoader(view, batch_sampler=batches, num_workers=2, collate_fn=view.collate)
        assert torch.equal(torch.cat([batch["x"] for batch in loader]), torch.stack(expected))
        copy = pickle.loads(pickle.dumps(dataset))  # as workers that are not forked get it
        assert torch.equal(copy.tensor(3), expected[3])
        assert torch.equal(open_dataset(place, 4).tensor(3), dataset.tensor(3))
