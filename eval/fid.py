"""Fréchet distance (FID, arXiv 1706.08500) between samples and reference images: the lower, the more alike.

    python eval/fid.py runs/photos-atconv/pipeline --reference PHOTOS --image_size 64 --num_samples 10000
    python eval/fid.py runs/digits-atconv/pipeline --reference digits --extractor pixels
    python eval/fid.py FOLDER_OF_IMAGES --reference PHOTOS --output fid.json

Features are Gaussian in this distance: means and covariances are compared. The default features are clean-fid's: its
resizing (arXiv 2104.11222) and the InceptionV3 of the original TensorFlow code.

B images of H × W pixels and C channels, F features each; images are uint8 (H, W, C).
"""

import difflib
import functools
import hashlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import make_resizer
from jsonargparse import ArgumentParser
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from sit_atconv.data import open_dataset, read_image
from sit_atconv.evaluation import (
    balanced_labels,
    check_new_file,
    check_pixel_dimensions,
    check_sampling,
    describe_pipeline,
    flatten_pixels,
    generate,
    image_shape,
    is_pipeline_folder,
    load_pipeline,
    pick_device,
    versions,
    write_report,
)
from sit_atconv.validation import check_count

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name that clean-fid opens
INCEPTION_SIZE = (299, 299)
EXIF_ORIENTATION = 0x0112


