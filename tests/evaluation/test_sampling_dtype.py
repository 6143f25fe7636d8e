"""The dtype of sampling: bfloat16 on CPUs with AMX where images stay within a grey level, as every record says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline
from sit_atconv.cli import drawing, main
from sit_atconv.data import DigitsDataset
from sit_atconv.evaluation import sampling_dtype, sweep
from sit_atconv.evaluation.class_accuracy import class_accuracy
from sit_atconv.evaluation.duel_options import Duel
from sit_atconv.evaluation.few_steps import measure_few_steps
from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.sample_folder import sample_to_folder
from sit_atconv.evaluation.sampling import draw_images
from sit_atconv.evaluation.sampling_dtype import bfloat16_difference, cast_pipeline, resolve_dtype
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.evaluation.scores import evaluate
from sit_atconv.evaluation.sweep import measure_sweep
from sit_atconv.evaluation.sweep_options import SweepOptions
from sit_atconv.evaluation.sweep_settings import Average, Setting
from sit_atconv.utils.picture_text import read_settings

STEPS = 6
STRONG = 60.0  # guidance that makes the rounding of bfloat16 visible


@pytest.fixture
def amx(monkeypatch):
    """A CPU with AMX, as PyTorch sees it; matrix products in bfloat16 run on any, only slower."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory):
    """The folder of a pipeline of digits' shape."""
    folder = tmp_path_factory.mktemp("dtype") / "pipeline"
    tiny_pipeline(in_channels=1, num_classes=10).save_pretrained(folder)
    return str(folder)


def options(**changed) -> SamplingOptions:
    return SamplingOptions(**{"num_samples": 4, "batch_size": 4, "num_inference_steps": STEPS, **changed})


def beyond_bfloat16(pipeline: SiTPipeline) -> SiTPipeline:
    """The pipeline with a weight that bfloat16 rounds to infinity, and that is multiplied with 0."""
    mlp = pipeline.transformer.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.bias[0] = -1e4  # of which GELU makes 0
        mlp.fc2.weight[:, 0] = 3.4e38
    return pipeline


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(solver="dopri5"), InterpolantSDEScheduler()])
def test_bfloat16_is_chosen_where_images_stay_the_same(amx, tiny_pipeline, capsys, scheduler):
    pipeline = tiny_pipeline(scheduler)
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    assert resolve_dtype([pipeline], options()) == options(dtype="bfloat16")
    line = capsys.readouterr().out
    assert line.startswith("sampling in bfloat16") and "--dtype float32 switches it off" in line
    assert pipeline.scheduler is scheduler
    for name, tensor in pipeline.transformer.state_dict().items():  # the trial leaves the pipeline as it is
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_bfloat16_is_refused_where_images_change(amx, tiny_pipeline, capsys):
    pipelines = [tiny_pipeline(), tiny_pipeline(seed=1)]
    assert resolve_dtype(pipelines, options()).dtype == "bfloat16"
    assert "4 images of each of 2 pipelines differ" in capsys.readouterr().out
    assert resolve_dtype(pipelines, options(guidance_scale=STRONG)).dtype == "float32"
    assert "sampling in float32" in (line := capsys.readouterr().out) and "levels of 255 on average" in line
    pipelines[1] = beyond_bfloat16(pipelines[1])
    assert resolve_dtype(pipelines, options()).dtype == "float32"
    assert "an image is not finite" in capsys.readouterr().out


def test_nothing_is_tried_without_amx_or_with_a_dtype(tiny_pipeline, monkeypatch, capsys):
    pipeline = tiny_pipeline()
    monkeypatch.setattr(pipeline.transformer, "forward", None)  # whoever calls it fails
    assert resolve_dtype([pipeline], options()).dtype == "float32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for dtype in ("float32", "float16"):
        assert resolve_dtype([pipeline], options(dtype=dtype)).dtype == dtype
    assert not capsys.readouterr().out


def test_difference_is_that_of_the_images(tiny_pipeline):
    pipeline = tiny_pipeline(InterpolantODEScheduler(solver="euler"))
    few = options(num_inference_steps=3)
    exact = np.concatenate([draw_images(pipeline, [i], few) for i in range(4)]).astype(float)
    found = bfloat16_difference(pipeline, replace(few, seed=7))  # always from the same noise
    cast_pipeline(pipeline, "bfloat16")
    rounded = np.concatenate([draw_images(pipeline, [i], few) for i in range(4)]).astype(float)
    assert found == pytest.approx(np.abs(rounded - exact).mean()) and found > 0


