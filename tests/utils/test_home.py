"""A leading ~ is the home folder, wherever a path is given."""

from pathlib import Path

import pytest

from sit_atconv.utils.home import expand_home


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("value", "expanded"),
    [
        ("~", "/home/me"),
        ("~/photos", "/home/me/photos"),
        ("~/shards/*.tar?label=none", "/home/me/shards/*.tar?label=none"),
        ("latents:~/latents", "/home/me/latents".join(("latents:", ""))),
        ("torchscript:~/net.pt@64", "torchscript:/home/me/net.pt@64"),
        (Path("~/photos"), Path("/home/me/photos")),
        (["~/a", 1, None], ["/home/me/a", 1, None]),
        (("~/a", 0.5), ("/home/me/a", 0.5)),
        ({"train": {"data": "~/a", "batch_size": 8}}, {"train": {"data": "/home/me/a", "batch_size": 8}}),
    ],
)
def test_home_is_expanded(value, expanded):
    assert expand_home(value) == expanded
    assert type(expand_home(value)) is type(value)


@pytest.mark.parametrize("value", ["./~", "a~b", "photos/~/x", "~nobody-has-this-name/x", "digits", "", None, 5, True])
def test_other_values_stay(value):
    assert expand_home(value) is value or expand_home(value) == value
