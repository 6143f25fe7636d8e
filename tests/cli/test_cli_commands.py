"""The commands as a whole: help, versions, mistakes, completion, presets; answered before PyTorch is imported."""

import importlib.util
import re

import pytest
from start_up import run

import sit_atconv
from sit_atconv.cli import main
from sit_atconv.cli.commands import COMMANDS
from sit_atconv.models.presets import PRESETS


def run_command(*arguments: str) -> tuple[int, str, str]:
    return run("from sit_atconv.cli import main; main(sys.argv[1:])", *arguments, columns=100)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_answered_at_once(command):
    code, output, error = run_command(command, "--help")
    assert (code, error) == (0, "") and output.startswith(f"usage: sit-atconv {command}")
    assert max(map(len, output.splitlines())) <= 100


def test_all_commands_are_listed_and_the_version_is_printed():
    code, output, _ = run_command("--help")
    assert code == 0 and all(re.search(rf"^ +{name} ", output, flags=re.MULTILINE) for name in COMMANDS)
    assert run_command("--version") == (0, f"sit-atconv {sit_atconv.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sampel", "x"], "sit-atconv: error: there is no command sampel; did you mean sample?"),
        (["xyz"], "sit-atconv: error: there is no command xyz; choose from train, sample, "),
        (
            ["sample", "x", "--clases", "3"],
            "sit-atconv sample: error: there is no option --clases; did you mean --cl",
        ),
        (["sample", "x", "--seed", "a"], "sit-atconv sample: error: --seed 'a' must be a whole number"),
        (["sample", "x", "--guidance_scale=a"], "sit-atconv sample: error: --guidance_scale 'a' must be a number"),
        (["info", "a", "b"], "sit-atconv info: error: 'b' belongs to no option"),
        (["info", "nowhere"], "sit-atconv: error: 'nowhere' does not exist; name a pipeline folder, or a picture"),
        (["sample", "nowhere"], "sit-atconv: error: folder='nowhere' is no folder here; correct the path, or give a n"),
        (["sample", "me/a", "--solver", "eulr"], "sit-atconv: error: solver='eulr' is not one of: "),
        (["sample", "me/a", "--steps", "0"], "sit-atconv: error: num_inference_steps=0 must be a whole number"),
        (["demo", "nowhere"], "sit-atconv: error: folder='nowhere' is no folder here"),
        (["push", "nowhere", "me/a"], "sit-atconv: error: folder='nowhere' is not a pipeline folder"),
        (["convert", "nowhere.pt", "o"], "sit-atconv: error: checkpoint='nowhere.pt' does not exist"),
        (["train", "nowhere"], "sit-atconv train: error: data='nowhere' does not exist"),
        (["evaluate", "digits", "--reference", "no"], "sit-atconv evaluate: error: reference='no' does not exist"),
        (
            ["evaluate", "x", "--reference", "y", "--metrics", "fdi"],
            "sit-atconv evaluate: error: metrics='fdi'",
        ),
        (
            ["evaluate", "x", "--refrence", "y"],
            "sit-atconv evaluate: error: there is no option --refrence; did",
        ),
        (["presets", "nothing"], "sit-atconv: error: no preset has nothing in its name"),
        (["complete", "fish"], "sit-atconv complete: error: SHELL fish; choose from bash, zsh, tcsh"),
    ],
)
def test_mistakes_are_answered_at_once_in_one_line(arguments, message):
    code, output, error = run_command(*arguments)
    assert (code, output) == (2, "") and error.startswith(message) and error.count("\n") == 1


def test_presets_are_listed_with_their_costs(capsys):
    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(PRESETS) + 1]] == list(PRESETS)
    [line] = [line for line in lines if line.startswith("SiT-ATConv-XL/2 ")]
    # 637.7 M in the paper.
    assert line.split()[1:5] == ["637.66", "M", "95.8", "381.4"]
    main(["presets", "s/2", "hybrid"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("SiT")] == [
        "SiT-ATConv-S/2-Hybrid",
        "SiT-ATConv-U-S/2-Hybrid",
    ]


@pytest.mark.skipif(importlib.util.find_spec("shtab") is None, reason="needs shtab")
def test_completion_knows_commands_and_options(capsys):
    main(["complete", "bash"])
    script = capsys.readouterr().out
    assert "--reference" in script and "--guidance_scale" in script
    assert all(name in script for name in COMMANDS)
