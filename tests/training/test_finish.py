import shutil

import pytest
from hub_stand_in import COMMIT
from PIL import Image

from sit_atconv.data import DigitsDataset
from sit_atconv.sharing import card
from sit_atconv.training import finish
from sit_atconv.training.build import build_pipeline, build_transformer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.finish import print_next_steps, save_pipeline, upload


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


@pytest.mark.slow
def test_the_folder_of_a_training_is_complete_even_where_the_upload_fails(online, tiny_pipeline, tmp_path):
    folder, grid = tmp_path / "pipeline", tmp_path / "step.png"
    Image.new("RGB", (4, 4)).save(grid)
    save_pipeline(tiny_pipeline(), folder, {"seed": 2}, tmp_path / "none.png")
    assert "![Samples]" not in (folder / "README.md").read_text()
    save_pipeline(tiny_pipeline(), folder, {"seed": 3}, grid)
    assert upload(folder, "me/run") == f"{online.url}/me/run/commit/{COMMIT}"
    assert "seed: 3" in online.repositories["me/run"]["README.md"].decode()
    assert online.repositories["me/run"]["samples.png"] == grid.read_bytes()
    save_pipeline(tiny_pipeline(), folder, {"seed": 4}, grid)
    with pytest.raises(ValueError, match=r"complete; upload it with: sit-atconv push .*pipeline no one"):
        upload(folder, "no one")
    text = (folder / "README.md").read_text()
    assert "seed: 4" in text
    assert "# pipeline\n" in text


def test_the_card_of_a_training_is_written_once(tiny_pipeline, tmp_path, monkeypatch):
    written = []
    make = card.model_card
    monkeypatch.setattr(card, "model_card", lambda *arguments: written.append(arguments) or make(*arguments))
    save_pipeline(tiny_pipeline(), tmp_path / "pipeline", {"seed": 4})
    assert len(written) == 1


def test_the_next_steps_leave_out_what_the_training_left_out(capsys, tmp_path):
    print_next_steps(DigitsDataset(), tmp_path)
    assert "--max_broken_images" not in capsys.readouterr().out
    print_next_steps(DigitsDataset(), tmp_path, max_broken_images=10)
    commands = capsys.readouterr().out.splitlines()
    assert [line.endswith(" --max_broken_images 10") for line in commands if "--reference" in line] == [True, True]
