"""A folder of samples that several processes fill, and that an interrupted run continues.

Image i, 000123.png for i = 123, depends on its label and on (seed, i) only. Batches have the same members whatever is
missing and however many processes share them, so that images which are drawn again become identical files.

B images of H × W pixels and C channels; images are uint8 (H, W, C).
"""

import csv
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm

from ..pipelines.pipeline_sit import SiTPipeline
from ..training.processes import check_launch, on_main_process
from ..utils.checks import check_count
from ..utils.environment import describe_environment, pick_device
from ..utils.files import folder_lock, remove_staged, staged, write_json
from .npz_batch import is_packed, write_npz
from .output_files import LABELS_FILE, SAMPLES_RECORD, SamplingError, check_batch_file, check_sample_folder
from .records import describe_pipeline, folder_sha256, image_determining, read_record, recorded_dtype
from .sample_files import image_file, missing_batches, read_images, remove_broken, save_image
from .sampling import counting_rows, draw_images, image_shape, load_pipeline
from .sampling_costs import collect_costs, cost_per_image, note_cost
from .sampling_dtype import cast_pipeline, resolve_dtype
from .sampling_options import SamplingOptions


def sample_to_folder(
    pipeline_folder: str,
    output: str,
    options: SamplingOptions,
    npz: str | None = None,
    command: str = "",
    device: str = "auto",
) -> dict | None:
    """Fill a folder with samples, together with the other processes of the launch.

    Args:
        pipeline_folder: folder of the pipeline to sample from.
        output: folder of the images: a new one, or one that the same command has begun to fill.
        options: how the images are drawn.
        npz: a file to pack the images in. If None, they are not packed.
        command: the command line, for the record.
        device: device of the pipeline, such as cpu; "auto" is the one that accelerate gives this process.

    Returns:
        The record of the samples on the main process, None on the others. It lacks the costs if they are not known for
        all images.

    Raises:
        ValueError: naming the option that cannot be used, before any long work.
        SamplingError: if an image is not finite, or a file cannot be written.
    """
    check_launch()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator does
    num_samples = options.num_samples
    if num_samples is None:
        raise ValueError("num_samples must be given, such as --num_samples 50000")
    check_count("num_samples", num_samples)
    folder = Path(output)
    check_sample_folder(folder)
    if npz is not None:
        check_batch_file(npz)
    placed = state.device if device == "auto" else pick_device(device)
    pipeline = options.configure(load_pipeline(pipeline_folder, placed))
    options = options.resolve(pipeline)
    options = on_main_process(  # the same on all machines
        state, lambda: resolve_dtype([pipeline], recorded_dtype(options, folder / SAMPLES_RECORD))
    )
    cast_pipeline(pipeline, options.dtype)
    record = sampling_record(pipeline_folder, pipeline, options, placed, command, state.num_processes)
    packed = npz is not None and is_packed(npz, record)
    record = continue_record(folder, record)
    state.wait_for_everyone()
    with ExitStack() as lock:
        if state.is_main_process:  # which holds the lock for all processes of this launch
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(folder_lock(folder, "output"))
            record = continue_record(folder, record)  # another command may have filled the folder since it was checked
            begin_folder(folder, record, options, pipeline)
        state.wait_for_everyone()
        try:
            draw_missing(pipeline, folder, options, num_samples, state)
        except (ValueError, OSError) as error:
            raise SamplingError(f"process {state.process_index} of {state.num_processes}: {error}") from error
        if not state.is_main_process:
            return None
        record |= cost_per_image(collect_costs(folder), num_samples, options.batch_size) | {"complete": True}
        write_json(folder / SAMPLES_RECORD, record)
        if npz is not None and not packed:
            pack_folder(folder, Path(npz), record, options, pipeline)
    return record


def sampling_record(
    pipeline_folder: str,
    pipeline: SiTPipeline,
    options: SamplingOptions,
    device: torch.device,
    command: str,
    num_processes: int,
) -> dict:
    """The record of samples that are about to be drawn."""
    return {
        "pipeline": pipeline_folder,
        "model_sha256": folder_sha256(pipeline_folder),
        **describe_pipeline(pipeline),
        **options.record(),
        **describe_environment(device),
        "command": command,
        "num_processes": num_processes,
        "complete": False,
    }


