"""A pipeline takes its place in a folder as a whole, only if it can be loaded again, with hashes that are checked."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.convert import export_checkpoint


def tiny_vae(seed: int = 0) -> AutoencoderTiny:
    torch.manual_seed(seed)
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    ).eval()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    tiny_pipeline(vae=tiny_vae(), in_channels=4).save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    return tmp_path / "folder"


def wrap_vae(pipeline):
    pipeline.vae.decoder.layers[0] = torch.nn.Sequential(pipeline.vae.decoder.layers[0])


def wrap_transformer(pipeline):
    # An assignment would be refused.
    object.__setattr__(pipeline, "transformer", torch.nn.Sequential(pipeline.transformer))


def adapted_vae(pipeline):
    pytest.importorskip("peft")
    layer = pipeline.vae.decoder.layers[0]
    layer.base_layer = torch.nn.Conv2d(1, 1, 1)


class OwnScheduler(InterpolantODEScheduler):
    pass


class OwnVAE(AutoencoderTiny):
    pass


def own_scheduler(pipeline):
    pipeline.scheduler = OwnScheduler()


def own_vae(pipeline):
    pipeline.vae = OwnVAE.from_config(pipeline.vae.config)


def wrapped_layer(pipeline):
    pipeline.transformer.proj_out = torch.nn.Sequential(pipeline.transformer.proj_out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrap_vae, r"vae: this AutoencoderTiny could not be loaded again: decoder\.layers\.0\.0"),
        (adapted_vae, r"vae: .*base_layer.*unload_lora"),
        (wrapped_layer, r"transformer: this SiTTransformer2DModel could not be loaded again"),
        (
            own_scheduler,
            r"scheduler is of the class .*OwnScheduler.*runs no code of a folder, so it could not be loaded again",
        ),
        (
            own_vae,
            r"vae is of the class .*OwnVAE.*Set pipeline\.vae to an object of a class of sit-atconv or diffusers",
        ),
        (wrap_transformer, r"transformer is a Sequential.*set pipeline\.transformer to the model"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(change, message, tiny_pipeline, folder, tmp_path):
    pipeline, before = tiny_pipeline(vae=tiny_vae(), in_channels=4), files_of(folder)
    change(pipeline)
    for target in (folder, tmp_path / "new" / "folder"):
        with pytest.raises(ValueError, match=message):
            pipeline.save_pretrained(target)
    assert files_of(folder) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_an_error_at_any_renaming_leaves_the_older_pipeline(tiny_pipeline, folder, monkeypatch):
    before, replace = files_of(folder), Path.replace
    pipeline = tiny_pipeline(seed=1, vae=tiny_vae(1), in_channels=4)
    for failing in range(0, 100, 4):
        calls = []

        def fail_once(file, place, failing=failing, calls=calls):
            if folder in Path(place).parents and not any(part.startswith(".") for part in Path(place).parts[-4:]):
                calls.append(place)
                if len(calls) == failing + 1:
                    raise OSError("disk failure")
            return replace(file, place)

        monkeypatch.setattr(Path, "replace", fail_once)
        try:
            pipeline.save_pretrained(folder, max_shard_size="5KB")
        except OSError:
            # Of the last renaming, the model card's, the pipeline no longer depends.
            if calls[-1].name != "README.md":
                assert files_of(folder) == before
                before = files_of(folder)
        else:
            break
    assert failing > 8
    monkeypatch.undo()
    loaded = SiTPipeline.from_pretrained(folder)
    torch.testing.assert_close(loaded.transformer.state_dict(), pipeline.transformer.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded.vae.state_dict(), pipeline.vae.state_dict(), rtol=0, atol=0)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.rglob(".*"))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(content)


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_a_flipped_bit_in_any_weights_is_found(component, folder, tmp_path):
    file = folder / component / "diffusion_pytorch_model.safetensors"
    flip_a_bit(file)
    with pytest.raises(ValueError, match=rf"{component} is not as it was saved: .* has another SHA-256; get it again"):
        SiTPipeline.from_pretrained(folder)
    SiTPipeline.from_pretrained(folder, verify_weights=False)
    if component == "transformer":
        with pytest.raises(ValueError, match="has another SHA-256"):
            export_checkpoint(folder, tmp_path / "out.pt")
    else:
        SiTPipeline.from_pretrained(folder, vae=tiny_vae())
    (folder / component / "weights.json").unlink()
    SiTPipeline.from_pretrained(folder)


def test_saved_without_and_then_with_a_variant(tiny_pipeline, folder):
    pipeline = tiny_pipeline(vae=tiny_vae(), in_channels=4)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    SiTPipeline.from_pretrained(folder)
    SiTPipeline.from_pretrained(folder, variant="fp16")
    for component in ("transformer", "vae"):
        flip_a_bit(folder / component / "diffusion_pytorch_model.safetensors")
    SiTPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match="has another SHA-256"):
        SiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "neither a folder nor a name on the Hub"),
        ("/no", "neither a folder nor a name on the Hub"),
        ("./no", "neither a folder nor a name on the Hub"),
        ("runs/no", "^'runs/no' is no folder here, and was not received from the Hub: .*; check the path or the name$"),
        ("no", "^'no' is no folder here, and was not received from the Hub: .*; check the path or the name$"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_mistyped_paths_are_named(name, message, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind is Path and name == "./no":
        pytest.skip("a Path drops the dot")
    with pytest.raises(ValueError, match=message):
        SiTPipeline.from_pretrained(kind(name))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file, not a pipeline folder; .*sit-atconv convert"):
        SiTPipeline.from_pretrained(tmp_path / "model.pt")


def test_the_folder_that_one_stands_in(tiny_pipeline, folder, monkeypatch):
    """It stays the same folder, and its name is the one that the card shows."""
    monkeypatch.chdir(folder)
    inode = os.stat(".").st_ino
    tiny_pipeline(seed=1, vae=tiny_vae(), in_channels=4).save_pretrained(".")
    assert os.stat(folder).st_ino == inode
    shutil.copytree(folder, folder.parent / "copy")
    SiTPipeline.from_pretrained(folder.parent / "copy")
    assert (folder / "README.md").read_text().count("# folder") == 1
