"""Draw many images from a pipeline, for evaluation, over any number of processes.

    accelerate launch eval/sample.py runs/digits-atconv/pipeline --output runs/digits-atconv/samples --num_samples 1797
    accelerate launch --num_processes 8 eval/sample.py PIPELINE --output FOLDER --num_samples 50000 --npz FOLDER.npz

Image i, 000123.png for i = 123, depends on its label and on (seed, i) alone. The folder also gets labels.csv and
samples.json, which says how the images were made, and costs.jsonl, what each batch took. Started again, the same
command draws what is missing or broken, into identical files: batches are the same ones, whatever is missing and
however many processes share them.
"""

import csv
import io
import json
import os
import shlex
import sys
import time
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from jsonargparse import ArgumentParser
from PIL import Image
from tqdm import tqdm

from sit_atconv import SiTPipeline
from sit_atconv.evaluation.image_sets import COSTS_FILE, STAMP_FILE, read_stamp
from sit_atconv.evaluation.sampling import (
    SamplingOptions,
    counting_rows,
    describe_pipeline,
    draw_images,
    folder_sha256,
    image_shape,
    load_pipeline,
    split_options,
)
from sit_atconv.utils.checks import check_count
from sit_atconv.utils.environment import describe_environment, pick_device
from sit_atconv.utils.files import STAGING, check_new_file, staged, write_json

# What may change when a folder is filled in; everything else would make other images.
MAY_CHANGE = {
    "pipeline",
    "num_samples",
    "complete",
    "command",
    "git_commit",
    "seconds_per_image",
    "network_calls_per_image",
    "num_processes",
}

# Of the versions, those that pixels and PNG files may depend on.
MUST_STAY = ("torch", "diffusers", "sit_atconv", "torchdiffeq", "Pillow")

PNG_END = b"IEND\xaeB`\x82"  # with its checksum, which Pillow does not verify


class SamplingError(ValueError):
    """What went wrong in one process while all of them were at work."""


def image_file(folder: Path, index: int) -> Path:
    """Where image `index` is kept."""
    return folder / f"{index:06d}.png"


def prepare_folder(folder: Path, stamp: dict) -> dict:
    """Make sure that the folder is free, or holds images made in the same way; return the stamp to go on with.

    Raises:
        ValueError: where it holds anything else.
    """
    file = folder / STAMP_FILE
    if not file.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"output={str(folder)!r} holds other files; name a new folder, or one of this command's")
        return stamp
    found = json.loads(file.read_text(encoding="utf-8"))
    there, now = what_matters(found), what_matters(stamp)
    differing = [key for key in now if there.get(key) != now[key]]
    if differing:
        facts = "; ".join(f"{key}: {there.get(key)!r} there, {now[key]!r} now" for key in differing)
        raise ValueError(f"output={str(folder)!r} holds other images ({facts}); name a new folder")
    if found["num_samples"] > stamp["num_samples"]:
        raise ValueError(
            f"num_samples={stamp['num_samples']}: {str(folder)!r} is one of {found['num_samples']} images already; "
            "name a new folder for fewer"
        )
    costs = {key: found[key] for key in ("seconds_per_image", "network_calls_per_image") if key in found}
    return {**stamp, **costs}


def what_matters(stamp: dict) -> dict:
    """The part of a stamp that images depend on."""
    stamp = {key: value for key, value in stamp.items() if key not in MAY_CHANGE}
    return stamp | {"versions": {name: stamp.get("versions", {}).get(name) for name in MUST_STAY}}


def check_npz(npz: str, stamp: dict) -> bool:
    """Whether the .npz file is there already, made of the same images: its companion, NAME.json, says so.

    Raises:
        ValueError: for a file that cannot be written, or would replace another one.
    """
    file = Path(npz)
    if file.suffix != ".npz":
        raise ValueError(f"npz={npz!r} must end in .npz")
    companion = file.with_suffix(".json")
    found = read_stamp(file)
    if (
        found is not None
        and found["num_samples"] == stamp["num_samples"]
        and what_matters(found) == what_matters(stamp)
    ):
        return file.exists()
    check_new_file("npz", file)
    check_new_file("npz", companion)
    return False


def missing_batches(folder: Path, num_samples: int, batch_size: int) -> list[int]:
    """First indices of the batches of which an image is not there."""
    there = {file.name for file in folder.glob("*.png")}
    return [
        start
        for start in range(0, num_samples, batch_size)
        if any(image_file(folder, i).name not in there for i in range(start, min(start + batch_size, num_samples)))
    ]


