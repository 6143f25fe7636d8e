"""Fixtures shared by the tests.

Numbers of the reference implementation are read from the directory in SIT_ATCONV_PARITY, by default `shared/parity`
beside the repository. Tests that need them are skipped where it does not exist.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before the libraries read them: no test reaches for a network, and none waits for a second core that other work holds.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
# Where diffusers copies the code of the folders that it loads: not into the cache of the user.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()

import torch

# Triton reads this when it is imported, which diffusers does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from accelerate.state import AcceleratorState
from hub_stand_in import hub, online  # noqa: F401
from inception_stand_in import inception  # noqa: F401
from latents_stand_in import latents, photos, small_vae  # noqa: F401
from safetensors.torch import load_file

from sit_atconv import Interpolant, InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.convert.weights import convert_state_dict
from sit_atconv.flow.interpolants import expand_like

# The first backward pass starts a thread for each GPU, after which no forked process can differentiate. Compilers
# pretend to have one, so that comes before them, in whatever order tests are run.
torch.ones((), requires_grad=True).backward()

# Images are the same on every CPU: where there is AMX, sampling may choose bfloat16.
torch.cpu._is_amx_tile_supported = lambda: False


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _empty_folder(tmp_path_factory):
    """Tests run in an empty folder: relative paths do not meet what somebody made in the repository, such as runs/."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    default = Path(__file__).parents[2] / "shared" / "parity"
    folder = Path(os.environ.get("SIT_ATCONV_PARITY", default))
    if not folder.is_dir():
        pytest.skip(f"no reference numbers in {folder}; set SIT_ATCONV_PARITY")
    return folder


@pytest.fixture(scope="session")
def parity_model(parity_dir):
    """Function: name of a reference model -> (our model with its weights, the file's tensors)."""
    index = json.loads((parity_dir / "index.json").read_text())

    def load(name: str):
        arguments = index[f"model_{name}"]
        tensors = load_file(parity_dir / f"model_{name}.safetensors")
        model = SiTTransformer2DModel(
            sample_size=arguments["input_size"],
            patch_size=arguments["patch_size"],
            in_channels=arguments["in_channels"],
            num_layers=arguments["depth"],
            num_attention_heads=arguments["num_heads"],
            attention_head_dim=arguments["hidden_size"] // arguments["num_heads"],
            num_classes=arguments["num_classes"],
            mixer="hybrid" if arguments["hybrid"] else arguments["token_mixer"],
        )
        state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        model.load_state_dict(convert_state_dict(state))
        return model.eval().requires_grad_(False), tensors

    return load


@pytest.fixture(scope="session")
def transport(parity_dir) -> dict[str, torch.Tensor]:
    """The reference's interpolant, loss and solver numbers."""
    return load_file(parity_dir / "transport.safetensors")


@pytest.fixture(scope="session")
def transport_model_fn(parity_model, transport):
    """The network of the transport numbers as (x, t) -> raw output."""
    model, _ = parity_model("atconv")
    return lambda x, t: model(x, t, transport["y"]).sample


@pytest.fixture(scope="session")
def assert_close():
    """Function: fail unless `actual` is within `tolerance` times the largest magnitude of `expected`."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
        assert actual.shape == expected.shape
        error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"relative error {error:.1e} exceeds {tolerance:.0e}"  # NaN fails, too

    return check


@pytest.fixture(scope="session")
def tiny_transformer():
    """Function: a small model in eval mode, a function of its arguments; what starts at zero is drawn at random."""

    def build(seed: int = 0, **overrides) -> SiTTransformer2DModel:
        arguments = dict(
            sample_size=8,
            patch_size=2,
            in_channels=3,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_classes=5,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SiTTransformer2DModel(**{**arguments, **overrides})
            for parameter in model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_transformer):
    """Function: a pixel-space pipeline around `tiny_transformer`, with five class names and a silent progress bar."""

    def build(scheduler=None, vae=None, **overrides) -> SiTPipeline:
        names = ["airplane", "goldfish, Carassius auratus", "cat", "deer", "dog"]
        pipe = SiTPipeline(
            tiny_transformer(**overrides),
            scheduler or InterpolantODEScheduler(),
            vae,
            id2label=dict(enumerate(names)),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture(scope="session")
def gaussian():
    """Function: the exact quantities at x_t for data N(mean, std²), where each is linear in x_t."""

    def moments(path: str, x_t: torch.Tensor, t: torch.Tensor, mean: float, std: float) -> dict[str, torch.Tensor]:
        interpolant = Interpolant(path)
        t = expand_like(t, x_t)
        alpha, sigma = interpolant.alpha(t), interpolant.sigma(t)
        variance = alpha**2 * std**2 + sigma**2
        residual = (x_t - alpha * mean) / variance
        noise = sigma * residual
        data = mean + alpha * std**2 * residual
        velocity = interpolant.d_alpha(t) * data + interpolant.d_sigma(t) * noise
        return {"velocity": velocity, "score": -residual, "noise": noise, "data": data}

    return moments


@pytest.fixture
def processes():
    """Function: run `function(rank)` in `count` forked CPU processes that know of each other, as under a launcher.

    Returns their exit codes. Forks spare the seconds that each new Python takes to import everything.
    """

    def run(count: int, function: Callable[[int], None]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def member(rank: int) -> None:
            os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
            os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
            AcceleratorState._reset_state(reset_partial_state=True)
            function(rank)
            os._exit(0)

        children = [multiprocessing.get_context("fork").Process(target=member, args=(rank,)) for rank in range(count)]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
            child.kill()
        return [child.exitcode for child in children]

    return run


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, which shells switch off for what they run in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal():
    """Under `nohup`, and in some services, SIGHUP is ignored from the start, in the tests and in what they start."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
