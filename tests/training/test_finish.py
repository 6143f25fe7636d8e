import shutil

from sit_atconv.data import DigitsDataset
from sit_atconv.training import finish
from sit_atconv.training.build import build_pipeline, build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.finish import save_pipeline


def test_new_pipeline_takes_the_place_of_the_old_one_at_once(tmp_path, monkeypatch):
    """A kill at any of its steps finds a whole folder, or none."""
    config = TrainConfig(model={"num_layers": 1})
    pipeline = build_pipeline(config, build_transformer(config, DigitsDataset(), None), None, DigitsDataset().classes)
    folder, removed, synced = tmp_path / "pipeline", [], []
    save_pipeline(pipeline, folder)
    whole = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    remove = shutil.rmtree

    def removing(path, **options):
        removed.append(path.name)
        assert not path.exists() or sorted(file.relative_to(folder) for file in folder.rglob("*")) == whole
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", removing)
    monkeypatch.setattr(finish, "sync", synced.append)
    save_pipeline(pipeline, folder)
    assert "pipeline" not in removed
    assert {path.name for path in synced} >= {path.name for path in whole}
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