def is_whole(file: Path) -> bool:
    """Whether a PNG is all there, with the right checksums; its pixels are not decoded."""
    content = file.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
    except Exception:  # Pillow's plugins raise all sorts
        return False
    return content.endswith(PNG_END)


def remove_broken(folder: Path, indices: Iterable[int]) -> None:
    """Remove those of the images that a crash or a full disk has cut short: they are missing, too."""
    files = [file for file in (image_file(folder, i) for i in indices) if file.exists()]
    with ThreadPoolExecutor() as pool:
        for file, whole in zip(files, pool.map(is_whole, files), strict=True):
            if not whole:
                file.unlink()


def save_image(image: np.ndarray, file: Path) -> None:
    """Write a PNG so that it is whole as soon as it is there."""
    with staged(file, durable=False) as part, part.open("wb") as opened:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(opened, "png")


def note_cost(folder: Path, process: int, start: int, network_calls: int, seconds: float) -> None:
    """Add a batch to what this process has drawn: calls are counted once for each image that passes through."""
    cost = {"first_image": start, "network_calls": network_calls, "seconds": seconds}
    with (folder / f".{process}.{COSTS_FILE}").open("a", encoding="utf-8") as opened:
        opened.write(f"\n{json.dumps(cost)}")  # the line break first: a line cut short does not spoil the next


def collect_costs(folder: Path) -> dict[int, dict]:
    """What each batch has cost, by its first image; the notes of the processes become one file."""
    file = folder / COSTS_FILE
    notes = list(folder.glob(f".*.{COSTS_FILE}"))
    costs = {}
    for source in [file, *notes] if file.exists() else notes:
        for line in source.read_bytes().splitlines():
            try:
                cost = json.loads(line)
            except ValueError:  # empty, or cut short by a crash
                continue
            costs[cost["first_image"]] = cost
    if notes:
        with staged(file) as part:
            part.write_text("".join(f"{json.dumps(costs[start])}\n" for start in sorted(costs)), encoding="utf-8")
        for note in notes:
            note.unlink()
    return costs


def cost_per_image(costs: dict[int, dict], options: SamplingOptions) -> dict:
    """Averages over all batches, for the stamp; none where the cost of one is not known."""
    starts = range(0, options.num_samples, options.batch_size)
    if not costs.keys() >= set(starts):
        return {}
    drawn = len(starts) * options.batch_size
    return {
        f"{name}_per_image": sum(costs[start][name] for start in starts) / drawn
        for name in ("seconds", "network_calls")
    }


def sample_into_folder(pipeline: SiTPipeline, folder: Path, options: SamplingOptions, state: PartialState) -> None:
    """Draw this process's share of the missing images."""
    remove_broken(folder, range(state.process_index, options.num_samples, state.num_processes))
    state.wait_for_everyone()
    starts = missing_batches(folder, options.num_samples, options.batch_size)
    state.wait_for_everyone()  # before anyone adds to what others list
    own = starts[state.process_index :: state.num_processes]
    missing = min(len(starts) * options.batch_size, options.num_samples)
    with (
        counting_rows(pipeline.transformer) as rows,
        tqdm(
            initial=options.num_samples - missing,
            total=options.num_samples,
            desc="samples",
            unit="image",
            disable=not state.is_main_process,
            dynamic_ncols=True,
        ) as progress,
    ):
        for start in own:
            began, before = time.perf_counter(), rows[0]
            # Always a whole batch, past the last image if need be: sums in batches of another size may round otherwise.
            images = draw_images(pipeline, range(start, start + options.batch_size), options)
            # First: no image is ever there without its cost.
            note_cost(folder, state.process_index, start, rows[0] - before, time.perf_counter() - began)
            for i, image in enumerate(images, start):
                file = image_file(folder, i)
                if i < options.num_samples and not file.exists():
                    save_image(image, file)
            progress.update(min(options.batch_size * state.num_processes, options.num_samples - progress.n))
    state.wait_for_everyone()


def write_labels(folder: Path, options: SamplingOptions, num_classes: int) -> None:
    """labels.csv: file and class id of each image."""
    with staged(folder / "labels.csv") as part, part.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", "label"])
        labels = options.label_ids(range(options.num_samples), num_classes)
        writer.writerows((image_file(folder, i).name, label) for i, label in enumerate(labels))