class FeatureStatistics:
    """Mean and covariance of features that arrive in parts, in float64.

    The scatter matrix is summed about the running mean (Chan et al., 1979), so that features far from zero lose no
    digits, as they would in a plain sum of outer products.

    Attributes:
        n: number of feature vectors.
        mean: (F,).
        scatter: (F, F), sum of (x − mean)(x − mean)ᵀ.
    """

    def __init__(self):
        self.n = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    def update(self, features: np.ndarray) -> None:
        """Add features (B, F).

        Raises:
            ValueError: for features of another shape, or that are not finite.
        """
        # float64: the FID's covariance loses digits in float32
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2:
            raise ValueError(f"features have shape {features.shape}, but must be (images, features)")
        if not (finite := np.isfinite(features).all(axis=1)).all():
            i = self.n + int(np.argmin(finite))
            raise ValueError(f"the features of image {i} are not finite; check that image and the extractor's weights")
        if not len(features):
            return
        part = FeatureStatistics()
        part.n = len(features)
        part.mean = features.mean(axis=0)
        centred = features - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add everything that `other` has seen.

        Raises:
            ValueError: where the numbers of features differ.
        """
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean, self.scatter = other.n, other.mean.copy(), other.scatter.copy()
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"{len(self.mean)} and {len(other.mean)} features per image cannot be merged")
        n = self.n + other.n
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.n / n)
        self.scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.n * other.n / n)
        self.n = n

    @property
    def covariance(self) -> np.ndarray:
        """(F, F), divided by n − 1 as np.cov does.

        Raises:
            ValueError: for fewer than two images.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        return self.scatter / (self.n - 1)


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), the squared Wasserstein-2 distance of two Gaussians.

    Σ₁Σ₂ has the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½, whose roots are summed: no general matrix root is taken,
    and singular covariances need no offset.

    Args:
        mean_1, mean_2: (F,).
        covariance_1, covariance_2: (F, F), symmetric and positive semi-definite.

    Raises:
        ValueError: for numbers that are not finite, or shapes that do not fit.
    """
    F = len(mean_1)
    for name, value, shape in (
        ("mean_1", mean_1, (F,)),
        ("mean_2", mean_2, (F,)),
        ("covariance_1", covariance_1, (F, F)),
        ("covariance_2", covariance_2, (F, F)),
    ):
        if np.shape(value) != shape:
            raise ValueError(f"{name} has shape {np.shape(value)}, but {shape} is needed")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    eigenvalues, vectors = np.linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T  # Σ₁^½; rounding may take a zero below 0
    product = root @ covariance_2 @ root
    trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = mean_1 - mean_2
    distance = difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2 * trace_of_root
    return max(float(distance), 0.0)  # of equal Gaussians, rounding leaves either sign


@dataclass
class Extractor:
    """What turns images into features.

    Attributes:
        name: as on the command line.
        resize: what is done to an image's size, in words.
        prepare: (H, W, C) uint8 -> a tensor whose shape is the same for all images.
        embed: those of B images, stacked -> (B, F).
        weights: their source and SHA-256, of the TorchScript file (inception) or of the tensors (timm), so that a
            download and a copy of it read the same.
    """

    name: str
    resize: str
    prepare: Callable[[np.ndarray], torch.Tensor]
    embed: Callable[[torch.Tensor], torch.Tensor]
    weights: dict[str, str] | None = None


def check_extractor(name: str, weights: str | None) -> None:
    """Raise ValueError for an unknown extractor, or weights that cannot be meant or do not exist."""
    kind, _, model = name.partition(":")
    if name not in ("inception", "pixels") and (kind != "timm" or not model):
        raise ValueError(
            f"extractor={name!r} is not one of: inception, pixels, timm:NAME with the name of a timm model"
        )
    if kind == "timm":
        check_timm_model(name, model)
    if weights is None:
        return
    if name == "pixels":
        raise ValueError(f"weights={weights!r}: raw pixels have no weights; leave --weights out")
    if not Path(weights).is_file():
        raise ValueError(f"weights={weights!r} is no file; give the extractor's weights, or leave --weights out")
    if name == "inception" and Path(weights).name != INCEPTION_FILE:
        raise ValueError(f"weights={weights!r} must be named {INCEPTION_FILE}, the file from {inception_url}")


def check_timm_model(name: str, model_name: str) -> None:
    """Raise ValueError where timm has no such model, or the model no such pretrained tag."""
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        similar = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists all"
        raise ValueError(f"extractor={name!r}: timm has no model {architecture!r}; {hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"extractor={name!r}: {architecture} has no tag {tag!r}; it has: {', '.join(tags) or 'none'}")


def build_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """Load an extractor: "inception", "pixels" or "timm:NAME".

    Raises:
        ValueError: for an unknown name, or weights that cannot be fetched, read or loaded without remainder.
    """
    check_extractor(name, weights)
    if name == "pixels":
        return Extractor(name, "none", torch.tensor, lambda x: torch.from_numpy(flatten_pixels(x.numpy())))
    return build_inception(weights, device) if name == "inception" else build_timm(name, weights, device)


def build_inception(weights: str | None, device: torch.device) -> Extractor:
    """clean-fid's InceptionV3: 2048 features; its weights are fetched once, into PyTorch's cache."""
    file = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(inception_url, str(file))
        except OSError as error:
            raise ValueError(
                f"{INCEPTION_FILE} cannot be fetched: {error}; get it from {inception_url} and name it with --weights, "
                "or choose another --extractor"
            ) from error
    try:
        model = InceptionV3W(str(file.parent), download=False, resize_inside=False).to(device).eval()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"weights={str(file)!r} is not the TorchScript file from {inception_url}") from error
    prepare = functools.partial(resize_clean, size=INCEPTION_SIZE)
    source = {"source": str(file), "sha256": file_sha256(file)}
    return Extractor("inception", describe_resize(INCEPTION_SIZE), prepare, lambda x: model(x.to(device)), source)


def build_timm(name: str, weights: str | None, device: torch.device) -> Extractor:
    """A timm model without its classifier: its pooled features, of the whole image at the model's own input size."""
    model_name = name.removeprefix("timm:")
    if weights is None:
        if not timm.is_model_pretrained(model_name):
            raise ValueError(f"extractor={name!r}: timm offers no weights for it; give a file with --weights")
        try:
            model = timm.create_model(model_name, pretrained=True)
        except OSError as error:
            hub_id = timm.get_pretrained_cfg(model_name).hf_hub_id
            raise ValueError(
                f"the weights of {model_name} cannot be fetched: {str(error).splitlines()[0]} Get model.safetensors "
                f"from https://huggingface.co/{hub_id} and name it with --weights"
            ) from error
        source = "timm, pretrained"
    else:
        model = load_timm(model_name, weights)
        source = weights
    sha256 = tensors_sha256(model.state_dict())
    model.reset_classifier(0)
    model = model.to(device).eval()
    config = timm.data.resolve_model_data_config(model)
    _, height, width = config["input_size"]
    mean, std = (torch.tensor(config[key], device=device).view(3, 1, 1) for key in ("mean", "std"))

    def embed(x: torch.Tensor) -> torch.Tensor:
        return model((x.to(device) / 255 - mean) / std)

    prepare = functools.partial(resize_clean, size=(height, width))
    return Extractor(name, describe_resize((height, width)), prepare, embed, {"source": str(source), "sha256": sha256})


