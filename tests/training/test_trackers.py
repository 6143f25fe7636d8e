import pytest

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.trackers import log_picture, scalars, tracker_options


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


def test_tensorboard_forgets_the_steps_that_are_repeated(tmp_path):
    """Otherwise, its curves run back and forth."""
    config = TrainConfig(log_with="tensorboard", output_dir=str(tmp_path))
    assert tracker_options(config, 40) == {"tensorboard": {"purge_step": 41}}  # purges this step and later ones
    assert tracker_options(config, 0) == {}


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(log_with="tensorboard", output_dir=str(tmp_path))
    for start, steps in ((0, range(1, 7)), (4, range(5, 9))):  # killed after step 6, continued from step 4
        options = tracker_options(config, start).get("tensorboard", {})
        tracker = TensorBoardTracker("tensorboard", str(tmp_path), **options)
        tracker.start()
        for step in steps:
            tracker.log({"loss": float(step + 100 * start)}, step=step)
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))


def test_tensorboard_shows_the_sample_grids(tmp_path):
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "grid.png")
    accelerator = Accelerator(log_with="tensorboard", project_dir=str(tmp_path), cpu=True)
    accelerator.init_trackers("tensorboard")
    log_picture(accelerator, "samples", tmp_path / "grid.png", step=7)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [image] = events.Images("samples")
    assert (image.step, image.width, image.height) == (7, 30, 20)


def test_wandb_gets_the_sample_grids_as_a_list_of_pictures(tmp_path):
    from PIL import Image

    class Tracker:
        name = "wandb"

        def log_images(self, values, step):
            self.logged = values["samples"], step

    class Accelerated:
        trackers = (Tracker(),)

    Image.new("L", (3, 2), 9).save(tmp_path / "grid.png")
    log_picture(Accelerated, "samples", tmp_path / "grid.png", step=4)
    pictures, step = Accelerated.trackers[0].logged
    assert step == 4 and [picture.shape for picture in pictures] == [(2, 3, 3)]