def test_trial_takes_no_more_memory_than_there_is(amx, tiny_pipeline, monkeypatch, capsys):
    pipeline, rows = tiny_pipeline(), set()
    handle = pipeline.transformer.register_forward_pre_hook(lambda module, inputs: rows.add(len(inputs[0])))
    assert resolve_dtype([pipeline], options()).dtype == "bfloat16" and rows == {1}  # one image at a time
    handle.remove()
    monkeypatch.setattr(sampling_dtype, "free_memory", lambda device: 1000)  # less than a copy of the networks
    assert resolve_dtype([tiny_pipeline(seed=1), pipeline], options()).dtype == "float32"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)

    def fail(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pipeline.transformer, "forward", fail)
    assert resolve_dtype([tiny_pipeline(seed=1), pipeline], options()).dtype == "float32"
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first == second and "sampling in float32" in first and "more memory than there is" in first


def test_pipelines_that_were_cast_stay_as_they_are(amx, tiny_pipeline, folder):
    for dtype in ("bfloat16", "float16"):
        cast = cast_pipeline(tiny_pipeline(), dtype)
        assert resolve_dtype([cast], options()).dtype == dtype
    with pytest.raises(ValueError, match="dtype='auto': the pipelines are in float16 and float32; name one of them"):
        resolve_dtype([cast, tiny_pipeline()], options())


def test_records_hold_the_dtype_and_refuse_another(amx, folder, tmp_path):
    out = str(tmp_path / "samples")
    record = sample_to_folder(folder, out, options(), device="cpu")
    assert record["dtype"] == "bfloat16"
    pixels = {file.name: file.read_bytes() for file in (tmp_path / "samples").glob("*.png")}
    with pytest.raises(ValueError, match=r"dtype: 'bfloat16' there, 'float32' now.*give --dtype bfloat16"):
        sample_to_folder(folder, out, options(dtype="float32"), device="cpu")
    exact = sample_to_folder(folder, str(tmp_path / "exact"), options(dtype="float32"), device="cpu")
    assert exact["dtype"] == "float32"
    assert any((tmp_path / "exact" / name).read_bytes() != content for name, content in pixels.items())
    report = evaluate(folder, "digits", MetricOptions(extractor="pixels"), options(num_samples=8), device="cpu")
    assert report["dtype"] == "bfloat16"


def test_folder_from_before_the_record_had_a_dtype_goes_on(folder, tmp_path):
    out = tmp_path / "samples"
    sample_to_folder(folder, str(out), options(), device="cpu")
    file = out / "samples.json"
    older = json.loads(file.read_text())
    del older["dtype"]
    file.write_text(json.dumps(older))
    assert sample_to_folder(folder, str(out), options(), device="cpu")["dtype"] == "float32"


@pytest.mark.parametrize("begun", ["float32", "bfloat16"])
def test_samples_go_on_in_their_dtype_on_another_machine(folder, tmp_path, monkeypatch, begun):
    """Begun without AMX and continued with it, and the reverse; nothing is tried."""
    out = str(tmp_path / "samples")
    sample_to_folder(folder, out, options(dtype=begun), device="cpu")
    images = {file.name: file.read_bytes() for file in (tmp_path / "samples").glob("*.png")}
    (tmp_path / "samples/000001.png").unlink()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: begun == "float32")
    monkeypatch.setattr(sampling_dtype, "bfloat16_difference", None)  # whoever calls it fails
    assert sample_to_folder(folder, out, options(), device="cpu")["dtype"] == begun
    assert {file.name: file.read_bytes() for file in (tmp_path / "samples").glob("*.png")} == images
    (tmp_path / "samples/samples.json").write_text("{")
    monkeypatch.setattr(sampling_dtype, "bfloat16_difference", lambda *arguments: 0.0)
    with pytest.raises(ValueError, match="name a new folder, or remove this one"):
        sample_to_folder(folder, out, options(), device="cpu")


