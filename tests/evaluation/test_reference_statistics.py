"""Files of statistics: what is saved is what is loaded, with its record; files from elsewhere have none."""

import numpy as np
import pytest

from sit_atconv.evaluation.reference_statistics import ReferenceStatistics, load_statistics, save_statistics


def test_what_is_saved_is_what_is_loaded(tmp_path):
    record = {"extractor": "inception", "num_images": 7}
    saved = ReferenceStatistics(np.arange(3.0), np.eye(3), features=np.ones((7, 3)), record=record)
    save_statistics(tmp_path / "deeper" / "statistics.npz", saved)
    with np.load(tmp_path / "deeper" / "statistics.npz") as arrays:
        assert set(arrays) == {"mu", "sigma", "features", "stamp"}  # the names of the file format
    found = load_statistics(tmp_path / "deeper" / "statistics.npz")
    for name in ("mu", "sigma", "features"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
    assert found.mu_s is None and found.record == record
    with pytest.raises(ValueError, match="exists"):
        save_statistics(tmp_path / "deeper" / "statistics.npz", saved)
    with pytest.raises(ValueError, match=r"reference_extractor='dinov2': .* says that inception made it"):
        load_statistics(tmp_path / "deeper" / "statistics.npz", "dinov2")


def test_the_extractor_of_files_from_elsewhere(tmp_path):
    moments = {"mu": np.zeros(2), "sigma": np.eye(2)}
    np.savez(tmp_path / "plain.npz", **moments)
    np.savez(tmp_path / "adm.npz", **moments, mu_s=np.zeros(3), sigma_s=np.eye(3))
    assert load_statistics(tmp_path / "plain.npz").record == {"extractor": None, "assumed": False}
    assert load_statistics(tmp_path / "plain.npz", "dinov2").record == {"extractor": "dinov2", "assumed": False}
    assert load_statistics(tmp_path / "adm.npz").record == {"extractor": "inception-adm", "assumed": True}
