"""The order in which training sees its images."""

import numpy as np
import pytest

from sit_atconv.data import (
    TrainingOrder,
)


def batches(num_samples=10, batch_size=4, seed=0, start=0, stop=10, rank=0, world=1):
    return list(TrainingOrder(num_samples, batch_size, seed, start, stop, rank, world))


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (7, 7), (3, 8), (12, 1)])
def test_every_epoch_covers_every_index_once(num_samples, batch_size):
    steps = 6 * num_samples
    seen = [item for batch in batches(num_samples, batch_size, stop=steps) for item in batch]
    assert [position for _, position in seen] == list(range(steps * batch_size))
    indices = [index for index, _ in seen]
    epochs = [indices[i : i + num_samples] for i in range(0, len(indices) - num_samples + 1, num_samples)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(num_samples))
    assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 6, 7])
def test_processes_share_what_one_process_sees(batch_size, world):
    """Also where the parts are not equal, the union is the same, step by step."""
    expected = batches(batch_size=batch_size)
    parts = [batches(batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(expected):
        assert [item for part in parts for item in part[step]] == batch


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_resumed_run_sees_the_rest(start):
    assert batches(start=start) == batches()[start:]
    assert len(TrainingOrder(10, 4, 0, start, 10, 0, 1)) == 10 - start


def test_order_is_a_function_of_the_seed():
    assert batches(seed=1) == batches(seed=1)
    assert batches(seed=1) != batches(seed=2)


def test_epoch_order_of_the_data_set_is_followed():
    backwards = TrainingOrder(6, 4, 0, 0, 3, 0, 1, epoch_order=lambda generator: np.arange(6)[::-1])
    assert [index for batch in backwards for index, _ in batch] == [5, 4, 3, 2, 1, 0] * 2
