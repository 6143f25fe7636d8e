"""examples/detection.py: its data set and its scores, and that it learns."""

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

import detection

from sit_atconv.data import DigitsDataset, digit_scene, hold_out


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    detection.write_digits(folder, dict(train=3, val=12))
    return folder


def test_boxes_survive_cocos_format(digits_folder):
    """What CocoDetection reads are the scenes that were written, of held-out digits in the second part."""
    dataset = detection.open_part(digits_folder, "val")
    held_out, generator = hold_out(DigitsDataset(), 0.2)[1], np.random.default_rng(1)
    assert len(dataset) == 12
    for picture, annotations in dataset:
        scene, target = digit_scene(held_out, generator), detection.to_target(annotations)
        assert np.array_equal(np.asarray(picture), scene.image)
        assert torch.equal(target["boxes"], torch.from_numpy(scene.boxes).float())
        assert torch.equal(target["labels"], torch.from_numpy(scene.labels) + 1)


def test_crowds_and_empty_boxes_are_left_out():
    annotations = [dict(bbox=[1, 2, 3, 4], category_id=5, iscrowd=0), dict(bbox=[1, 2, 3, 4], category_id=6, iscrowd=1)]
    annotations.append(dict(bbox=[1, 2, 0, 4], category_id=7, iscrowd=0))
    target = detection.to_target(annotations)
    assert target["boxes"].tolist() == [[1, 2, 4, 6]] and target["labels"].tolist() == [5]
    assert detection.to_target([])["boxes"].shape == (0, 4)


def test_average_precision_of_known_results(digits_folder):
    """True boxes have 1, boxes moved by half of their width 0, and guessed classes little."""
    dataset = detection.open_part(digits_folder, "val")
    true = [{**each, "score": 1.0} for each in dataset.coco.anns.values()]
    assert detection.average_precision(dataset, true) == (1, 1)
    moved = [{**each, "bbox": [each["bbox"][0] + each["bbox"][2] / 2, *each["bbox"][1:]]} for each in true]
    assert detection.average_precision(dataset, moved) == (0, 0)
    assert detection.average_precision(dataset, []) == (0, 0)
    assert detection.average_precision(dataset, detection.guesses(dataset, 0))[0] < 0.3


@pytest.mark.slow
def test_detector_learns(capsys):
    found, chance = detection.run(["--device", "cpu", "--steps", "130"])
    assert found > 0.06 > 2 * chance
    assert f"AP {found:.3f}" in capsys.readouterr().out
