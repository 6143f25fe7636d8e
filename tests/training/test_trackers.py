import pytest

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.trackers import scalars, tracker_options


@pytest.mark.parametrize("tracker, name", [("wandb", "id"), ("trackio", "name")])
def test_trackers_continue_the_same_run(tmp_path, tracker, name):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    options = [
        tracker_options(TrainConfig(log_with=tracker, output_dir=str(folder)))[tracker]
        for folder in (first, first, second)
    ]
    assert options[0][name] == options[1][name] == (first / "tracker_id.txt").read_text()
    assert options[2][name] != options[0][name]
    assert options[0]["resume"] == "allow"
    assert tracker_options(TrainConfig(log_with="tensorboard", output_dir=str(first))) == {}


def test_trackers_get_numbers_alone():
    values = {"loss": None, "loss_by_time": [1.0, None], "grad_norm": 2.0}
    assert scalars(values) == {"loss_by_time/0": 1.0, "grad_norm": 2.0}
