import dataclasses
import re

import pytest
import torch
import yaml

from sit_atconv import SiTTransformer2DModel
from sit_atconv.data import DigitsDataset
from sit_atconv.training.build import build_transformer
from sit_atconv.training.command_line import parse_arguments
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.stored_config import load_config, resolve_config


def test_preset_and_options_are_unchanged_without_init_from():
    config = TrainConfig()
    assert (config.preset, config.mixer, config.output_dir) == ("SiT-ATConv-Nano/2", "atconv", "runs/digits-atconv")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2", sample_size=8, in_channels=1, num_classes=10)
    built = build_transformer(config, DigitsDataset(), None).state_dict()
    assert all(torch.equal(built[name], value) for name, value in expected.state_dict().items())


def test_a_command_that_resumes_continues_by_itself():
    assert TrainConfig(resume="auto").continuation == "the same command"
    assert TrainConfig().continuation == "the same command and --resume latest"


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_missing_tracker_is_named_with_its_installation(tracker, monkeypatch):
    config = TrainConfig(log_with=tracker)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install {tracker}"):
        resolve_config(config)


@pytest.mark.parametrize("name", ["a b", "user/name/more", "-x", "a/b--c", "x" * 100, ""])
def test_a_name_that_the_hub_would_refuse_is_refused_before_training(name):
    with pytest.raises(ValueError, match=r"^push_to_hub=.* is no name on the Hub: "):
        resolve_config(TrainConfig(push_to_hub=name, log_with="none"))
    assert resolve_config(TrainConfig(push_to_hub="user/name", log_with="none")).push_to_hub == "user/name"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 1e300}, "learning_rate=1e.300 is beyond 3.4e"),
        ({"weight_decay": 1e300}, "weight_decay=1e.300 is beyond 3.4e"),
        ({"num_workers": 10**24}, "num_workers=1(0{24}) is more than 1024"),
        ({"num_workers": 1.5}, "num_workers=1.5 must be a whole number of at least 0"),
        ({"sample_steps": 10**24}, "sample_steps=1(0{24}) is more than 1000000"),
        ({"max_steps": 10**24}, "max_steps=1(0{24}) is more than 1000000000"),
        ({"log_with": 0}, "log_with=0 is not one of: tensorboard, wandb, trackio, none"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**options)


@pytest.mark.parametrize("patch_size", [0, -1, 1.5, True, "2", None])
def test_a_patch_size_that_divides_nothing(patch_size):
    with pytest.raises(ValueError, match=rf"^model\.patch_size={patch_size!r} must be a whole number of at least 1$"):
        TrainConfig(model={"patch_size": patch_size}, log_with="none")


EARLIER = """
data: photos?label=none
image_size: 64
horizontal_flip: true
num_workers: 2
max_broken_images: 10
vae: elsewhere/pipeline
init_from: elsewhere/pipeline
preset: null
mixer: null
model: {class_dropout_prob: 0.2}
path: gvp
prediction: velocity
weighting: none
time_sampling: logit-normal
time_shift: 1.0
max_steps: 5000
batch_size: 32
gradient_accumulation_steps: 1
learning_rate: 0.0001
lr_warmup_steps: 100
lr_schedule: constant
weight_decay: 0.0
max_grad_norm: null
max_skipped_steps: 20
ema_decay: [0.999, 0.9999]
ema_stds: [0.05, 0.1]
ema_snapshot_every: 10000
repa: null
repa_weights: pretrained
repa_coefficient: 0.5
repa_depth: 8
mixed_precision: bf16
gradient_checkpointing: false
compile: false
seed: 0
output_dir: runs/photos-finetuned
resume: null
dry_run: false
log_with: wandb
log_every: 50
sample_every: 500
sample_guidance_scale: 1.0
sample_steps: 25
checkpoint_every: 500
keep_checkpoints: 10
keep_every: null
push_to_hub: null
"""  # as written before the options were grouped


