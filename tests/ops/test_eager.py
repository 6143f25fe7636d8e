"""Which tensors count as eager: plain ones, outside of compilers."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sit_atconv.ops.eager import is_eager, may_cache


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("x", [torch.ones(2), nn.Parameter(torch.ones(2)), torch.ones(2, device="meta")])
def test_plain_tensors_are_eager(x):
    assert is_eager(x)


def test_subclasses_and_fake_tensors_are_not():
    assert not is_eager(torch.ones(2).as_subclass(Subclass))
    with FakeTensorMode() as mode:
        assert not is_eager(mode.from_tensor(torch.ones(2)))


def test_traced_tensors_are_not():
    compiled = torch.compile(lambda x: x + 1 if is_eager(x) else x - 1, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == -1

    class Module(nn.Module):
        def forward(self, x):
            return x + 1 if is_eager(x) else x - 1

    assert torch.export.export(Module(), (torch.zeros(1),)).module()(torch.zeros(1)).item() == -1


def test_nothing_is_cached_inside_a_transform():
    """A tensor made there is a wrapper, which ends with the transform."""
    seen = []
    torch.func.jvp(lambda x: seen.append(may_cache(x)) or x, (torch.ones(1),), (torch.ones(1),))
    torch.vmap(lambda x: seen.append(may_cache(x)) or x)(torch.ones(1))
    assert seen == [False, False] and may_cache(torch.ones(1))
