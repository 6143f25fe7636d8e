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


def moments(F: int = 5) -> dict[str, np.ndarray]:
    features = np.random.default_rng(0).normal(size=(30, F)).astype(np.float32)
    return {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}


def with_eigenvalue(lowest: float, F: int = 5) -> np.ndarray:
    vectors = np.linalg.qr(np.random.default_rng(1).normal(size=(F, F)))[0]
    sigma = (vectors * np.array([lowest, *range(1, F)])) @ vectors.T
    return (sigma + sigma.T) / 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sigma": with_eigenvalue(-31)}, "sigma has the negative eigenvalue -31, so it is not a covariance"),
        ({"sigma": with_eigenvalue(-0.01)}, "sigma has the negative eigenvalue -0.01"),
        ({"sigma": -np.eye(5)}, "sigma has the negative eigenvalue -1"),
        ({"sigma": np.triu(np.ones((5, 5)))}, "sigma is not symmetric"),
        ({"sigma": np.eye(5).astype(complex)}, "sigma is complex128, but must be real numbers"),
        ({"mu": np.zeros(5, complex)}, "mu is complex128, but must be real numbers"),
        ({"sigma": np.eye(5, dtype=bool)}, "sigma is bool, but must be real numbers"),
        ({"sigma": np.full((5, 5), "1")}, "sigma is <U1, but must be real numbers"),
        ({"sigma": np.diag([1, 1, 1, 1, np.nan])}, "sigma holds numbers that are not finite"),
        ({"sigma": np.diag([1, 1, 1, 1, np.inf])}, "sigma holds numbers that are not finite"),
        ({"mu": np.array([0, 0, 0, 0, np.nan])}, "mu holds numbers that are not finite"),
        ({"sigma": np.eye(4)}, r"mu is \(5,\) and sigma \(4, 4\), but must be"),
        ({"mu": np.zeros((5, 5))}, "but must be"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "but must be"),
        ({"mu_s": np.zeros(5)}, "mu_s and sigma_s belong together"),
        ({"mu_s": np.zeros(2), "sigma_s": -np.eye(2)}, "sigma_s has the negative eigenvalue -1"),
        ({"features": np.zeros((7, 4))}, r"features are \(7, 4\), but must be \(N, F\)"),
        ({"features": np.full((7, 5), np.nan)}, "features holds numbers that are not finite"),
        ({"stamp": np.array("{")}, r"its record \(stamp\) is damaged"),
        ({"stamp": np.array("[" * 100_000)}, r"its record \(stamp\) is damaged"),
        ({"stamp": np.array('{"weights": "00"}')}, r"its record \(stamp\) is damaged"),
        ({"stamp": np.array('{"extractor": "pixels", "weights": 5}')}, r"its record \(stamp\) is damaged"),
        ({"stamp": np.zeros(3)}, r"its record \(stamp\) is not text"),
    ],
)
def test_what_is_no_statistics_is_refused(tmp_path, changes, expected):
    np.savez(tmp_path / "statistics.npz", **{**moments(), **changes})
    with pytest.raises(ValueError, match=rf"^reference='.*' cannot be used: .*{expected}"):
        load_statistics(tmp_path / "statistics.npz", "pixels")


@pytest.mark.parametrize("sigma", [np.zeros((5, 5)), np.ones((5, 5)), np.diag([1e8, 1, 0, 0, -1e-3])])
def test_covariances_may_be_singular_and_rounded(tmp_path, sigma):
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(5, int), sigma=sigma)
    found = load_statistics(tmp_path / "statistics.npz", "pixels")
    np.testing.assert_array_equal(found.sigma, sigma)
    assert found.mu.dtype == found.sigma.dtype == np.float64
