"""Pipeline folders load anywhere: with the package, without it, and again after being saved by either."""

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from without_package import WITHOUT_PACKAGE

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.sharing.formats import FORMAT_VERSION, edited_sources, source_hash


def draw(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    options = dict(guidance_scale=2.0, num_inference_steps=3, output_type="pt") | options
    return pipe([1, "cat", 4], generator=torch.Generator().manual_seed(1), **options).images


@pytest.mark.parametrize("mixer", ["atconv", "hybrid"])
@pytest.mark.parametrize(
    "scheduler",
    [InterpolantODEScheduler(solver="heun"), InterpolantSDEScheduler(diffusion_form="linear")],
    ids=["ODE", "SDE"],
)
def test_installed_classes_need_no_flag(scheduler, mixer, tiny_pipeline, tmp_path):
    pipe = tiny_pipeline(scheduler, mixer=mixer)
    pipe.save_pretrained(tmp_path / "first")
    loaded = SiTPipeline.from_pretrained(tmp_path / "first")
    assert type(loaded) is SiTPipeline
    assert type(loaded.transformer) is SiTTransformer2DModel
    assert type(loaded.scheduler) is type(scheduler)
    assert loaded.vae is None
    assert loaded.labels == pipe.labels
    torch.testing.assert_close(draw(loaded), draw(pipe), rtol=0, atol=0)

    loaded.save_pretrained(tmp_path / "second")
    again = SiTPipeline.from_pretrained(tmp_path / "second")
    torch.testing.assert_close(draw(again), draw(pipe), rtol=0, atol=0)


def tiny_vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    ).eval()


