"""What a command answers to a mistake, and what a training run leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], object], *arguments: object) -> str:
    """Run a command whose options hold a mistake; return the one line in which it says so."""
    capsys.readouterr()  # what earlier commands printed
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.splitlines()[-1]


def metrics(folder: Path) -> list[dict]:
    """The logged values of a run, a dictionary for each line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def gradient_norms(folder: Path) -> list[float]:
    """The gradient norm of every logged step of a run."""
    return [line["grad_norm"] for line in metrics(folder)]


def weights(pipeline: Path) -> dict[str, torch.Tensor]:
    """The weights of the transformer in a pipeline folder."""
    return load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