def continue_record(folder: Path, record: dict) -> dict:
    """Check that the folder is new, or holds images that were made in the same way.

    Returns:
        The record to continue with: the given one, with the costs that an earlier run has recorded.

    Raises:
        ValueError: if the folder holds anything else.
    """
    file = folder / SAMPLES_RECORD
    if not file.is_file():
        check_sample_folder(folder)
        return record
    try:
        found = read_record(folder)
    except ValueError as error:
        raise ValueError(f"output={str(folder)!r}: {error}; name a new folder, or remove this one") from error
    if found is None:
        raise ValueError(f"output={str(folder)!r}: {file} is not a record of samples; name a new folder")
    there, now = image_determining(found), image_determining(record)
    differing = [key for key in now if there.get(key) != now[key]]
    if differing:
        facts = "; ".join(f"{key}: {there.get(key)!r} there, {now[key]!r} now" for key in differing)
        remedy = (
            f"give --dtype {there['dtype']}, or name a new folder" if differing == ["dtype"] else "name a new folder"
        )
        raise ValueError(f"output={str(folder)!r} holds other images ({facts}); {remedy}")
    if found["num_samples"] > record["num_samples"]:
        raise ValueError(
            f"num_samples={record['num_samples']}: {str(folder)!r} is one of {found['num_samples']} images already; "
            "name a new folder for fewer"
        )
    costs = {key: found[key] for key in ("seconds_per_image", "network_calls_per_image") if key in found}
    return {**record, **costs}


def begin_folder(folder: Path, record: dict, options: SamplingOptions, pipeline: SiTPipeline) -> None:
    """Write the record and the labels of the folder, and remove what a killed process has left in it."""
    remove_staged(folder)
    write_json(folder / SAMPLES_RECORD, record)
    labels = options.label_ids(range(record["num_samples"]), pipeline.transformer.config.num_classes)
    write_labels(folder, labels, pipeline.config.id2label or {})


def write_labels(folder: Path, labels: list[int], id2label: dict[str, str]) -> None:
    """Write labels.csv: the file, the class id and the name of the class of each image."""
    with staged(folder / LABELS_FILE) as part, part.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", "label", "name"])
        rows = ((image_file(folder, i).name, label, id2label.get(str(label), "")) for i, label in enumerate(labels))
        writer.writerows(rows)


def draw_missing(
    pipeline: SiTPipeline, folder: Path, options: SamplingOptions, num_samples: int, state: PartialState
) -> None:
    """Draw this process's share of the images that are missing or broken."""
    remove_broken(folder, range(state.process_index, num_samples, state.num_processes))
    state.wait_for_everyone()
    starts = missing_batches(folder, num_samples, options.batch_size)
    state.wait_for_everyone()  # before any process adds to what the others list
    own = starts[state.process_index :: state.num_processes]
    missing = min(len(starts) * options.batch_size, num_samples)
    with (
        counting_rows(pipeline.transformer) as rows,
        tqdm(
            initial=num_samples - missing,
            total=num_samples,
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
            # The cost is noted first, so that no image is ever there without it.
            note_cost(folder, state.process_index, start, rows[0] - before, time.perf_counter() - began)
            for i, image in enumerate(images, start):
                file = image_file(folder, i)
                if i < num_samples and not file.exists():
                    save_image(image, file)
            progress.update(min(options.batch_size * state.num_processes, num_samples - progress.n))
    state.wait_for_everyone()


def pack_folder(folder: Path, npz: Path, record: dict, options: SamplingOptions, pipeline: SiTPipeline) -> None:
    """Pack the images of a folder in a .npz batch, with its record beside it.

    Raises:
        SamplingError: if an image cannot be read, or the batch cannot be written.
    """
    num_samples = record["num_samples"]
    labels = options.label_ids(range(num_samples), pipeline.transformer.config.num_classes)
    try:
        write_json(npz.with_suffix(".json"), record)  # first, so that no batch is ever there without its record
        write_npz(npz, read_images(folder, num_samples), labels, image_shape(pipeline))
    except (ValueError, OSError) as error:
        raise SamplingError(f"npz={str(npz)!r} cannot be written: {error}") from error
