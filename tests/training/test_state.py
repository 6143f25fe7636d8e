import copy
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.training.checkpoints import read_checkpoint, recover_checkpoint, save_checkpoint
from sit_atconv.training.ema import WeightAverages
from sit_atconv.training.sharding import whole
from sit_atconv.training.state import gather_average, gather_state, restore_state


class Run:
    """A model, its averages and AdamW, fed with gradients that are a function of the step."""

    def __init__(self, model: torch.nn.Module, mesh=None):
        self.model = model
        if mesh is not None:
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        self.averages = WeightAverages(model.parameters(), [0.9], [0.1])
        self.modules = {"model": model}

    def step(self, step: int, applied: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 3, 8, 8, generator=generator)
        loss = self.model(x, torch.full((4,), 0.5), torch.arange(4)).sample.square().mean()
        loss.backward()
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        assert norm.isfinite()
        self.optimizer.grad_scale, self.optimizer.found_inf = None, torch.tensor(1 - applied)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averages.update(self.model.parameters(), step, torch.tensor(applied))

    def tensors(self, main: bool = True):
        return gather_state(self.modules, self.averages, self.optimizer, main)

    def restore(self, path: Path) -> None:
        restore_state(read_checkpoint(path)[0], self.modules, self.averages, self.optimizer)


def assert_close(left, right, **tolerance) -> None:
    assert left.keys() == right.keys()
    for part in left:
        assert left[part].keys() == right[part].keys()
        for name, value in left[part].items():
            torch.testing.assert_close(value, right[part][name], msg=f"{part}: {name}", **tolerance)


def test_restored_run_is_bitwise_the_same(tmp_path, tiny_transformer):
    whole_run, first, second = Run(tiny_transformer()), Run(tiny_transformer()), Run(tiny_transformer(seed=1))
    for step in range(1, 5):
        whole_run.step(step)
    first.step(1)
    first.step(2)
    second.restore(save_checkpoint(tmp_path, 2, first.tensors(), {"step": 2}))
    second.step(3)
    second.step(4)
    assert_close(second.tensors(), whole_run.tensors(), rtol=0, atol=0)


def test_another_model_is_refused_before_anything_changes(tmp_path, tiny_transformer):
    small, large = Run(tiny_transformer()), Run(tiny_transformer(num_layers=3))
    small.step(1)
    path = save_checkpoint(tmp_path, 1, small.tensors(), {"step": 1})
    before = {part: {name: value.clone() for name, value in values.items()} for part, values in large.tensors().items()}
    with pytest.raises(ValueError, match=r"model\.safetensors of the checkpoint holds another model"):
        large.restore(path)
    assert_close(large.tensors(), before, rtol=0, atol=0)
    other = Run(tiny_transformer())
    other.averages = WeightAverages(other.model.parameters(), [0.5], [0.1])
    with pytest.raises(ValueError, match=r"ema-decay-0\.5, ema-decay-0\.9"):
        other.restore(path)


def _sample(model: torch.nn.Module) -> torch.Tensor:
    pipeline = SiTPipeline(model, InterpolantODEScheduler(), None, id2label={0: "a"})
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipeline([0, 1], num_inference_steps=2, generator=noise, output_type="pt").images


def _sharded(rank: int, port: int, folder: Path, model: torch.nn.Module) -> None:
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    plain = copy.deepcopy(model)
    run = Run(model, mesh)
    run.restore(folder / "step-00000002")  # of one process
    run.step(3)
    before = run.tensors()
    run.step(4, applied=0.0)
    after = run.tensors()
    assert_close(before, after, rtol=0, atol=0)  # a skipped step
    weights = gather_average(run.model, run.averages.first, main=True)
    with run.averages.in_place_of(run.model):
        sharded_images = _sample(run.model)
    whole_model = type(plain)(**plain.config)
    whole_model.load_state_dict(weights)
    torch.testing.assert_close(_sample(whole_model.eval()), sharded_images, rtol=1e-4, atol=1e-5)
    tensors = run.tensors(main=rank == 0)
    if rank == 0:
        save_checkpoint(folder, 3, tensors, {"step": 3})
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.slow
def test_sharded_by_fsdp2_on_two_processes_and_back(tmp_path, tiny_transformer):
    """One process, then two that share parameters, averages and moments between them, then one."""
    model, reference, last = tiny_transformer(), Run(tiny_transformer()), Run(tiny_transformer(seed=1))
    for step in (1, 2):
        reference.step(step)
    save_checkpoint(tmp_path, 2, reference.tensors(), {"step": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        multiprocessing.get_context("fork").Process(target=_sharded, args=(rank, port, tmp_path, model))
        for rank in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0]
    path = recover_checkpoint(tmp_path)
    assert path == tmp_path / "step-00000003"
    last.restore(path)
    reference.step(3)
    assert_close(last.tensors(), reference.tensors(), rtol=1e-5, atol=1e-6)
    last.step(5)
    reference.step(5)
    assert_close(last.tensors(), reference.tensors(), rtol=1e-4, atol=1e-5)