def write_npz(folder: Path, file: Path, labels: list[int], shape: tuple[int, int, int]) -> None:
    """Pack the images as the ADM evaluations take them: arr_0 (N, H, W, 3) uint8, arr_1 labels.

    One image is in memory at a time.
    """
    height, width, _ = shape
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged(file) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as opened:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), height, width, 3)}
            np.lib.format.write_array_header_1_0(opened, header)
            for i in tqdm(range(len(labels)), desc=file.name, unit="image", leave=False):
                with Image.open(image_file(folder, i)) as image:
                    opened.write(np.asarray(image.convert("RGB")).tobytes())
        array = io.BytesIO()
        np.save(array, np.array(labels, dtype=np.int64))
        archive.writestr("arr_1.npy", array.getvalue())


def sample(
    pipeline_folder: str,
    output: str,
    options: SamplingOptions,
    npz: str | None,
    command: str,
    device: str = "auto",
) -> dict | None:
    """Fill a folder with samples, together with the other processes.

    Args:
        pipeline_folder: to sample from.
        output: the folder for the images.
        options: how they are drawn.
        npz: a file to pack them in.
        command: for the stamp.
        device: such as cpu; auto takes the one that accelerate gives this process.

    Returns:
        The stamp, on the main process. It lacks the costs where neither it nor the notes of earlier runs have them.

    Raises:
        ValueError: naming what cannot be used, before any long work.
        SamplingError: for an image that is not finite, or a file that cannot be written.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator does
    if options.num_samples is None:
        raise ValueError("num_samples must be given, such as --num_samples 50000")
    check_count("num_samples", options.num_samples)
    folder = Path(output)
    placed = state.device if device == "auto" else pick_device(device)
    pipeline = load_pipeline(pipeline_folder, placed)
    options.apply(pipeline)
    stamp = {
        "pipeline": pipeline_folder,
        "model_sha256": folder_sha256(pipeline_folder),
        **describe_pipeline(pipeline),
        **options.stamp(),
        **describe_environment(placed),
        "command": command,
        "num_processes": state.num_processes,
        "complete": False,
    }
    packed = npz is not None and check_npz(npz, stamp)
    stamp = prepare_folder(folder, stamp)
    state.wait_for_everyone()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{STAGING}*"):
            leftover.unlink()
        write_json(folder / STAMP_FILE, stamp)
        write_labels(folder, options, pipeline.transformer.config.num_classes)
    state.wait_for_everyone()
    try:
        sample_into_folder(pipeline, folder, options, state)
    except (ValueError, OSError) as error:
        raise SamplingError(f"process {state.process_index} of {state.num_processes}: {error}") from error
    if not state.is_main_process:
        return None
    stamp |= cost_per_image(collect_costs(folder), options) | {"complete": True}
    write_json(folder / STAMP_FILE, stamp)
    if npz is not None and not packed:
        labels = options.label_ids(range(options.num_samples), pipeline.transformer.config.num_classes)
        try:
            write_json(Path(npz).with_suffix(".json"), stamp)  # first: no batch is ever there without its stamp
            write_npz(folder, Path(npz), labels, image_shape(pipeline))
        except (ValueError, OSError) as error:
            raise SamplingError(f"npz={npz!r} cannot be written: {error}") from error
    return stamp


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(prog="sample.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pipeline", type=str, help="a pipeline folder")
    parser.add_argument("--output", type=str, required=True, help="folder for the images, a new one or one to fill in")
    parser.add_argument("--npz", type=str | None, help="a new .npz file for all images (arr_0) and labels (arr_1)")
    parser.add_class_arguments(SamplingOptions)
    options = parser.parse_args(arguments).as_dict()
    command = shlex.join(["python", "eval/sample.py", *arguments])
    (sampling,) = split_options(options, SamplingOptions)
    try:
        stamp = sample(options["pipeline"], options["output"], sampling, options["npz"], command)
    except ValueError as error:
        # Every process finds the same mistake in the options, and one says so; what fails later is its own.
        if isinstance(error, SamplingError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"sample.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("sample.py: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    if stamp is not None:
        costs = "their cost is not known"
        if "seconds_per_image" in stamp:
            costs = (
                f"{stamp['network_calls_per_image']:.4g} network calls and {stamp['seconds_per_image']:.3g} s of one "
                "process each"
            )
        print(f"{stamp['num_samples']} images in {options['output']}: {costs}")


if __name__ == "__main__":
    main()
