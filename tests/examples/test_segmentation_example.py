"""examples/segmentation.py: its score, and that it learns."""

import pytest
import torch

pytest.importorskip("transformers")

import segmentation


def test_mean_iou_by_sets():
    generator = torch.Generator().manual_seed(0)
    true, predicted = (
        torch.randint(0, 8, (2, 5, 6), generator=generator) for _ in range(2)
    )  # classes 8 to 10 are absent
    ious = []
    for each in range(8):
        a, b = ({tuple(place) for place in (field == each).nonzero().tolist()} for field in (true, predicted))
        ious.append(len(a & b) / len(a | b))
    assert segmentation.mean_iou(predicted, true) == pytest.approx(sum(ious) / 8)
    assert segmentation.mean_iou(true, true) == 1


def test_guesses_know_the_ink_alone():
    true = torch.randint(0, 11, (500, 4, 4), generator=torch.Generator().manual_seed(1))
    guessed = segmentation.guesses(true, 0)
    assert torch.equal(guessed == 0, true == 0)
    assert (guessed == true)[true > 0].double().mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_segmenter_learns(capsys):
    found, chance = segmentation.run(["--device", "cpu"])
    assert found > 0.3 > 2 * chance
    assert f"mIoU {found:.3f}" in capsys.readouterr().out
