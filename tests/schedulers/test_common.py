"""What both schedulers share: their options, given by hand or in configs of any scheduler."""

import inspect
import json

import diffusers
import numpy as np
import pytest

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler

BOTH = pytest.mark.parametrize("scheduler_class", [InterpolantODEScheduler, InterpolantSDEScheduler])


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sovler="heun"), r"Scheduler has no option sovler; did you mean solver\?"),
        (dict(shift=3.0), "Scheduler has no option shift; its options are "),
        (dict(use_karras_sigmas=True), "has no option use_karras_sigmas"),
        (dict(path="linear", predictoin="noise"), r"has no option predictoin; did you mean prediction\?"),
    ],
)
def test_options_that_do_not_exist(scheduler_class, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        scheduler_class.from_config(scheduler_class().config, **options)
    scheduler_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        scheduler_class.from_pretrained(tmp_path, **options)
    with pytest.raises(TypeError):
        scheduler_class(**options)


@BOTH
@pytest.mark.parametrize("name", ["sovler", "slover", "solvers", "predictoin", "pth", "sample_epss"])
def test_a_misspelt_entry_of_a_config(name, scheduler_class):
    with pytest.raises(
        ValueError, match=f"the config of {scheduler_class.__name__} has no option {name}; did you mean"
    ):
        scheduler_class.from_config({**scheduler_class().config, name: 1})


@BOTH
def test_entries_of_other_schedulers_pass(scheduler_class):
    """Every option of every scheduler of diffusers, and of our other one, may be in a config, and is kept there."""
    others = [InterpolantODEScheduler, InterpolantSDEScheduler]
    for name in dir(diffusers):
        if name.endswith("Scheduler") and not name.startswith("Flax"):
            others.append(getattr(diffusers, name))
    own = inspect.signature(scheduler_class.__init__).parameters
    foreign = {name for other in others for name in inspect.signature(other.__init__).parameters if name not in own}
    config = {**dict.fromkeys(foreign - {"args", "kwargs"}, 0.5), "path": "gvp"}
    scheduler = scheduler_class.from_config(config)
    assert scheduler.config.path == "gvp"
    assert scheduler.config.beta_start == 0.5


@pytest.mark.parametrize("scheduler_class", [InterpolantODEScheduler, InterpolantSDEScheduler, MeanFlowScheduler])
def test_a_config_of_another_scheduler_is_taken_without_a_warning(scheduler_class, monkeypatch):
    warnings = []
    monkeypatch.setattr(diffusers.configuration_utils.logger, "warning", warnings.append)
    for other in (InterpolantODEScheduler(solver="dopri5"), InterpolantSDEScheduler(), diffusers.DDIMScheduler()):
        kept = scheduler_class.from_config(other.config).config
        assert not warnings
        assert all(kept[name] == other.config[name] for name in ("rtol", "beta_start") if name in other.config)


def test_there_and_back():
    config = InterpolantODEScheduler(path="linear", prediction="data", solver="rk4").config
    for other in (diffusers.DPMSolverMultistepScheduler, diffusers.DDIMScheduler, InterpolantSDEScheduler):
        back = InterpolantODEScheduler.from_config(other.from_config(config).config)
        assert (back.config.prediction, back.config.train_eps) == ("data", None)


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    scheduler = InterpolantODEScheduler(solver="dopri5", rtol=np.float32(0.25), sample_eps=np.float64(0.125))
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert (saved["rtol"], saved["sample_eps"]) == (0.25, 0.125)
