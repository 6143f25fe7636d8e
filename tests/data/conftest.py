import json

import pytest
from pictures import COLOURS, png, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Indices and converted data sets go into a folder of the test."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    try:
        import datasets
    except ImportError:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture
def shards(tmp_path):
    """Three shards of two samples, with a class, a caption and a JSON file each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        members = []
        for i in (2 * shard, 2 * shard + 1):
            details = json.dumps({"kind": ["warm", "cold"][i % 2]}).encode()
            members += [(f"a/{i}.json", details), (f"a/{i}.png", png(COLOURS[i])), (f"a/{i}.cls", str(i // 2).encode())]
        write_tar(folder / f"train-{shard:03d}.tar", [*members, ("README", b"not a sample")])
    return folder


@pytest.fixture
def database(tmp_path):
    """Function: entries -> an LMDB of them."""
    lmdb = pytest.importorskip("lmdb")
    made = []

    def write(entries: dict[bytes, bytes], subdir: bool = True):
        path = tmp_path / f"images-{len(made)}{'' if subdir else '.lmdb'}"
        made.append(path)
        with lmdb.open(str(path), map_size=2**22, subdir=subdir) as environment, environment.begin(write=True) as txn:
            for key, value in entries.items():
                txn.put(key, value)
        return path

    return write