def test_components_of_diffusers_travel_too(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline(FlowMatchEulerDiscreteScheduler(), tiny_vae(), in_channels=4)
    pipe.save_pretrained(tmp_path)
    loaded = SiTPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler
    assert type(loaded.vae) is AutoencoderTiny
    torch.testing.assert_close(draw(loaded), draw(pipe))


def test_components_can_be_replaced_at_loading(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    scheduler = InterpolantODEScheduler(solver="rk4")
    loaded = SiTPipeline.from_pretrained(tmp_path, scheduler=scheduler, torch_dtype=torch.bfloat16)
    assert loaded.scheduler is scheduler
    assert loaded.transformer.dtype == torch.bfloat16


def test_the_folder(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline(InterpolantSDEScheduler())
    pipe.save_pretrained(tmp_path)
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    index = json.loads((tmp_path / "model_index.json").read_text())
    pipeline, transformer, scheduler = (index[name][0] for name in ("_class_name", "transformer", "scheduler"))
    assert files == {
        "README.md",
        "model_index.json",
        f"{pipeline}.py",
        "scheduler/scheduler_config.json",
        f"scheduler/{scheduler}.py",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/weights.json",
        f"transformer/{transformer}.py",
    }
    assert index["_class_name"] == [pipeline, "SiTPipeline"]
    assert index["transformer"] == [transformer, "SiTTransformer2DModel"]
    assert index["scheduler"] == [scheduler, "InterpolantSDEScheduler"]
    for stem, name in ((pipeline, "pipeline_sit"), (scheduler, "scheduling_interpolant_sde")):
        assert re.fullmatch(rf"{name}_[0-9a-f]{{8}}", stem)
    assert index["_format_version"] == FORMAT_VERSION
    assert index["id2label"]["1"] == "goldfish, Carassius auratus"


def test_a_folder_tells_nothing_of_the_machine(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "first")
    SiTPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for file in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name


def test_a_folder_without_weights_is_an_error(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        SiTPipeline.from_pretrained(tmp_path)


@pytest.mark.slow
def test_without_the_package(tiny_pipeline, tmp_path):
    """In a process that cannot import this package: load, draw, save, load again, draw again."""
    ode, sde = (
        tiny_pipeline(InterpolantODEScheduler(solver="heun"), mixer="hybrid"),
        tiny_pipeline(
            InterpolantSDEScheduler(),
            tiny_vae(),
            in_channels=4,
            num_layers=3,
            middle_layers=1,
            middle_attention_heads=3,
            kernel_groups=2,
            mlp_depthwise=True,
        ),
    )
    expected = {}
    for name, pipe in (("ode", ode), ("sde", sde)):
        pipe.save_pretrained(tmp_path / name)
        expected[name] = draw(pipe)
    script = WITHOUT_PACKAGE + textwrap.dedent("""
        import torch
        from diffusers import DiffusionPipeline
        from safetensors.torch import save_file

        images = {}
        for name in ("ode", "sde"):
            for folder, copy in ((name, f"{name}-copy"), (f"{name}-copy", None)):
                pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
                pipe.set_progress_bar_config(disable=True)
                generator = torch.Generator().manual_seed(1)
                images[folder] = pipe(
                    [1, "cat", 4], guidance_scale=2.0, num_inference_steps=3, output_type="pt", generator=generator
                ).images.contiguous()
                if copy:
                    pipe.save_pretrained(copy)
        for upload in (lambda: pipe.push_to_hub("someone/model"), lambda: pipe.save_pretrained("card", license="mit")):
            try:
                upload()
            except ImportError as error:
                assert "sit-atconv is not installed" in str(error), error
            else:
                raise AssertionError("no error")
        assert not any(name.split(".")[0] == "sit_atconv" for name in sys.modules)
        save_file(images, "images.safetensors")
    """)
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "hf" / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "card").exists()
    images = load_file(tmp_path / "images.safetensors")
    for name, image in expected.items():
        torch.testing.assert_close(images[name], image)
        # the card needs the package; everything else is passed on as it is
        files = [path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()]
        for file in {*files} - {Path("README.md")}:
            assert (tmp_path / f"{name}-copy" / file).read_bytes() == (tmp_path / name / file).read_bytes(), file
        assert not (tmp_path / f"{name}-copy" / "README.md").exists()
        torch.testing.assert_close(images[f"{name}-copy"], image)
        # the copy that was saved without the package loads with it
        torch.testing.assert_close(draw(SiTPipeline.from_pretrained(tmp_path / f"{name}-copy")), image)


def rewrite(folder, stem: str, change) -> str:
    """Change the source of a module in a saved folder, as another version of ours would have written it."""
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text())
    (file,) = folder.glob(f"**/{stem}_*.py")
    source = change(file.read_text())
    new = f"{stem}_{source_hash(source)}"
    file.unlink()
    file.with_name(f"{new}.py").write_text(source)
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] == file.stem:
            index[name] = [new, entry[1]]
    index_file.write_text(json.dumps(index))
    return new


def load_portable(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
def test_two_versions_of_the_code_live_in_one_process(tiny_pipeline, tmp_path):
    """Each folder goes on using its own code, helper functions included, whatever is loaded after it."""
    pipe = tiny_pipeline()
    for name in ("first", "second"):
        pipe.save_pretrained(tmp_path / name)
    expected = draw(pipe, output_type="latent")
    # the other version's helper function negates what is modulated
    rewrite(
        tmp_path / "second",
        "transformer_sit",
        lambda s: s.replace("torch.addcmul(shift, x,", "-torch.addcmul(shift, x,"),
    )
    first = load_portable(tmp_path / "first")
    second = load_portable(tmp_path / "second")
    other = draw(second, output_type="latent")
    assert not torch.allclose(other, expected)
    torch.testing.assert_close(draw(first, output_type="latent"), expected, rtol=0, atol=0)
    third = load_portable(tmp_path / "first")
    torch.testing.assert_close(draw(second, output_type="latent"), other, rtol=0, atol=0)
    torch.testing.assert_close(draw(third, output_type="latent"), expected, rtol=0, atol=0)
    # saved again, each takes its own code along
    for name, portable, images in (("first", first, expected), ("second", second, other)):
        portable.save_pretrained(tmp_path / f"{name}-copy")
        copy = load_portable(tmp_path / f"{name}-copy")
        torch.testing.assert_close(draw(copy, output_type="latent"), images, rtol=0, atol=0)


@pytest.mark.slow
def test_saving_over_a_folder_leaves_no_older_code(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    rewrite(tmp_path, "transformer_sit", lambda source: source + "# an older version\n")
    (tmp_path / "transformer" / "notes.py").write_text("# mine\n")
    pipe.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("transformer/transformer_sit_*.py"))) == 1
    assert (tmp_path / "transformer" / "notes.py").exists()
    torch.testing.assert_close(draw(load_portable(tmp_path)), draw(pipe))


def test_edited_code_runs_only_where_the_folders_code_is_trusted(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("transformer/transformer_sit_*.py")
    file.write_text(file.read_text().replace("torch.addcmul(shift, x,", "-torch.addcmul(shift, x,"))
    with pytest.warns(UserWarning, match=rf"transformer/{file.name} in .* was edited"):
        loaded = SiTPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(draw(loaded), draw(pipe), rtol=0, atol=0)
    assert not torch.allclose(draw(load_portable(tmp_path)), draw(pipe))


def test_an_untouched_folder_gives_no_warning(tiny_pipeline, tmp_path, recwarn):
    tiny_pipeline().save_pretrained(tmp_path)
    SiTPipeline.from_pretrained(tmp_path)
    assert not [warning for warning in recwarn if "edited" in str(warning.message)]


def test_a_folder_of_the_first_format_loads(tiny_pipeline, tmp_path):
    """It has no format version, no hashes in its file names, and configs without arguments that came later."""
    pipe = tiny_pipeline(mixer="hybrid")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["_format_version"]
    for name, entry in index.items():
        if isinstance(entry, list) and isinstance(entry[0], str):
            folder = tmp_path if name == "_class_name" else tmp_path / name
            plain = re.sub(r"_[0-9a-f]{8}$", "", entry[0])
            (folder / f"{entry[0]}.py").rename(folder / f"{plain}.py")
            index[name] = [plain, entry[1]]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    for name in ("qk_norm", "timestep_at_noise", "timestep_at_data"):
        del config[name]
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert (tmp_path / "pipeline_sit.py").is_file()
    for loaded in (SiTPipeline.from_pretrained(tmp_path), load_portable(tmp_path)):
        torch.testing.assert_close(draw(loaded), draw(pipe), rtol=0, atol=0)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "next"])
