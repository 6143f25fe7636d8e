"""Class names and ids as people give them."""

import numpy as np
import pytest
import torch

from sit_atconv.utils.class_labels import distinct_names, ids_by_name, labels_from_words, parse_labels


def test_every_unambiguous_name_of_a_class_is_known():
    names = ids_by_name(
        {"0": "goldfish, Carassius auratus", "1": "crane", "2": "crane, machine", "3": "crane bird, bird"}
    )
    assert names == {
        "goldfish": 0,
        "Carassius auratus": 0,
        "goldfish, Carassius auratus": 0,
        "crane": 1,  # the whole text of class 1 takes precedence over a part of class 2
        "machine": 2,
        "crane, machine": 2,
        "crane bird": 3,
        "bird": 3,
        "crane bird, bird": 3,
    }


def test_a_name_of_several_classes_names_none():
    assert ids_by_name({"0": "bat, animal", "1": "bat, club"}).keys() == {"animal", "club", "bat, animal", "bat, club"}
    assert "bat" not in ids_by_name({"0": "bat", "1": "bat"})
    assert ids_by_name({"0": "", "1": "a,"}) == {"a": 1, "a,": 1}


def test_classes_of_one_name_are_told_apart_by_their_ids():
    names = {"0": "crane, Grus", "1": "crane", "2": "owl"}
    assert distinct_names(names, [2, 0, 1, 0]) == ["owl", "crane (0)", "crane (1)", "crane (0)"]
    assert distinct_names(names, [2, 1, 1]) == ["owl", "crane", "crane"]
    assert distinct_names(None, [7, 3]) == ["7", "3"]


@pytest.mark.parametrize("word", ["9" * 5000, "--1", "²", "1e3", ""])
def test_words_that_are_no_ids_are_names(word):
    assert labels_from_words([word, "3", "-1"], {}) == [word, 3, -1]


@pytest.mark.parametrize(
    "labels", [[1, 0], ["b", "a"], ("b", 0), range(1, -1, -1), torch.tensor([1, 0]), np.array([1, 0])], ids=str
)
def test_labels_are_ids_or_names(labels):
    assert parse_labels(labels, {"a": 0, "b": 1}, 2) == [1, 0]


@pytest.mark.parametrize("label", [1, "b", torch.tensor(1), np.int64(1)], ids=str)
def test_one_label_is_a_list_of_one(label):
    assert parse_labels(label, {"a": 0, "b": 1}, 2) == [1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["c"], "class_labels: unknown name 'c'; known names: a, b"),
        (2, "class_labels: 2 must be between 0 and 1"),
        (-1, "class_labels: -1 must be between 0 and 1"),
        (True, "class_labels: True is neither a whole number nor a name"),
        (1.0, "class_labels: 1.0 is neither"),
        ([], "class_labels is empty"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_used(labels, message):
    with pytest.raises(ValueError, match=message):
        parse_labels(labels, {"a": 0, "b": 1}, 2)
