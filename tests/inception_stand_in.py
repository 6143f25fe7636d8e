"""A network with the structure of the Inception file that the metrics read features from, and other weights."""

import pytest
import torch
from torch import nn

from sit_atconv.evaluation.extractor import INCEPTION_FILE


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 1)

    def forward(self, x):
        return self.conv(x)[:, :8]


class Layers(nn.Module):
    """The parts of Inception that its features pass through, by the names in the TorchScript file."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 17, stride=17)  # 299 -> 17
        self.conv_1, self.conv_2, self.conv_3, self.conv_4 = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.pool0, self.pool1 = nn.Tanh(), nn.Tanh()
        self.mixed, self.mixed_1, self.mixed_2, self.mixed_3, self.mixed_4, self.mixed_5 = (
            nn.Conv2d(8, 8, 1) for _ in range(6)
        )
        self.mixed_6 = Block()
        self.tail = nn.Conv2d(8, 2048, 1)

    def forward(self, x):
        x = self.pool0(self.conv_2(self.conv_1(self.conv(x))))
        x = self.pool1(self.conv_4(self.conv_3(x)))
        x = self.mixed_5(self.mixed_4(self.mixed_3(self.mixed_2(self.mixed_1(self.mixed(x))))))
        return self.tail(self.mixed_6(x)).mean(dim=[2, 3])


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, x):
        return self.output(self.layers(x)).softmax(dim=1)


@pytest.fixture(scope="session")
def inception(tmp_path_factory):
    """A network with the structure of the Inception file that matters here, and that file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Inception().eval()
    file = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    torch.jit.script(model).save(file)
    return model, str(file)