def test_config_of_an_earlier_run_opens_anywhere(tmp_path, monkeypatch):
    """Its pipeline and data are somewhere else, and its tracker is not installed: nothing of this is looked at."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: pytest.fail("looked for a package"))
    (tmp_path / "config.yaml").write_text(EARLIER)
    saved = yaml.safe_load(EARLIER)
    later = {name: value for name, value in dataclasses.asdict(TrainConfig()).items() if name not in saved}
    assert {"objective", "meanflow_share"} <= later.keys()
    assert dataclasses.asdict(load_config(tmp_path)) == {**saved, **later}
    younger = EARLIER.replace("time_shift: 1.0\n", "")
    (tmp_path / "config.yaml").write_text(younger)
    assert dataclasses.asdict(load_config(tmp_path)) == {**saved, **later}


def test_constructing_a_config_reads_nothing(tmp_path, monkeypatch):
    config = TrainConfig(init_from=str(tmp_path / "nowhere"))
    assert (config.vae, config.preset, config.output_dir) == (None, None, "runs/digits-finetuned")
    assert dataclasses.replace(config) == config


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (dict(), "digits-atconv"),
        (dict(mixer="attention", objective="meanflow"), "digits-attention-meanflow"),
        (dict(init_from="runs/flow"), "digits-finetuned"),
        (dict(init_from="runs/flow", objective="meanflow"), "digits-meanflow"),
        (dict(model={"num_layers": 2}, mixer=["atconv", "attention"]), "digits-mixed"),
    ],
)
def test_default_run_folder(options, folder):
    assert TrainConfig(**options).output_dir == f"runs/{folder}"


@pytest.mark.parametrize(("objective", "steps"), [("flow", 25), ("meanflow", 2)])
def test_sample_grids_take_the_steps_that_the_objective_needs(objective, steps):
    assert TrainConfig(objective=objective).sample_steps == steps
    assert TrainConfig(objective=objective, sample_steps=7).sample_steps == 7


def test_groups_are_those_of_the_help(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    sections = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    shown = {
        title: re.findall(r"^  --(\w+)", text, flags=re.MULTILINE)
        for title, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    assert shown.pop("Options") == ["config", "print_config"]
    assert list(shown) == [
        "Data",
        "Model",
        "Objective",
        "Representation alignment",
        "Teacher and graft",
        "MeanFlow, with --objective meanflow",
        "Adapter",
        "Optimizer",
        "Averages of the weights",
        "Precision and memory",
        "Run folder",
        "Logging",
    ]
    names = [name for group in shown.values() for name in group]
    assert names == [field.name for field in dataclasses.fields(TrainConfig)]
    assert len(names) == 74


def parse(tmp_path, text: str, *arguments: str) -> TrainConfig:
    (tmp_path / "options.yaml").write_text(text)
    return parse_arguments([*arguments, "--config", str(tmp_path / "options.yaml")])


def test_command_line_takes_precedence_wherever_the_file_stands(tmp_path):
    text = "seed: 7\nbatch_size: 8\nmodel: {num_layers: 2, class_dropout_prob: 0.3}\n"
    options = ["--seed", "5", "--model.num_layers", "3", "--dry_run"]
    file = str(tmp_path / "options.yaml")
    parsed = [
        parse(tmp_path, text, *options),
        parse_arguments(["--config", file, *options]),
        parse_arguments([*options[:2], f"--config={file}", *options[2:]]),
    ]
    assert parsed == [parsed[0]] * 3
    assert (parsed[0].seed, parsed[0].batch_size, parsed[0].dry_run) == (5, 8, True)
    assert parsed[0].model == {"num_layers": 3, "class_dropout_prob": 0.3}


@pytest.mark.parametrize("word", ["no", "off", "false", "'no'"])
def test_precision_no_is_not_a_boolean(tmp_path, word):
    if word in ("no", "off", "false"):
        assert parse(tmp_path, f"log_with: {word}\n").log_with == "none"
    assert parse(tmp_path, f"mixed_precision: {word}\n").mixed_precision == "no"
    assert TrainConfig(mixed_precision=False, log_with=False) == TrainConfig(mixed_precision="no", log_with="none")


@pytest.mark.parametrize(
    "name",
    ["learning_rate", "time_shift", "repa_coefficient", "max_grad_norm", "weight_decay", "sample_guidance_scale"],
)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"options\.yaml:1: {name}={value.replace('.', '')} must be a number"):
        parse(tmp_path, f"{name}: {value}\n")


OPTIONAL = {"image_size", "vae", "init_from", "preset", "mixer", "repa", "max_grad_norm", "mixed_precision"}
OPTIONAL |= {"output_dir", "resume", "keep_every", "push_to_hub", "log_with", "sample_steps"}
OPTIONAL |= {
    "teacher",
    "meanflow_guidance_mix",
    "repa_spatial_norm",
    "repa_steps",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
}


@pytest.mark.parametrize("name", [each.name for each in dataclasses.fields(TrainConfig)])
def test_null_only_where_it_has_a_meaning(tmp_path, name):
    if name in OPTIONAL:
        parse(tmp_path, f"{name}: null\n")
    else:
        with pytest.raises(
            ValueError, match=rf"options\.yaml:1: {name}=null is no value; give one, or leave {name} out"
        ):
            parse(tmp_path, f"{name}: null\n")


def test_home_folder_in_files_and_options(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for folder in ("photos", "vae", "p/transformer"):
        (home / folder).mkdir(parents=True)
    (home / "p" / "transformer" / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(home))
    config = parse(tmp_path, "data: ~/photos\nvae: ~/vae\noutput_dir: ~/run\nrepa_weights: ~/w.pt\n", "--init_from=~/p")
    paths = (config.data, config.vae, config.output_dir, config.repa_weights, config.init_from)
    assert paths == tuple(f"{home}/{name}" for name in ("photos", "vae", "run", "w.pt", "p"))