def load_timm(model_name: str, weights: str) -> torch.nn.Module:
    """Create a timm model with the weights of a file: all of the model's, and nothing else.

    Raises:
        ValueError: for a file that cannot be read, is no state dict, or does not fit.
    """
    try:
        if Path(weights).suffix == ".safetensors":
            state_dict = load_file(weights)
        else:
            state_dict = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights={weights!r} cannot be read as safetensors or as a state dict: {reason}") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"weights={weights!r} is no state dict: it must map names to tensors, nothing else")
    # The classifier is not used, but its size must be the file's for a strict load; a file may also come without one.
    heads = timm.get_pretrained_cfg(model_name).classifier or ()
    heads = [heads] if isinstance(heads, str) else heads
    sizes = [len(state_dict[f"{head}.weight"]) for head in heads if f"{head}.weight" in state_dict]
    model = timm.create_model(model_name, pretrained=False, num_classes=sizes[0] if sizes else 0)
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        faults = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ValueError(f"weights={weights!r} do not fit {model_name}: {faults[:500]}") from error
    return model


@functools.lru_cache(maxsize=4)
def _clean_resizer(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    height, width = size
    return make_resizer("PIL", False, "bicubic", (width, height))


def resize_clean(image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """clean-fid's resize (PIL's bicubic filter, not rounded) to (height, width): (3, height, width) in [0, 255].

    Grey images are repeated to three channels.
    """
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    return torch.from_numpy(_clean_resizer(size)(image)).permute(2, 0, 1)


def describe_resize(size: tuple[int, int]) -> str:
    """The words for `resize_clean` in a report."""
    return f"clean-fid's: PIL bicubic in float32, to {size[0]}×{size[1]}"


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, as sha256sum prints it."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def tensors_sha256(state_dict: dict[str, torch.Tensor]) -> str:
    """A SHA-256 of names, types, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FolderImages:
    """All images under a folder, sub-folders included, in the order of their paths.

    Args:
        folder: to search.
        image_size: crop each image to its centre square and resize it to this side; None leaves it as it is.
        uniform: make sure that all images have the same shape, by a look at each file's header. Grey images then keep
            their one channel, where all are grey.

    Attributes:
        shape: (H, W, C) where `uniform`.

    Raises:
        ValueError: for a folder that is missing or without images; where `uniform`, naming two files of different size.
    """

    def __init__(self, folder: str | Path, image_size: int | None = None, uniform: bool = False):
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{str(folder)!r} is no folder; name a folder of images, or digits")
        self.files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
        if not self.files:
            raise ValueError(f"{str(folder)!r} holds no images ({', '.join(IMG_EXTENSIONS)})")
        self.image_size = image_size
        self.channels = 3
        if uniform:
            self.shape = self._common_shape()
            self.channels = self.shape[2]

    def _common_shape(self) -> tuple[int, int, int]:
        sizes = {}
        channels = 1
        for file in tqdm(self.files, desc="checking image sizes", leave=False):
            try:
                with Image.open(file) as opened:
                    width, height = opened.size
                    if opened.getexif().get(EXIF_ORIENTATION, 1) >= 5:  # lies on its side
                        width, height = height, width
                    channels = 1 if channels == 1 and opened.mode in ("1", "L") else 3
            except Exception as error:
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
            if self.image_size is not None:
                height = width = self.image_size
            sizes.setdefault((height, width), file)
            if len(sizes) > 1:
                (a, file_a), (b, file_b) = sizes.items()
                raise ValueError(
                    f"images differ in size: {file_a} is {a[1]}×{a[0]}, {file_b} is {b[1]}×{b[0]} (width × height); "
                    "give --image_size, or an --extractor that resizes: inception or timm:NAME"
                )
        return (*next(iter(sizes)), channels)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """One image, (H, W, C) uint8."""
        return read_image(self.files[index], self.image_size)[..., : self.channels]


def open_images(field: str, source: str, image_size: int | None, uniform: bool):
    """Open "digits" or a folder: something with a length and `image(index)`, and with a `shape` where `uniform`.

    Raises:
        ValueError: as `FolderImages`, naming the field as well.
    """
    if source != "digits":
        try:
            return FolderImages(source, image_size, uniform)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
    digits = open_dataset(source, image_size)
    digits.shape = (digits.image_size, digits.image_size, digits.channels)
    return digits


def read_batches(images, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[list[np.ndarray]]:
    """The images in lists of `batch_size`."""
    for start in range(0, len(images), batch_size):
        yield list(pool.map(images.image, range(start, min(start + batch_size, len(images)))))


@torch.no_grad()
def feature_statistics(
    batches: Iterable[Sequence[np.ndarray]], total: int, extractor: Extractor, pool: ThreadPoolExecutor, words: str
) -> FeatureStatistics:
    """Mean and covariance of the features of images (H, W, C) uint8, which come in batches."""
    statistics = FeatureStatistics()
    with tqdm(total=total, desc=words, unit="image", dynamic_ncols=True) as progress:
        for batch in batches:
            prepared = torch.stack(list(pool.map(extractor.prepare, batch)))
            statistics.update(extractor.embed(prepared).double().cpu().numpy())
            progress.update(len(batch))
    return statistics


def compute_fid(
    samples: str,
    reference: str,
    image_size: int | None = None,
    extractor: str = "inception",
    weights: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 64,
    num_workers: int = 4,
    seed: int = 0,
    guidance_scale: float = 1.0,
    num_inference_steps: int = 50,
    device: str = "auto",
) -> dict:
    """Compute the Fréchet distance between samples and reference images.

    Args:
        samples: a pipeline folder, which is sampled with balanced classes, or images: a folder, searched with its
            sub-folders, or "digits".
        reference: real images: "digits" or a folder, searched with its sub-folders.
        image_size: crop the images of folders to their centre square and resize it to this side; as they are where
            none is given.
        extractor: inception (as clean-fid's FID), timm:NAME (any model of timm), or pixels (raw, for tiny images).
        weights: a file with the extractor's weights, in place of fetching them: the TorchScript file
            inception-2015-12-05.pt, or safetensors or a state dict for timm.
        num_samples: images to draw from a pipeline; as many as there are reference images where none is given.
        batch_size: images per forward pass, of pipeline and extractor.
        num_workers: threads that read and resize images.
        seed: of the pipeline's noise; image i depends on (seed, i) alone.
        guidance_scale: of classifier-free guidance; 1 is none.
        num_inference_steps: solver steps.
        device: of pipeline and extractor, such as cpu or cuda; auto takes the GPU where there is one.

    Returns:
        The report: "fid" and everything that it depends on. "biased" says that one side has fewer images than there
        are features, so that its covariance is singular and the distance too large to be compared with others.

    Raises:
        ValueError: naming what cannot be used, before any long work; or an image that cannot be read.
    """
    if image_size is not None:
        check_count("image_size", image_size)
    check_count("batch_size", batch_size)
    check_count("num_workers", num_workers)
    check_extractor(extractor, weights)
    picked_device = pick_device(device)
    raw = extractor == "pixels"

    pipeline = None
    reference_images = open_images("reference", reference, image_size, uniform=raw)
    if is_pipeline_folder(samples):
        pipeline = load_pipeline(samples, picked_device)
        check_sampling(pipeline, seed, batch_size, guidance_scale, num_inference_steps)
        sample_shape = image_shape(pipeline)
        if image_size not in (None, sample_shape[0]):
            raise ValueError(f"image_size={image_size}: the images of {samples} are {sample_shape[0]} pixels wide")
        num_samples = len(reference_images) if num_samples is None else num_samples
        check_count("num_samples", num_samples)
    else:
        if num_samples is not None:
            raise ValueError(f"num_samples={num_samples}: {samples!r} is no pipeline folder; all its images are taken")
        sample_images = open_images("samples", samples, image_size, uniform=raw)
        num_samples = len(sample_images)
        sample_shape = sample_images.shape if raw else None
    for field, source, count in (("samples", samples, num_samples), ("reference", reference, len(reference_images))):
        if count < 2:
            raise ValueError(f"{field}={source!r}: a covariance needs at least 2 images, not {count}")
    if raw:
        check_pixel_dimensions(sample_shape)
        if sample_shape != reference_images.shape:
            shapes = ["×".join(map(str, shape)) for shape in (sample_shape, reference_images.shape)]
            raise ValueError(
                f"samples are {shapes[0]} (height × width × channels), reference images {shapes[1]}; give --image_size "
                "for images of another size, or an --extractor that takes all: inception or timm:NAME"
            )
    model = build_extractor(extractor, weights, picked_device)

    with ThreadPoolExecutor(num_workers) as pool:
        batches = read_batches(reference_images, batch_size, pool)
        real = feature_statistics(batches, len(reference_images), model, pool, "reference")
        if pipeline is None:
            batches = read_batches(sample_images, batch_size, pool)
        else:
            labels = balanced_labels(num_samples, pipeline.transformer.config.num_classes)
            batches = generate(pipeline, labels, seed, batch_size, guidance_scale, num_inference_steps)
        drawn = feature_statistics(batches, num_samples, model, pool, "samples")

    report = {
        "fid": frechet_distance(drawn.mean, drawn.covariance, real.mean, real.covariance),
        "biased": min(drawn.n, real.n) < len(real.mean),
        "samples": samples,
        "num_samples": drawn.n,
        "reference": reference,
        "num_reference": real.n,
        "image_size": image_size,
        "extractor": model.name,
        "weights": model.weights,
        "resize": model.resize,
        "num_features": len(real.mean),
    }
    if pipeline is not None:
        report |= {"seed": seed, "guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
        report |= describe_pipeline(pipeline)
    return report | {"device": str(picked_device), "versions": {**versions(), "timm": timm.__version__}}


def summary(report: dict) -> str:
    """The report in one line."""
    line = (
        f"FID ({report['extractor']}) {report['fid']:.4g}: {report['num_samples']} samples of {report['samples']} "
        f"against {report['reference']} ({report['num_reference']})"
    )
    if report["biased"]:
        line += f"; biased: there are fewer images than features ({report['num_features']})"
    return line


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(prog="fid.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("samples", type=str, help="a pipeline folder, a folder of images, or digits")
    parser.add_function_arguments(compute_fid, skip={"samples"})
    parser.add_argument("--output", type=str | None, help="a new JSON file for the report")
    options = parser.parse_args(arguments).as_dict()
    output = options.pop("output")
    try:
        check_new_file("output", output)
        report = compute_fid(**options)
    except ValueError as error:
        parser.error(str(error))
    report["command"] = shlex.join(["python", "eval/fid.py", *arguments])
    print(summary(report))
    if output is not None:
        write_report(output, report)


if __name__ == "__main__":
    main()
