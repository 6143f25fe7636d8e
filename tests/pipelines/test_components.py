"""Components and options of a pipeline: wrong kinds, misspelt names, and those that do not fit, before any work."""

import re

import pytest
import torch
from diffusers import AutoencoderTiny

from sit_atconv import InterpolantODEScheduler, SiTPipeline


def tiny_vae(latent_channels: int) -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
        latent_channels=latent_channels,
    ).eval()


@pytest.mark.parametrize(
    ("option", "meant"),
    [("schedluer", "scheduler"), ("vea", "vae"), ("id2lable", "id2label"), ("torch_dtyp", "torch_dtype")],
)
def test_a_misspelt_option_of_loading_is_an_error_that_suggests_the_right_one(option, meant, tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"SiTPipeline has no option {option}; did you mean {meant}\?"):
        SiTPipeline.from_pretrained(tmp_path, **{option: None})
    with pytest.raises(ValueError, match="SiTPipeline has no option safety_checker; its options are"):
        SiTPipeline.from_pretrained(tmp_path, safety_checker=None)


def test_options_of_loading_are_accepted(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    given = InterpolantODEScheduler(solver="euler")
    options = dict(torch_dtype=torch.float16, variant=None, device_map=None, low_cpu_mem_usage=True, token=None)
    pipe = SiTPipeline.from_pretrained(tmp_path, scheduler=given, vae=None, id2label={0: "a"}, **options)
    assert pipe.scheduler is given
    assert (pipe.labels, pipe.dtype) == ({"a": 0}, torch.float16)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (dict(scheduler="euler"), "scheduler is 'euler'; give a scheduler, such as InterpolantODEScheduler"),
        (dict(scheduler=InterpolantODEScheduler), "scheduler is a type"),
        (dict(vae=torch.nn.Linear(1, 1)), "vae is a Linear; give an autoencoder of diffusers, such as AutoencoderKL"),
        (dict(transformer=torch.nn.Linear(1, 1)), "transformer is a Linear; give a SiTTransformer2DModel"),
    ],
)
def test_components_of_a_wrong_kind(components, message, tiny_transformer):
    given = dict(transformer=tiny_transformer(), scheduler=InterpolantODEScheduler()) | components
    with pytest.raises(ValueError, match=re.escape(message)):
        SiTPipeline(**given)


def test_a_scheduler_of_a_wrong_kind_that_was_set_later(tiny_pipeline):
    pipe = tiny_pipeline()
    scheduler = pipe.scheduler
    with pytest.raises(ValueError, match="scheduler is a Linear; give a scheduler"):
        pipe.scheduler = torch.nn.Linear(1, 1)
    assert pipe.scheduler is scheduler


def test_a_vae_with_other_channels_shows_before_the_solve(tiny_pipeline):
    pipe = tiny_pipeline(vae=tiny_vae(latent_channels=4), in_channels=3)
    steps = []
    with pytest.raises(ValueError, match=r"vae=AutoencoderTiny has latents of 4 channels, but the transformer of 3"):
        pipe(1, callback_on_step_end=lambda *arguments: steps.append(arguments))
    assert not steps


def test_channels_that_no_picture_has_show_before_the_solve(tiny_pipeline):
    pipe = tiny_pipeline(in_channels=2)
    with pytest.raises(ValueError, match="output_type='pil': no picture has 2 channels; use 'pt' or 'np'"):
        pipe(1, num_inference_steps=1)
    assert pipe(1, num_inference_steps=1, output_type="pt").images.shape == (1, 2, 8, 8)


def test_a_component_of_a_wrong_kind_is_refused_when_it_is_put_in_place(tiny_pipeline):
    pipe = tiny_pipeline()
    before = pipe.scheduler
    with pytest.raises(ValueError, match="scheduler is 'euler'; give a scheduler, such as InterpolantODEScheduler"):
        pipe.scheduler = "euler"
    with pytest.raises(ValueError, match="vae is a Linear; give an autoencoder of diffusers"):
        pipe.vae = torch.nn.Linear(2, 2)
    assert pipe.scheduler is before and pipe.vae is None


def test_the_bar_of_an_adaptive_solver_shows_the_time_in_three_digits(tiny_pipeline, capsys):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="dopri5", rtol=1e-3))
    pipe.set_progress_bar_config(disable=False, mininterval=0, ascii=True)
    pipe([0], generator=torch.Generator().manual_seed(0))
    shown = re.findall(r"([\d.]+)/1 \[", capsys.readouterr().err)
    assert len(shown) > 2 and max(map(len, shown)) <= 5 and float(shown[-1]) == 1
