"""Records: the hash of a pipeline folder covers what makes images, and older records mean what they meant."""

import shutil

import pytest

from sit_atconv.evaluation.records import describe_pipeline, folder_sha256, in_full


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


def test_records_from_before_an_option_existed_have_its_default(tiny_pipeline):
    record = {"seed": 0, "dtype": "float32", **describe_pipeline(tiny_pipeline())}
    config = record["scheduler"]["config"]
    older = {"seed": 0, "scheduler": {**record["scheduler"], "config": dict(config)}, "mixer": record["mixer"]}
    del older["scheduler"]["config"]["noise_scale"]
    assert in_full(older) == in_full(record) == record
    other = {**older, "scheduler": {**older["scheduler"], "config": {**config, "noise_scale": 2.0}}}
    assert in_full(other)["scheduler"]["config"]["noise_scale"] == 2.0
    for foreign in ({"class": "DDIMScheduler", "config": {"eta": 0.0}}, {"class": 3, "config": {}}, None, "midpoint"):
        assert in_full({"scheduler": foreign})["scheduler"] == foreign
