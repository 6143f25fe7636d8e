"""Help and mistakes are answered before anything that takes seconds is imported."""

from pathlib import Path

import pytest
from start_up import REPO, run

import sit_atconv

SCRIPTS = sorted(str(path.relative_to(REPO)) for folder in ("train", "eval") for path in (REPO / folder).glob("*.py"))


def run_script(script: str, *arguments: str) -> tuple[int, str, str]:
    return run(f"sys.argv[0] = {script!r}; runpy.run_path({script!r}, run_name='__main__')", *arguments)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_answer_at_once(script):
    code, output, _ = run_script(script, "--help")
    assert code == 0 and "--" in output
    assert output.count("\n") <= 100 and max(map(len, output.splitlines())) <= 120
    code, _, error = run_script(script, "--bogus", "1")
    assert code == 2 and f"{Path(script).name}: error: " in error.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "SiT-ATConv-s/2"], "did you mean SiT-ATConv-S/2?"),
        (["--mixer", "attension"], "mixer='attension' is not one of: atconv, attention, hybrid"),
        (["--max_steps", "0"], "max_steps=0 must be a whole number of at least 1"),
        (["--ema_decay", "1.5"], "ema_decay=1.5 must be in [0, 1)"),
        (["--weighting", "nun"], "weighting='nun' is not one of"),
    ],
)
def test_values_of_training_options_are_checked_at_once(arguments, message):
    code, output, error = run_script("train/train_sit.py", *arguments)
    assert (code, output) == (2, "") and error.startswith("train_sit.py: error: ") and message in error
    assert error.count("\n") == 1


def test_importing_the_package_is_cheap_and_its_names_are_there():
    assert run("import sit_atconv; print(sit_atconv.__version__)") == (0, f"{sit_atconv.__version__}\n", "")
    assert set(sit_atconv.__all__) == {*sit_atconv._PUBLIC, "__version__"}
    for name in sit_atconv.__all__:
        assert getattr(sit_atconv, name) is not None
