"""Fixtures of the tests of conversion."""

import multiprocessing
import resource
import signal

import pytest
import torch

from sit_atconv.cli import main


@pytest.fixture(scope="module")
def reference_state(parity_model):
    def load(name: str) -> dict[str, torch.Tensor]:
        _, tensors = parity_model(name)
        return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}

    return load


@pytest.fixture
def main_on_a_full_disk(capfd):
    """Function: what `sit-atconv` says on stderr if no file may become larger than 2 kB; it ends with code 2."""

    def run(*arguments) -> str:
        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            main([str(argument) for argument in arguments])

        child = multiprocessing.get_context("fork").Process(target=limited)
        child.start()
        child.join(60)
        assert child.exitcode == 2
        return capfd.readouterr().err

    return run
