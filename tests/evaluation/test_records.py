"""Records: the hash of a pipeline folder covers what makes images."""

import shutil

import pytest

from sit_atconv.evaluation.records import folder_sha256


@pytest.fixture(scope="module")
def pipeline_folder(tiny_pipeline, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def test_model_hash_covers_what_makes_images(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
    before = folder_sha256(folder)
    (folder / "README.md").write_text("edited")
    (folder / "sample.png").write_bytes(b"another")
    assert folder_sha256(folder) == before
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("midpoint", "euler"))
    assert folder_sha256(folder) != before


def test_model_hash_covers_names_and_leaves_out_hidden_files(tmp_path):
    for name in ("a.json", "b.json", ".cache/c.json", ".d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = folder_sha256(tmp_path)
    (tmp_path / ".cache" / "c.json").write_text("another")
    (tmp_path / ".d.json").unlink()
    assert folder_sha256(tmp_path) == before
    (tmp_path / "b.json").rename(tmp_path / "c.json")  # the same contents in the same order
    assert folder_sha256(tmp_path) != before
