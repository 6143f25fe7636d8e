"""The configs that are shipped build what their heads say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import train_sit
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from diffusers import AutoencoderKL
from PIL import Image

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.data import open_dataset
from sit_atconv.models.costs import closed_form_macs
from sit_atconv.models.vae import load_vae
from sit_atconv.training.build import build_transformer
from sit_atconv.training.stored_config import resolve_config

CONFIGS = Path(train_sit.__file__).with_name("configs")
RECIPES = sorted(
    set(CONFIGS.glob("*.yaml")) - {*CONFIGS.glob("attnet_*.yaml"), *CONFIGS.glob("graft*.yaml")},
    key=lambda path: path.name,
)
IMAGENET = sorted(CONFIGS.glob("imagenet*.yaml"), key=lambda path: path.name)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """256 pictures in two classes, a small VAE with the factor and channels of Stable Diffusion's, and a pipeline."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for i in range(256):
        file = folder / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(file)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        latent_channels=4,
    )
    vae.save_pretrained(folder / "vae")
    transformer = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2", sample_size=32, in_channels=4, num_classes=3)
    pipeline = SiTPipeline(transformer, InterpolantODEScheduler(), vae, id2label=dict(enumerate("abc")))
    pipeline.save_pretrained(folder / "pipeline")
    return folder


def arguments(recipe: Path, sources: Path, *options: str) -> list[str]:
    given = ["--vae", str(sources / "vae")] if "\nvae:" in recipe.read_text() else []
    if "--init_from" in recipe.read_text():
        given = ["--init_from", str(sources / "pipeline")]
    if "\nimage_size:" not in recipe.read_text():
        given += ["--image_size", "256"]
    return ["--config", str(recipe), "--data", str(sources / "photos"), *given, *options]


def test_every_size_resolution_and_mixer_is_there():
    names = {path.stem for path in IMAGENET}
    assert names == {f"imagenet{px}_{size}" for px in (256, 512) for size in ("s", "b", "l", "xl")}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(recipe, sources):
    config = resolve_config(train_sit.parse_arguments(arguments(recipe, sources)))
    dataset = open_dataset(config.data, config.image_size)
    vae = None if config.vae is None else load_vae(config.vae)
    with torch.device("cpu" if config.init_from else "meta"):
        transformer = build_transformer(config, dataset, vae)
    assert transformer.config.mixer == "atconv"
    assert f"--config train/configs/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("recipe", IMAGENET, ids=lambda path: path.stem)
@pytest.mark.parametrize("label, mixer", [("ATConv", "atconv"), ("attention", "attention")])
def test_paper_settings_and_the_costs_of_the_head(recipe, label, mixer, sources):
    config = train_sit.parse_arguments(arguments(recipe, sources, "--mixer", mixer))
    assert (config.batch_size, config.learning_rate, config.weight_decay) == (256, 1e-4, 0.0)
    assert (config.ema_decay, config.max_steps, config.lr_schedule) == (0.9999, 400_000, "constant")
    assert config.max_grad_norm is None
    size = config.image_size // 8
    with torch.device("meta"):
        model = SiTTransformer2DModel.from_preset(config.preset, mixer=mixer, sample_size=size)
    macs = closed_form_macs(model.config, size, size)
    row = re.search(rf"#   {label} +([\d.]+) M +([\d.]+) GMACs +([\d.]+) EFLOP +about +(\d+) h", recipe.read_text())
    parameters, gmacs, exaflop, hours = map(float, row.groups())
    assert parameters == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.05)
    assert gmacs == pytest.approx(macs / 1e9, abs=0.005)
    assert exaflop == pytest.approx(2 * 3 * macs * 256 * 400_000 / 1e18, abs=0.05)
    assert hours == pytest.approx(exaflop * 1e18 / (8 * 0.4 * 312e12) / 3600, abs=0.55)


@pytest.mark.parametrize("recipe", IMAGENET, ids=lambda path: path.stem)
def test_the_head_encodes_first_and_says_what_that_costs(recipe):
    head = recipe.read_text()
    pixels = int(re.search(r"--image_size (\d+)", head).group(1))
    assert head.index("train/encode_latents.py") < head.index("train/train_sit.py")
    assert re.search(r"--output_dir (\S+)", head).group(1) == re.search(r"--data (\S+-latents)", head).group(1)
    text = " ".join(head.replace("#", "").split())
    gmacs, exaflop, hours, gigabytes = map(
        float,
        re.search(r"about (\d+) GMACs are ([\d.]+) EFLOP, about ([\d.]+) h .* take (\d+) GB of disk", text).groups(),
    )
    encoded = 2 * 1_281_167  # and mirrored
    assert f"image_size: {pixels}\n" in head
    assert exaflop == pytest.approx(2 * gmacs * 1e9 * encoded / 1e18, abs=0.05)
    assert hours == pytest.approx(2 * gmacs * 1e9 * encoded / (8 * 0.4 * 156e12) / 3600, abs=0.05)
    assert gigabytes == pytest.approx(encoded * 2 * 4 * 4 * (pixels // 8) ** 2 / 1e9, abs=0.5)


def dry_run(recipe: Path, sources: Path, *options: str) -> None:
    """The recipe with one narrow block, that it takes no time."""
    small = ["--model.num_layers", "1", "--model.attention_head_dim", "16"]
    small = [] if "--init_from" in recipe.read_text() else small
    options = ["--dry_run", "true", "--mixed_precision", "no", "--num_workers", "0", *small, *options]
    train_sit.main(arguments(recipe, sources, *options))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_dry_run_takes_a_step_and_writes_nothing(recipe, sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry_run(recipe, sources)
    config = yaml.safe_load(recipe.read_text())
    images = config.get("gradient_accumulation_steps", 1)
    printed = capsys.readouterr().out
    assert f"256 images of 2 classes, {config.get('image_size', 256)}² pixels" in printed
    assert f"{config['max_steps']:,} steps" in printed
    assert f"one step with {images} image" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["faces256", "folder_latents", "folder_pixels", "finetune_folder"])
def test_own_pictures_need_no_classes(name, sources, capsys):
    dry_run(CONFIGS / f"{name}.yaml", sources, "--data", f"{sources / 'photos'}?label=none")
    printed = capsys.readouterr().out
    assert "256 images without classes" in printed
    assert "one step with 1 image" in printed


def test_dry_run_finds_what_is_wrong(sources, capsys):
    with pytest.raises(SystemExit):
        train_sit.main(arguments(CONFIGS / "imagenet256_s.yaml", sources, "--dry_run", "true", "--batch_size", "257"))
    assert "batch_size=257 exceeds the 256 images" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("accelerate/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_understood(file, monkeypatch):
    loaded = load_config_from_file(str(file))
    assert loaded.num_processes == 8
    args = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    args, defaults, _ = _validate_launch_command(args)
    assert args.num_processes == 8
    assert defaults.mixed_precision == "bf16"
    if "fsdp" in file.stem:
        assert args.use_fsdp
        assert int(args.fsdp_version) == 2
        assert args.fsdp_transformer_layer_cls_to_wrap == "SiTBlock"
    else:
        assert args.multi_gpu
