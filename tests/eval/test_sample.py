"""eval/sample.py: image i is a function of (seed, i); missing images are filled in; mistakes are refused."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fid
import numpy as np
import pytest
import sample
from accelerate import PartialState
from PIL import Image

from sit_atconv import SiTPipeline
from sit_atconv.evaluation import sample_folder
from sit_atconv.evaluation.image_sets import open_images
from sit_atconv.evaluation.records import read_record
from sit_atconv.evaluation.sampling import draw_images
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.utils.files import folder_lock

OPTIONS = ["--num_inference_steps", "2", "--batch_size", "8"]


@pytest.fixture(scope="module")
def pipeline_folder(tiny_pipeline, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".png", ".csv")}


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.glob(".*") if file.name != ".lock"]


def test_missing_images_are_filled_in_with_identical_files(pipeline_folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    sample.main([pipeline_folder, "--output", str(whole), "--num_samples", "20", *OPTIONS])
    sample.main([pipeline_folder, "--output", str(part), "--num_samples", "11", *OPTIONS])  # a batch cut short
    for name in ("000003.png", "000009.png"):
        (part / name).unlink()
    (part / ".staging-1-000009.png").write_bytes(b"half an ima")  # of a killed process
    kept = part / "000004.png"
    written = kept.stat().st_mtime_ns
    sample.main([pipeline_folder, "--output", str(part), "--num_samples", "20", *OPTIONS])
    assert len(files(whole)) == 21 and files(part) == files(whole)
    assert kept.stat().st_mtime_ns == written
    assert leftovers(part) == []


def test_what_an_interrupted_start_has_left_is_not_foreign(pipeline_folder, tmp_path, capsys):
    folder = tmp_path / "samples"
    folder.mkdir()
    for leftover in (".staging-1-samples.json", ".samples.json.part", ".lock"):
        (folder / leftover).touch()
    command = [pipeline_folder, "--output", str(folder), "--num_samples", "8", *OPTIONS]
    sample.main(command)
    assert len(files(folder)) == 9 and leftovers(folder) == []
    (folder / "samples.json").write_text('{"num_samples": 8')
    before = files(folder)
    with pytest.raises(SystemExit):
        sample.main(command)
    error = capsys.readouterr().err
    assert f"output={str(folder)!r}: " in error and "samples.json is damaged" in error and "name a new" in error
    assert files(folder) == before


@pytest.mark.slow
def test_two_commands_on_one_folder(pipeline_folder, tmp_path):
    """The second one is refused, and the first one is not disturbed."""
    folder = tmp_path / "samples"
    command = [pipeline_folder, "--output", str(folder), "--num_samples", "8", *OPTIONS]
    sample.main(command)
    (folder / "000003.png").unlink()
    (folder / ".staging-1-000003.png").touch()  # of the first one
    with folder_lock(folder):
        result = subprocess.run([sys.executable, sample.__file__, *command], capture_output=True, text=True)
    assert result.returncode == 2
    assert f"output={str(folder)!r}: another process is writing to it; wait for it" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "000003.png").exists() and leftovers(folder) == [".staging-1-000003.png"]
    sample.main(command)
    assert (folder / "000003.png").exists() and leftovers(folder) == []


def test_a_folder_that_was_filled_since_it_was_checked_is_kept(pipeline_folder, tmp_path, capsys, monkeypatch):
    sample.main([pipeline_folder, "--output", str(tmp_path / "other"), "--num_samples", "8", "--seed", "1", *OPTIONS])
    check = sample_folder.continue_record

    def check_before_another_command_ends(folder, record):
        checked = check(folder, record)
        if not folder.exists():
            shutil.copytree(tmp_path / "other", folder)
        return checked

    monkeypatch.setattr(sample_folder, "continue_record", check_before_another_command_ends)
    with pytest.raises(SystemExit):
        sample.main([pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS])
    assert "holds other images (seed: 1 there, 0 now)" in capsys.readouterr().err
    assert (tmp_path / "a" / "samples.json").read_bytes() == (tmp_path / "other" / "samples.json").read_bytes()


@pytest.mark.parametrize("name", ["begin_folder", "collect_costs"])
def test_a_folder_that_becomes_unwritable_ends_with_one_line(pipeline_folder, tmp_path, capsys, monkeypatch, name):
    def fail(*arguments):
        raise OSError(30, "Read-only file system", "samples.json")

    monkeypatch.setattr(sample_folder, name, fail)
    with pytest.raises(SystemExit) as stopped:
        sample.main([pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "sample.py: error: [Errno 30] Read-only file system: 'samples.json'"


def test_a_folder_that_may_not_be_written_to(pipeline_folder, tmp_path, capsys, monkeypatch):
    sample.main([pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS])
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(sample_folder, "load_pipeline", lambda *_: pytest.fail("too late"))
    for arguments in (["--output", str(tmp_path / "a")], [f"--output={tmp_path / 'new'}"]):
        with pytest.raises(SystemExit):
            sample.main([pipeline_folder, *arguments, "--num_samples", "8", *OPTIONS])
        assert "is not a folder that you may write to; name another" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 60, -4, -1])
def test_an_image_cut_short_is_drawn_again(pipeline_folder, tmp_path, kept):
    folder, npz = tmp_path / "samples", tmp_path / "batch.npz"
    command = [pipeline_folder, "--output", str(folder), "--num_samples", "20", *OPTIONS]
    sample.main(command)
    before = files(folder)
    (folder / "000012.png").write_bytes(before["000012.png"][:kept])
    sample.main([*command, "--npz", str(npz)])
    assert files(folder) == before and npz.exists()


@pytest.mark.slow
def test_costs_are_those_of_all_images_however_they_were_drawn(tiny_pipeline, tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    command = [str(tmp_path / "pipeline"), "--num_samples", "20", *OPTIONS, "--solver", "dopri5", "--output"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    sample.main([*command, str(whole)])
    lines = (whole / "costs.jsonl").read_text(encoding="utf-8").splitlines()
    calls = [json.loads(line)["network_calls"] / 8 for line in lines]
    assert len(calls) == 3 and len(set(calls)) > 1, "batches of one cost show nothing"
    whole_calls = read_record(whole)["network_calls_per_image"]
    assert whole_calls == sum(calls) / 3

    draw = sample_folder.draw_images

    def interrupted(pipeline, indices, options):
        if indices[0] == 8:
            raise KeyboardInterrupt
        return draw(pipeline, indices, options)

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "draw_images", interrupted)
        with pytest.raises(SystemExit):
            sample.main([*command, str(part)])
    with next(part.glob(".*.jsonl")).open("a", encoding="utf-8") as notes:
        notes.write('\n{"first_image": 8, "netw')  # of a crash
    sample.main([*command, str(part)])
    assert read_record(part)["network_calls_per_image"] == whole_calls
    for name in ("000002.png", "000019.png"):
        (part / name).unlink()
        sample.main([*command, str(part)])
        assert read_record(part)["network_calls_per_image"] == whole_calls
    assert files(part) == files(whole) and leftovers(part) == []


@pytest.mark.slow
def test_grey_images_score_alike_as_folder_and_as_npz(tiny_pipeline, tmp_path):
    tiny_pipeline(in_channels=1).save_pretrained(tmp_path / "pipeline")
    folder, npz = tmp_path / "samples", tmp_path / "batch.npz"
    sample.main(
        [str(tmp_path / "pipeline"), "--output", str(folder), "--num_samples", "24", *OPTIONS, "--npz", str(npz)]
    )
    reports = []
    for samples in (folder, npz):
        output = tmp_path / f"{samples.name}.report"
        fid.main([str(samples), "--reference=digits", "--extractor=pixels", "--device=cpu", "--output", str(output)])
        reports.append(json.loads(output.read_text(encoding="utf-8")))
    of_folder, of_npz = reports
    assert of_folder["fid"] == of_npz["fid"] and of_folder["samples_sha256"] == of_npz["samples_sha256"]

    images = np.load(npz)["arr_0"]
    assert open_images("samples", str(npz)).shape == (8, 8, 3)
    images[-1, 7, 7, 2] ^= 1  # one value of one image
    np.savez(tmp_path / "coloured.npz", arr_0=images)
    assert open_images("samples", str(tmp_path / "coloured.npz"), uniform=True).shape == (8, 8, 3)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(pipeline_folder, tmp_path, processes):
    sample.main([pipeline_folder, "--output", str(tmp_path / "one"), "--num_samples", "20", *OPTIONS])
    arguments = [pipeline_folder, "--output", str(tmp_path / "two"), "--num_samples", "20", *OPTIONS]
    assert processes(2, lambda rank: sample.main(arguments)) == [0, 0]
    assert read_record(tmp_path / "two")["num_processes"] == 2
    assert read_record(tmp_path / "two")["network_calls_per_image"] == 2 * 2
    assert leftovers(tmp_path / "two") == []
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_stamp_labels_and_npz(pipeline_folder, tmp_path, capsys):
    folder, npz = tmp_path / "samples", tmp_path / "batch.npz"
    arguments = [pipeline_folder, "--output", str(folder), "--num_samples", "12", "--labels", "random", *OPTIONS]
    sample.main([*arguments, "--npz", str(npz), "--guidance_scale", "2", "--solver", "heun", "--seed", "7"])
    stamp = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    facts = {"complete": True, "num_samples": 12, "labels": "random", "seed": 7, "guidance_scale": 2.0}
    assert {key: stamp[key] for key in facts} == facts
    assert stamp["scheduler"]["config"]["solver"] == "heun"
    assert stamp["network_calls_per_image"] == 2 * 2 * 2  # steps, calls of heun, both halves of guidance
    assert len(stamp["model_sha256"]) == 64 and "--seed 7" in stamp["command"]
    assert "8 network calls" in capsys.readouterr().out

    with (folder / "labels.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    labels = [int(row["label"]) for row in rows]
    assert [row["file"] for row in rows] == [f"{i:06d}.png" for i in range(12)]
    assert len(set(labels)) > 2 and max(labels) < 5
    names = SiTPipeline.from_pretrained(pipeline_folder).config.id2label or {}
    assert [row["name"] for row in rows] == [names.get(str(label), "") for label in labels]
    options = SamplingOptions(labels="random", seed=7)
    assert options.label_ids(range(12), 5) == labels and options.label_ids([5], 5) == labels[5:6]
    with np.load(npz) as arrays:
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (12, 8, 8, 3)
        assert arrays["arr_1"].tolist() == labels
        np.testing.assert_array_equal(arrays["arr_0"][5], np.asarray(Image.open(folder / "000005.png")))
    np.testing.assert_array_equal(open_images("samples", str(npz)).image(5), Image.open(folder / "000005.png"))
    assert read_record(npz)["model_sha256"] == stamp["model_sha256"]


def test_files_are_what_the_pipeline_draws(pipeline_folder, tmp_path):
    from sit_atconv.evaluation.sampling import load_pipeline
    from sit_atconv.utils.environment import pick_device

    sample.main([pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS])
    options = SamplingOptions(num_inference_steps=2)
    images = draw_images(load_pipeline(pipeline_folder, pick_device("cpu")), range(8), options)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / f"{i:06d}.png")), image)


def test_npz_is_made_once_and_never_without_its_stamp(pipeline_folder, tmp_path, capsys, monkeypatch):
    npz, folder = tmp_path / "batch.npz", tmp_path / "samples"
    command = [pipeline_folder, "--output", str(folder), "--num_samples", "8", *OPTIONS, "--npz", str(npz)]

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "write_npz", killed)
        with pytest.raises(SystemExit) as stopped:
            sample.main(command)
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith("sample.py: interrupted; the same command goes on\n")
    assert read_record(npz)["num_samples"] == 8 and not npz.exists()
    sample.main(command)
    written = npz.stat().st_mtime_ns
    sample.main(command)  # as after any interruption
    assert npz.stat().st_mtime_ns == written
    capsys.readouterr()
    for changes in (["--num_samples", "9"], ["--seed", "1", "--output", str(tmp_path / "other")]):
        with pytest.raises(SystemExit):
            sample.main([*command, *changes])
        assert "batch.npz' already exists" in capsys.readouterr().err
    (tmp_path / "notes.json").write_text('{"precious": true}')
    with pytest.raises(SystemExit):
        sample.main([*command, "--npz", str(tmp_path / "notes.npz")])
    assert "notes.json' already exists" in capsys.readouterr().err
    assert (tmp_path / "notes.json").read_text() == '{"precious": true}' and not (tmp_path / "other").exists()


def test_a_folder_that_lacks_only_its_last_stamp_is_finished(pipeline_folder, tmp_path, capsys):
    command = [pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS]
    sample.main(command)
    file = tmp_path / "a" / "samples.json"
    stamp = json.loads(file.read_text(encoding="utf-8"))
    stamp |= {"complete": False, "git_commit": "another"}
    for cost in ("seconds_per_image", "network_calls_per_image"):
        del stamp[cost]
    file.write_text(json.dumps(stamp), encoding="utf-8")
    (tmp_path / "a" / "costs.jsonl").unlink()
    sample.main(command)
    assert read_record(tmp_path / "a")["complete"] and "their cost is not known" in capsys.readouterr().out
    stamp["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(stamp), encoding="utf-8")
    with pytest.raises(SystemExit):
        sample.main(command)
    assert "holds other images (versions" in capsys.readouterr().err


def test_a_batch_that_cannot_be_written_ends_with_one_line(pipeline_folder, tmp_path, capsys, monkeypatch):
    def broken(folder, num_samples):  # after the images were looked at
        (folder / "000005.png").write_bytes(b"no image")
        return read_images(folder, num_samples)

    npz, read_images = tmp_path / "batch.npz", sample_folder.read_images
    command = [pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS, "--npz", str(npz)]
    monkeypatch.setattr(sample_folder, "read_images", broken)
    with pytest.raises(SystemExit) as stopped:
        sample.main(command)
    assert stopped.value.code == 2 and not npz.exists()
    assert re.search(r"batch\.npz' cannot be written: .* cannot be read as an image", capsys.readouterr().err)


@pytest.mark.parametrize("fault", [ValueError("image 3 is not finite"), OSError("No space left on device")])
def test_any_process_says_what_failed_while_it_sampled(pipeline_folder, tmp_path, capsys, monkeypatch, fault):
    def broken(*arguments):
        raise fault

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(sample_folder, "draw_images", broken)
    monkeypatch.setattr(sample_folder, "PartialState", lambda cpu: PartialState())
    with pytest.raises(SystemExit):
        sample.main([pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "8", *OPTIONS])
    assert f"process 0 of 1: {fault}" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # a mistake in the options is found by all, and told by the first
        sample.main([pipeline_folder, "--output", str(tmp_path / "a"), "--num_samples", "0", *OPTIONS])
    assert not capsys.readouterr().err


def test_mistakes_end_with_one_line(pipeline_folder, tmp_path, capsys):
    folder, other = tmp_path / "samples", tmp_path / "other"
    sample.main([pipeline_folder, "--output", str(folder), "--num_samples", "8", *OPTIONS])
    before = files(folder)
    other.mkdir()
    (other / "notes.txt").write_text("precious")
    (tmp_path / "there.npz").write_text("precious")
    capsys.readouterr()
    cases = [
        ((str(folder), "--num_samples", "8", "--seed", "1"), "holds other images (seed: 0 there, 1 now)"),
        ((str(folder), "--num_samples", "8", "--num_inference_steps", "3"), "num_inference_steps: 2 there, 3 now"),
        ((str(folder), "--num_samples", "4"), "is one of 8 images already"),
        ((str(other), "--num_samples", "8"), "holds other files"),
        ((str(tmp_path / "new"),), "num_samples must be given"),
        ((str(tmp_path / "new"), "--num_samples", "0"), "num_samples=0"),
        ((str(tmp_path / "new"), "--num_samples", "8", "--npz", str(tmp_path / "there.npz")), "exists"),
        ((str(tmp_path / "new"), "--num_samples", "8", "--npz", "batch.zip"), "must end in .npz"),
        ((str(tmp_path / "new"), "--num_samples", "8", "--solver", "quick"), "solver='quick'"),
        ((str(tmp_path / "new"), "--num_samples", "8", "--guidance_interval", "[0.8, 0.2]"), "guidance_interval"),
    ]
    for arguments, part in cases:
        with pytest.raises(SystemExit) as stopped:
            sample.main([pipeline_folder, *OPTIONS, "--output", *arguments])
        assert stopped.value.code == 2
        assert part in capsys.readouterr().err
    assert files(folder) == before and not (tmp_path / "new").exists()
