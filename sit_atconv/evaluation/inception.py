"""The InceptionV3 of the original TensorFlow code, as clean-fid runs it and as the ADM evaluations run it.

B images of H × W pixels; images are uint8 (H, W, C).
"""

import functools
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from torch import Tensor

from ..utils.hashing import file_sha256
from .extractor import INCEPTION_FILE, Extractor
from .resize import INCEPTION_SIZE, describe_resize, on_device, resize_clean, resize_tensorflow

# sFID reads the first channels of the first branch of mixed_6, (17, 17) pixels each (arXiv 2103.03841, ADM).
SPATIAL_LAYERS = [
    "conv",
    "conv_1",
    "conv_2",
    "pool0",
    "conv_3",
    "conv_4",
    "pool1",
    "mixed",
    "mixed_1",
    "mixed_2",
    "mixed_3",
    "mixed_4",
    "mixed_5",
]
SPATIAL_CHANNELS = 7


def build_inception(name: str, weights: str | None, device: torch.device, outputs: Collection[str]) -> Extractor:
    """Load "inception" or "inception-adm": 2048 features.

    Args:
        name: "inception" resizes as clean-fid does, "inception-adm" as TensorFlow 1 does.
        weights: the TorchScript file. If None, it is fetched once, into PyTorch's cache.
        device: where the network runs.
        outputs: what `embed` returns: "features", "spatial", "probabilities".

    Raises:
        ValueError: if the file cannot be fetched, or is another one.
    """
    file = Path(weights) if weights else fetch_inception()
    try:
        model = InceptionV3W(str(file.parent), download=False, resize_inside=False).to(device).eval()
        layers = model.base.layers
        spatial: list[Callable[[Tensor], Tensor]] = []
        if "spatial" in outputs:
            spatial = [*(getattr(layers, part) for part in SPATIAL_LAYERS), layers.mixed_6.conv]
        class_weights = model.base.output.weight if "probabilities" in outputs else None
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"weights={str(file)!r} is not the TorchScript file from {inception_url}") from error

    def embed(x: Tensor) -> dict[str, Tensor]:
        x = on_device(x, device)  # (B, 3, 299, 299) in [0, 255]
        result = {"features": model(x)}
        if spatial:
            y = (x - 128) / 128
            for layer in spatial:
                y = layer(y)
            # channels last, as in the published statistics
            result["spatial"] = y[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        if class_weights is not None:
            # without the bias of the classifier, as in the original code and in ADM's
            result["probabilities"] = (result["features"] @ class_weights.T).softmax(dim=1)
        return result

    source = {"source": str(file), "sha256": file_sha256(file)}
    if name == "inception-adm":
        return Extractor(name, "TensorFlow 1 bilinear, to 299×299", resize_tensorflow, embed, source)
    prepare = functools.partial(resize_clean, size=INCEPTION_SIZE)
    return Extractor(name, describe_resize(INCEPTION_SIZE), prepare, embed, source)


def fetch_inception() -> Path:
    """The TorchScript file in PyTorch's cache, downloaded if it is not there yet.

    Raises:
        ValueError: if it cannot be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(inception_url, str(file))
        except OSError as error:
            raise ValueError(
                f"{INCEPTION_FILE} cannot be fetched: {error}; get it from {inception_url} and name it with --weights, "
                "or choose another --extractor"
            ) from error
    return file