def test_a_newer_format_is_refused(version, tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_format_version": version}))
    with pytest.raises(ValueError, match=f"format {version}.*up to {FORMAT_VERSION}.*update"):
        SiTPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("load", [SiTPipeline.from_pretrained, load_portable])
def test_sharded_weights(load, tiny_pipeline, tmp_path):
    pipe = tiny_pipeline(num_layers=4)
    pipe.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = list((tmp_path / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    torch.testing.assert_close(draw(load(tmp_path)), draw(pipe), rtol=0, atol=0)


@pytest.mark.parametrize("load", [SiTPipeline.from_pretrained, load_portable])
def test_arguments_that_the_model_has_not_are_named(load, tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "registers": 4}))
    with pytest.raises(ValueError, match=r"config\.json has registers, unknown here"):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saving_over_shards_and_back_leaves_only_the_new_weights(variant, tiny_pipeline, tmp_path):
    vaes = [tiny_vae(), tiny_vae()]
    for seed, shards in enumerate(["5KB", None, "5KB"]):
        pipe = tiny_pipeline(seed=seed, vae=vaes[seed % 2], in_channels=4)
        pipe.save_pretrained(tmp_path, variant=variant, max_shard_size=shards)
        torch.testing.assert_close(draw(SiTPipeline.from_pretrained(tmp_path, variant=variant)), draw(pipe))
        for name in ("transformer", "vae"):
            whole = [file for file in (tmp_path / name).glob("*.safetensors") if "-of-" not in file.name]
            assert len(whole) == (shards is None)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_variants(variant, tiny_pipeline, tmp_path):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    pipe = tiny_pipeline(vae=tiny_vae(), in_channels=4)
    pipe.save_pretrained(tmp_path)
    pipe.to(dtype).save_pretrained(tmp_path, variant=variant)
    for name in ("transformer", "vae"):
        assert (tmp_path / name / f"diffusion_pytorch_model.{variant}.safetensors").is_file()
        assert (tmp_path / name / "diffusion_pytorch_model.safetensors").is_file()
    for load in (
        SiTPipeline.from_pretrained,
        functools.partial(DiffusionPipeline.from_pretrained, trust_remote_code=True),
    ):
        loaded = load(tmp_path, variant=variant, torch_dtype=dtype)
        assert loaded.transformer.dtype == loaded.vae.dtype == dtype
        torch.testing.assert_close(draw(loaded), draw(pipe), rtol=0, atol=0)
    assert SiTPipeline.from_pretrained(tmp_path).transformer.dtype == torch.float32


def test_pickles_are_neither_written_nor_read(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="safe_serialization=False"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    pipe.save_pretrained(tmp_path)
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    for load, folder in (
        (SiTPipeline.from_pretrained, tmp_path),
        (load_portable, tmp_path),
        (SiTTransformer2DModel.from_pretrained, tmp_path / "transformer"),
    ):
        with pytest.raises(OSError, match=r"diffusion_pytorch_model\.safetensors"):
            load(folder)
    with pytest.raises(ValueError, match="safe_serialization=False"):
        pipe.transformer.save_pretrained(tmp_path / "other", safe_serialization=False)
    assert not (tmp_path / "other").exists()


def test_code_that_is_no_file_is_not_waited_for(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    os.mkfifo(tmp_path / "transformer" / "pipe_01234567.py")
    (tmp_path / "nowhere_01234567.py").symlink_to(tmp_path / "none")
    (tmp_path / "bytes_01234567.py").write_bytes(b"\xff\xff")
    expected = ["bytes_01234567.py", "nowhere_01234567.py", "transformer/pipe_01234567.py"]
    assert edited_sources(tmp_path) == expected
    with pytest.warns(UserWarning, match=r"pipe_01234567\.py in .* was edited"):
        SiTPipeline.from_pretrained(tmp_path)
