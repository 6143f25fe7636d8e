"""Draw many images from a pipeline, for evaluation, over any number of processes.

    accelerate launch eval/sample.py runs/digits-atconv/pipeline --output runs/digits-atconv/samples --num_samples 1797
    accelerate launch --num_processes 8 eval/sample.py PIPELINE --output FOLDER --num_samples 50000 --npz FOLDER.npz

Image i, 000123.png for i = 123, depends on its label and on (seed, i) alone. The folder also gets labels.csv and
samples.json, which says how the images were made. Started again, the same command draws what is missing, into identical
files: batches are the same ones, whatever is missing and however many processes share them.
"""

import csv
import io
import json
import os
import shlex
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from jsonargparse import ArgumentParser
from PIL import Image
from tqdm import tqdm

from sit_atconv import SiTPipeline
from sit_atconv.evaluation import (
    SamplingOptions,
    check_new_file,
    counting_rows,
    describe_pipeline,
    draw_images,
    folder_sha256,
    image_shape,
    load_pipeline,
    split_options,
    versions,
    write_json,
)
from sit_atconv.image_sets import STAMP_FILE
from sit_atconv.validation import check_count

# What may change when a folder is filled in; everything else would make other images.
MAY_CHANGE = {
    "pipeline",
    "num_samples",
    "complete",
    "command",
    "seconds_per_image",
    "network_calls_per_image",
    "num_processes",
}


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
    differing = [key for key in stamp if key not in MAY_CHANGE and found.get(key) != stamp[key]]
    if differing:
        facts = "; ".join(f"{key}: {found.get(key)!r} there, {stamp[key]!r} now" for key in differing)
        raise ValueError(f"output={str(folder)!r} holds other images ({facts}); name a new folder")
    if found["num_samples"] > stamp["num_samples"]:
        raise ValueError(
            f"num_samples={stamp['num_samples']}: {str(folder)!r} is one of {found['num_samples']} images already; "
            "name a new folder for fewer"
        )
    costs = {key: found[key] for key in ("seconds_per_image", "network_calls_per_image") if key in found}
    return {**stamp, **costs}


def missing_batches(folder: Path, num_samples: int, batch_size: int) -> list[int]:
    """First indices of the batches of which an image is not there."""
    there = {file.name for file in folder.glob("*.png")}
    return [
        start
        for start in range(0, num_samples, batch_size)
        if any(image_file(folder, i).name not in there for i in range(start, min(start + batch_size, num_samples)))
    ]


def save_image(image: np.ndarray, file: Path) -> None:
    """Write a PNG so that it is whole as soon as it is there."""
    staged = file.with_name(f".{file.name}.part")
    with staged.open("wb") as opened:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(opened, "png")
    staged.replace(file)


def sample_into_folder(
    pipeline: SiTPipeline, folder: Path, options: SamplingOptions, state: PartialState
) -> list[dict]:
    """Draw this process's share of the missing images; returns what each process did: rows, images and seconds."""
    starts = missing_batches(folder, options.num_samples, options.batch_size)
    state.wait_for_everyone()  # before anyone adds to what others list
    own = starts[state.process_index :: state.num_processes]
    work = {"rows": 0, "images": 0, "seconds": 0.0}
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
            began = time.perf_counter()
            # Always a whole batch, past the last image if need be: sums in batches of another size may round otherwise.
            images = draw_images(pipeline, range(start, start + options.batch_size), options)
            work["seconds"] += time.perf_counter() - began
            work["images"] += len(images)
            for i, image in enumerate(images, start):
                file = image_file(folder, i)
                if i < options.num_samples and not file.exists():
                    save_image(image, file)
            progress.update(min(options.batch_size * state.num_processes, options.num_samples - progress.n))
        work["rows"] = rows[0]
    return gather_object([work])


def write_labels(folder: Path, options: SamplingOptions, num_classes: int) -> None:
    """labels.csv: file and class id of each image."""
    staged = folder / ".labels.csv.part"
    with staged.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", "label"])
        labels = options.label_ids(range(options.num_samples), num_classes)
        writer.writerows((image_file(folder, i).name, label) for i, label in enumerate(labels))
    staged.replace(folder / "labels.csv")


def write_npz(folder: Path, file: Path, labels: list[int], shape: tuple[int, int, int]) -> None:
    """Pack the images as the ADM evaluations take them: arr_0 (N, H, W, 3) uint8, arr_1 labels.

    One image is in memory at a time.
    """
    height, width, _ = shape
    staged = file.with_name(f".{file.name}.part")
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(staged, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as opened:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), height, width, 3)}
            np.lib.format.write_array_header_1_0(opened, header)
            for i in tqdm(range(len(labels)), desc=file.name, unit="image", leave=False):
                with Image.open(image_file(folder, i)) as image:
                    opened.write(np.asarray(image.convert("RGB")).tobytes())
        array = io.BytesIO()
        np.save(array, np.array(labels, dtype=np.int64))
        archive.writestr("arr_1.npy", array.getvalue())
    staged.replace(file)


def sample(pipeline_folder: str, output: str, options: SamplingOptions, npz: str | None, command: str) -> dict | None:
    """Fill a folder with samples, together with the other processes.

    Returns:
        The stamp, on the main process.

    Raises:
        ValueError: naming what cannot be used, before any long work.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator does
    if options.num_samples is None:
        raise ValueError("num_samples must be given, such as --num_samples 50000")
    check_count("num_samples", options.num_samples)
    if npz is not None and Path(npz).suffix != ".npz":
        raise ValueError(f"npz={npz!r} must end in .npz")
    check_new_file("npz", npz)
    folder = Path(output)
    pipeline = load_pipeline(pipeline_folder, state.device)
    options.apply(pipeline)
    stamp = {
        "pipeline": pipeline_folder,
        "model_sha256": folder_sha256(pipeline_folder),
        **describe_pipeline(pipeline),
        **options.stamp(),
        "device": str(state.device.type),
        "versions": versions(),
        "command": command,
        "num_processes": state.num_processes,
        "complete": False,
    }
    stamp = prepare_folder(folder, stamp)
    state.wait_for_everyone()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        write_json(folder / STAMP_FILE, stamp)
        write_labels(folder, options, pipeline.transformer.config.num_classes)
    state.wait_for_everyone()
    work = sample_into_folder(pipeline, folder, options, state)
    if not state.is_main_process:
        return None
    drawn = sum(part["images"] for part in work)
    if drawn:
        stamp["seconds_per_image"] = sum(part["seconds"] for part in work) / drawn
        stamp["network_calls_per_image"] = sum(part["rows"] for part in work) / drawn
    stamp["complete"] = True
    write_json(folder / STAMP_FILE, stamp)
    if npz is not None:
        labels = options.label_ids(range(options.num_samples), pipeline.transformer.config.num_classes)
        write_npz(folder, Path(npz), labels, image_shape(pipeline))
        write_json(Path(npz).with_suffix(".json"), stamp)
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
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process finds the same mistake; one says so
            print(f"sample.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    if stamp is not None:
        print(
            f"{stamp['num_samples']} images in {options['output']}: {stamp['network_calls_per_image']:.4g} "
            f"network calls and {stamp['seconds_per_image']:.3g} s of one process each"
        )


if __name__ == "__main__":
    main()
