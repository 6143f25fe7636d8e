"""What a result may depend on beside its settings: package versions, git commit and device."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

from .. import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "accelerate",
    "timm",
    "safetensors",
    "numpy",
    "scipy",
    "Pillow",
    "clean-fid",
    "torchdiffeq",
)


def pick_device(device: str = "auto") -> torch.device:
    """Return the device of that name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: if PyTorch does not know the name, or the device is not available.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type)
    try:
        picked = torch.device(device)
        torch.empty(1, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}; try cpu or auto") from error
    return picked


def has_amx(device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies matrices of bfloat16 in units of their own, which x86 calls AMX."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(_finds_instructions("amx_tile"))


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether the device is an x86 CPU without instructions for bfloat16, where it is slower than float32.

    False if PyTorch does not tell.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("avx_ne_convert", False):  # those of CPUs without AVX-512
        return False
    return all(_finds_instructions(name) is False for name in ("amx_tile", "avx512_bf16"))


def _finds_instructions(name: str) -> bool | None:
    """Whether PyTorch finds these instructions in the CPU; None if this version has no such (private) function."""
    question = getattr(torch.cpu, f"_is_{name}_supported", None)
    return None if question is None else question()


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated on a GPU or, on Linux, the host; None if that is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    lines = meminfo.read_text().splitlines()
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit = free_in_container(Path("/sys/fs/cgroup"))
    return min([*available, *([] if limit is None else [limit])], default=None)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory of a GPU, or of the host, was not enough."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def free_in_container(group: Path) -> int | None:
    """Return how many bytes the limit of a control group (v2) leaves; None without one.

    What the system keeps of files that were read counts as used there, but gives way when memory is needed.
    """
    files = [group / name for name in ("memory.max", "memory.current", "memory.stat")]
    if not all(file.is_file() for file in files):
        return None
    most, used, statistics = (file.read_text().strip() for file in files)
    if not most.isdigit():  # "max"
        return None
    entries = dict(line.split(maxsplit=1) for line in statistics.splitlines())
    return int(most) - int(used) + int(entries.get("inactive_file", 0))


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def package_versions() -> dict[str, str | None]:
    """Return the versions of Python, this package and those it depends on; None for one that is not installed."""
    build = {"torch": torch.__version__}  # with the build: CPU, CUDA 12.8…
    return {"python": platform.python_version(), "sit_atconv": __version__} | installed_versions(PACKAGES) | build


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of packages; None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the git checkout that tracks `file`, ending in -dirty if tracked files differ from it.

    The result is None without git, outside of a checkout, and for a package installed into another project's checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails unless git tracks the file
        return git("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_environment(device: torch.device) -> dict:
    """Return what a report records of its origin: versions, git commit, device and whether TF32 replaces float32."""
    on_gpu = device.type == "cuda"
    return {
        "versions": package_versions(),
        "git_commit": git_commit(),
        "device": device.type,
        "device_name": device_name(device),
        "tf32": {
            "matmul": on_gpu and torch.backends.cuda.matmul.allow_tf32,
            "cudnn": on_gpu and torch.backends.cudnn.allow_tf32,
        },
    }