@pytest.mark.slow
def test_models_that_are_compared_share_a_dtype(amx, folder, tiny_pipeline, tmp_path):
    beyond_bfloat16(tiny_pipeline(in_channels=1, num_classes=10)).save_pretrained(tmp_path / "weak")
    few = dict(budgets=[1], samplers=["Euler"], num_samples=10, device="cpu")
    out = tmp_path / "few-steps"
    measure_few_steps([("a", folder)], "digits", str(out), **few)
    assert json.loads((out / "few-steps.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype='bfloat16', not 'float32'; give --dtype bfloat16, or name another"):
        measure_few_steps([("a", folder)], "digits", str(out), **few, dtype="float32")
    both = tmp_path / "both"
    for pipelines in ([("a", folder), ("b", str(tmp_path / "weak"))], [("a", folder)]):  # the second alone bears it
        measure_few_steps(pipelines, "digits", str(both), **few)
        assert json.loads((both / "few-steps.json").read_text())["dtype"] == "float32"

    duel = Duel("out", {"a": {}, "b": {}}, sampling={"num_samples": 4})
    assert duel.sampling_options().dtype == "float32"
    assert (
        Duel("out", {"a": {}, "b": {}}, sampling={"num_samples": 4, "dtype": "bfloat16"}).sampling_dtype == "bfloat16"
    )


@pytest.mark.slow
def test_sweep_tries_the_strongest_guidance(amx, folder, tmp_path):
    def chosen(scales: list[float], dtype: str = "auto") -> str:
        out = str(tmp_path / f"sweep-{scales[-1]:g}")
        wanted = SweepOptions(
            folder,
            "digits",
            out,
            scales,
            [(0.0, 1.0)],
            num_samples=16,
            num_inference_steps=STEPS,
            device="cpu",
            dtype=dtype,
        )
        return measure_sweep(wanted)["dtype"]

    assert chosen([1.0, 1.1]) == "bfloat16"
    assert chosen([1.0, STRONG]) == "float32"
    assert chosen([1.0, 1.2], "float32") == chosen([1.0, 1.2]) == "float32"  # as it was begun
    with pytest.raises(ValueError, match="give --dtype float32, or name another folder"):
        chosen([1.0, 1.2], "bfloat16")


def test_sweep_tries_each_average(amx, tiny_pipeline, capsys):
    def build():
        return tiny_pipeline(in_channels=1, num_classes=10)

    averages = [Average("weak", lambda: beyond_bfloat16(build())), Average("good", build)]
    settings = [Setting(each.name, 1.0, (0.0, 1.0)) for each in averages]
    for some, dtype in ((averages, "float32"), (averages[::-1], "float32"), (averages[1:], "bfloat16")):
        assert sweep.check_settings(some, settings, options(), torch.device("cpu"))[0].dtype == dtype
        assert capsys.readouterr().out.count("sampling in") == 1


def test_strongest_guidance_is_as_strong_as_each():
    intervals = [(0.0, 0.4), (0.6, 1.0), (0.2, 0.5)]
    settings = [Setting("a", 1.0, (0.0, 1.0)), *(Setting("a", s, each) for s in (3.0, 2.0) for each in intervals[1:])]
    assert sweep.strongest(settings)[1:] == (3.0, (0.2, 1.0))
    assert sweep.strongest([Setting("a", 3.0, each) for each in intervals])[1:] == (3.0, (0.0, 1.0))


def test_class_accuracy_reports_the_dtype(amx, folder):
    pipeline = SiTPipeline.from_pretrained(folder)
    report = class_accuracy(pipeline, DigitsDataset(), samples_per_class=1, num_inference_steps=2)
    assert report["dtype"] == "bfloat16" and pipeline.transformer.dtype == torch.bfloat16
    cast_pipeline(pipeline, "float16")
    report = class_accuracy(pipeline, DigitsDataset(), samples_per_class=1, num_inference_steps=2)
    assert report["dtype"] == "float16" and pipeline.transformer.dtype == torch.float16  # as it was given


def test_command_chooses_and_can_be_told(amx, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, dtype in (([], "bfloat16"), (["--dtype", "float32"], "float32")):
        main(["sample", folder, "--steps", "2", "--seed", "1", "--out", f"{dtype}.png", *arguments])
        assert ("sampling in bfloat16" in capsys.readouterr().out) == (dtype == "bfloat16")
        assert read_settings(f"{dtype}.png")["dtype"] == dtype
    main(["morph", folder, "--steps", "2", "--out", "morph.png"])
    assert read_settings("morph.png")["dtype"] == "bfloat16"


def test_command_makes_room_before_the_trial(amx, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    order = []
    monkeypatch.setattr(drawing, "fit_to_memory", lambda pipeline, options, *size: order.append("fit") or options)
    monkeypatch.setattr(sampling_dtype, "bfloat16_difference", lambda *arguments: order.append("trial") or 0.0)
    for command in ("sample", "morph"):
        main([command, folder, "--steps", "2", "--out", f"{command}.png"])
    assert order == ["fit", "trial"] * 2
