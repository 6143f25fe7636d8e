"""Runs with --objective meanflow: what they write, and that they are functions of the seed like all others."""

import json
import shutil
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import train_sit
from accelerate.state import AcceleratorState
from command_runs import gradient_norms, metrics, refused, weights
from safetensors.torch import load_file
from without_package import WITHOUT_PACKAGE

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler
from sit_atconv.training import mean_flow

TINY = ["--batch_size", "32", "--log_every", "1", "--log_with", "none", "--lr_warmup_steps", "0"]
TINY += ["--lr_schedule", "constant", "--max_grad_norm", "null", "--objective", "meanflow"]
SMALL = ["--model.num_layers", "2", "--model.num_attention_heads", "2"]


def run(folder: Path, *options: str, steps: int = 2) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision of the last run is not that of this one
    train_sit.main(["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *options])
    return folder


def refusal(capsys, *options: str) -> str:
    return refused(capsys, train_sit.main, *TINY, *options)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A pipeline folder of a flow, trained for two steps."""
    folder = tmp_path_factory.mktemp("flow") / "run"
    options = ["--output_dir", str(folder), "--max_steps", "2", *SMALL, "--log_with", "none", "--sample_steps", "1"]
    train_sit.main([*options, "--learning_rate", "0.01", "--lr_warmup_steps", "0"])
    return str(folder / "pipeline")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_from_scratch(mixer, tmp_path):
    """The folder draws in two calls, with the installed package; its config tells how steps are conditioned."""
    folder = run(tmp_path / "run", *SMALL, "--mixer", mixer)
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in metrics(folder))
    pipe = SiTPipeline.from_pretrained(folder / "pipeline")
    assert type(pipe.scheduler) is MeanFlowScheduler and pipe.default_num_inference_steps == 2
    assert (pipe.transformer.config.step_conditioning, pipe.transformer.config.trained_guidance_scale) == ("span", 1)
    assert len(pipe(["3", "5"]).images) == 2
    pipe.scheduler = InterpolantODEScheduler.from_config(pipe.scheduler.config)
    assert len(pipe(["3"], num_inference_steps=2).images) == 1


@pytest.mark.slow
def test_the_folder_carries_its_code(tmp_path):
    folder = run(tmp_path / "run", *SMALL) / "pipeline"
    expected = SiTPipeline.from_pretrained(folder)([3], generator=torch.Generator().manual_seed(0), output_type="np")
    code = (
        WITHOUT_PACKAGE
        + f"""
import numpy, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
image = pipe([3], generator=torch.Generator().manual_seed(0), output_type="np").images
numpy.save({str(tmp_path / "image.npy")!r}, image)
pipe.save_pretrained({str(tmp_path / "again")!r})
"""
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "image.npy"), expected.images)
    again = SiTPipeline.from_pretrained(tmp_path / "again")
    assert type(again.scheduler) is MeanFlowScheduler


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--model.step_conditioning", "decoupled", "--model.end_time_blocks", "1")])
def test_fine_tuning_starts_from_the_flow(options, flow, tmp_path):
    """After a tiny update, the weights are those of the flow, and what they predict at s = t is, too."""
    folder = run(tmp_path / "run", "--init_from", flow, "--learning_rate", "1e-9", *options)
    pipe, before = SiTPipeline.from_pretrained(folder / "pipeline"), SiTPipeline.from_pretrained(flow)
    assert pipe.transformer.config.step_conditioning == ("decoupled" if options else "span")
    for name, value in before.transformer.state_dict().items():
        torch.testing.assert_close(pipe.transformer.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    pipe.scheduler = before.scheduler
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn, expected = (each([3], latents=noise, output_type="latent").images for each in (pipe, before))
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("--gradient_accumulation_steps", "4"),
        ("--gradient_checkpointing", "true"),
        ("--meanflow_derivative", "difference"),
    ],
    ids=["accumulation", "checkpointing", "difference"],
)
def test_gradients_do_not_depend_on_how_they_are_computed(changes, tmp_path):
    options = (*SMALL, "--meanflow_share", "0.5", "--meanflow_guidance_scale", "2")
    options += ("--meanflow_guidance_warmup_steps", "1")
    plain, changed = run(tmp_path / "plain", *options), run(tmp_path / "changed", *options, *changes)
    assert gradient_norms(changed) == pytest.approx(gradient_norms(plain), rel=1e-3)
    for name, value in weights(plain / "pipeline").items():
        torch.testing.assert_close(weights(changed / "pipeline")[name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_compiled_blocks(flow, tmp_path, monkeypatch):
    """Traced as by the default compiler, which takes minutes to make code of it."""
    compile_blocks = SiTTransformer2DModel.compile_repeated_blocks
    traced = partialmethod(compile_blocks, backend="aot_eager")
    monkeypatch.setattr(SiTTransformer2DModel, "compile_repeated_blocks", traced)
    options = ("--init_from", flow, "--meanflow_share", "0.5")
    plain, compiled = run(tmp_path / "plain", *options), run(tmp_path / "compiled", *options, "--compile", "true")
    assert gradient_norms(compiled) == pytest.approx(gradient_norms(plain), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--teacher",)], ids=["data", "teacher"])
def test_gradients_do_not_depend_on_the_number_of_processes(options, flow, tmp_path, processes):
    options = ("--init_from", flow, *((*options, flow) if options else ()), "--gradient_accumulation_steps", "2")
    one = run(tmp_path / "one", *options)
    assert processes(2, lambda rank: run(tmp_path / "two", *options)) == [0, 0]
    assert gradient_norms(tmp_path / "two") == pytest.approx(gradient_norms(one), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_bfloat16(mixer, tmp_path):
    options = (*SMALL, "--mixer", mixer, "--meanflow_share", "0.5", "--learning_rate", "1e-2")
    plain, half = run(tmp_path / "plain", *options), run(tmp_path / "half", *options, "--mixed_precision", "bf16")
    assert gradient_norms(half) == pytest.approx(gradient_norms(plain), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_resumed_run_is_bitwise_the_uninterrupted_one(workers, flow, tmp_path):
    """Stopped before the warm-up of the guidance has ended."""
    options = ("--init_from", flow, "--meanflow_guidance_scale", "2", "--meanflow_guidance_warmup_steps", "3")
    options += ("--num_workers", workers, "--checkpoint_every", "2", "--meanflow_data_end_share", "0.3")
    whole = run(tmp_path / "whole", *options, steps=5)
    run(tmp_path / "parts", *options, steps=3)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000003")  # as if killed before it
    parts = run(tmp_path / "parts", *options, "--resume", "latest", steps=5)
    name = "checkpoints/step-00000005"
    for file in sorted((whole / name).glob("*.safetensors")):
        left, right = load_file(file), load_file(parts / name / file.name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), (file.name, key)
    assert gradient_norms(whole) == gradient_norms(parts)


@pytest.mark.slow
def test_a_derivative_that_is_not_finite_skips_the_step(flow, tmp_path, monkeypatch):
    original, calls = mean_flow.TargetNetwork.__call__, []

    def broken(self, *arguments, **options):
        calls.append(1)
        output = original(self, *arguments, **options)
        return output * float("nan") if len(calls) in (3, 4) else output  # the second step

    monkeypatch.setattr(mean_flow.TargetNetwork, "__call__", broken)
    folder = run(tmp_path / "run", "--init_from", flow, steps=3)
    lines = metrics(folder)
    assert [line["step"] for line in lines if line.get("skipped")] == [2]
    assert all(value.isfinite().all() for value in weights(folder / "pipeline").values())


@pytest.mark.slow
def test_guidance_is_recorded_and_refused_in_sampling(flow, tmp_path):
    options = ("--init_from", flow, "--teacher", flow, "--meanflow_guidance_scale", "1.5")
    folder = run(tmp_path / "run", *options) / "pipeline"
    pipe = SiTPipeline.from_pretrained(folder)
    assert pipe.transformer.config.trained_guidance_scale == 1.5
    with pytest.raises(ValueError, match=r"guidance_scale=3.0: this model was trained .* 1\.5"):
        pipe([1], guidance_scale=3.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--objective", "flow", "--meanflow_share", "0.5"), "meanflow_share=0.5 is an option of MeanFlow; give"),
        (("--objective", "flow", "--teacher", "somewhere"), "teacher='somewhere' is not a pipeline folder"),
        (("--flow_weight", "1"), "flow_weight=1.0 is for --objective flow; leave it out"),
        (("--teacher_guidance_scale", "2"), "is for --objective flow; use --meanflow_guidance_scale"),
        (("--path", "gvp"), "path='gvp': --objective meanflow needs 'linear'"),
        (("--prediction", "data"), "prediction='data': --objective meanflow needs 'velocity'"),
        (("--meanflow_share", "1.5"), "meanflow_share=1.5"),
        (("--meanflow_data_end_share", "-1"), "meanflow_data_end_share=-1"),
        (("--meanflow_guidance_mix", "1"), "meanflow_guidance_mix=1"),
        (
            ("--mixed_precision", "bf16", "--meanflow_derivative", "difference"),
            "but mixed_precision=bf16",
        ),
        (("--teacher", "nowhere"), "teacher='nowhere' is not a pipeline folder"),
        (("--model.step_conditioning", "none"), "model.step_conditioning='none'"),
        (("--model.trained_guidance_scale", "2"), "trained_guidance_scale"),
        (("--model.class_dropout_prob", "0", "--meanflow_guidance_scale", "2"), "class_dropout_prob"),
    ],
)
def test_what_cannot_be_trained(options, message, tmp_path, capsys):
    assert message in refusal(capsys, "--output_dir", str(tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_teachers_that_do_not_fit(flow, tmp_path, capsys):
    unlabelled = tmp_path / "unlabelled"
    options = ["--output_dir", str(unlabelled), "--max_steps", "1", *SMALL, "--log_with", "none"]
    train_sit.main([*options, "--model.class_dropout_prob", "0", "--sample_steps", "1"])
    output = ("--output_dir", str(tmp_path / "run"), *SMALL)
    assert "without class dropout" in refusal(capsys, *output, "--teacher", str(unlabelled / "pipeline"))
    renamed = tmp_path / "renamed"
    shutil.copytree(flow, renamed)
    index = json.loads((renamed / "model_index.json").read_text())
    index["id2label"]["3"] = "three"
    (renamed / "model_index.json").write_text(json.dumps(index))
    assert "other classes" in refusal(capsys, *output, "--teacher", str(renamed))
    span = run(tmp_path / "span", *SMALL) / "pipeline"
    message = refusal(capsys, *output[:2], "--init_from", str(span), "--model.step_conditioning", "decoupled")
    assert "model.step_conditioning='decoupled'" in message and "would be lost" in message
