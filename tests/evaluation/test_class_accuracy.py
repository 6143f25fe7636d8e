"""The shares that are reported for samples whose classes are known."""

import numpy as np
import pytest
from sklearn.svm import SVC

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.data import DigitsDataset
from sit_atconv.evaluation.class_accuracy import class_accuracy, fit_classifier

GENERATE = "sit_atconv.evaluation.class_accuracy.generate"


@pytest.fixture(scope="module")
def digits() -> DigitsDataset:
    return DigitsDataset()


@pytest.fixture(scope="module")
def digit_pipeline(tiny_transformer):
    """Function: a small untrained pipeline of 8×8 grey images, ten classes."""

    def build(names="0123456789", **overrides) -> SiTPipeline:
        transformer = tiny_transformer(**{"in_channels": 1, "num_classes": 10, **overrides})
        pipeline = SiTPipeline(transformer, InterpolantODEScheduler(), id2label=dict(enumerate(names)))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


def real_images(dataset, wanted):
    """In place of `generate`: real images of the class `wanted(label)`."""

    def draw(pipeline, labels, options):
        rng = np.random.default_rng(options.seed)
        for start in range(0, len(labels), options.batch_size):
            batch = labels[start : start + options.batch_size]
            picks = [rng.choice(np.flatnonzero(dataset.labels == wanted(label))) for label in batch]
            yield np.stack([dataset.image(i) for i in picks])

    return draw


def test_shares_of_known_samples(digits, digit_pipeline, monkeypatch):
    pipeline = digit_pipeline()
    monkeypatch.setattr(GENERATE, real_images(digits, lambda label: label))
    report = class_accuracy(pipeline, digits, samples_per_class=20, batch_size=64)
    assert report["class_accuracy"] > 0.98
    assert 0.97 < report["real_accuracy"] < 1  # on images that it was fitted to, it is 0.997 or more

    monkeypatch.setattr(GENERATE, real_images(digits, lambda label: 4 if label == 3 else label))
    report = class_accuracy(pipeline, digits, samples_per_class=20, batch_size=64)
    assert report["per_class"]["3"] == 0
    assert all(share > 0.9 for name, share in report["per_class"].items() if name != "3")
    assert report["class_accuracy"] == pytest.approx(np.mean(list(report["per_class"].values())))

    monkeypatch.setattr(GENERATE, real_images(digits, lambda label: (label + 1) % 10))
    assert class_accuracy(pipeline, digits, samples_per_class=20)["class_accuracy"] < 0.02


def test_held_out_accuracy_is_of_images_that_were_not_fitted(digits, monkeypatch):
    seen = []
    fit, score = SVC.fit, SVC.score
    monkeypatch.setattr(SVC, "fit", lambda self, x, y: (seen.append(("fit", x)), fit(self, x, y))[1])
    monkeypatch.setattr(SVC, "score", lambda self, x, y: (seen.append(("score", x)), score(self, x, y))[1])
    fit_classifier(digits)
    assert [(what, len(x)) for what, x in seen] == [("fit", 1347), ("score", 450), ("fit", 1797)]
    fitted, held_out = ({row.tobytes() for row in x} for _, x in seen[:2])
    assert not fitted & held_out
