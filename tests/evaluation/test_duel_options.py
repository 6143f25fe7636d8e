"""Options of a duel as YAML files and command lines spell them."""

import pytest

from sit_atconv.evaluation.duel_options import Duel


def duel(**changes) -> Duel:
    options = {"output": "d", "models": {"A": {}, "B": {}}}
    options |= {"sampling": {"num_samples": 4}, "metrics": {"extractor": "pixels"}}
    return Duel(**{**options, **changes})


def test_null_is_the_default_and_metrics_may_be_a_list():
    plain = duel()
    assert duel(train=None, models={"A": None, "B": None}, inference_steps=None) == plain
    assert duel(metrics={"extractor": "pixels", "metrics": None, "bootstrap": None}) == plain
    assert duel(sampling={"num_samples": 4, "solver": None}) == plain
    assert duel(metrics={"extractor": "pixels", "metrics": ["fid", "kid"]}).metric_options.names == ["fid", "kid"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {False: {}, "B": {}}}, "models: YAML reads the name False as a bool; put it in quotes"),
        ({"models": {1: {}, "B": {}}}, "models: YAML reads the name 1 as a int; put it in quotes"),
        ({"metrics": {"extractor": "pixels", "bootstrap": "many"}}, "metrics: bootstrap='many' cannot be used"),
        ({"metrics": {"extractor": "pixels", "trust_torchscript": "maybe"}}, "metrics: trust_torchscript='maybe'"),
        ({"metrics": {"extractor": 3}}, "metrics: extractor=3 cannot be used"),
        ({"metrics": None, "sampling": {"num_samples": 4.5}}, "sampling: num_samples=4.5 cannot be used"),
        ({"sampling": {"num_samples": float("nan")}}, "sampling: num_samples=nan cannot be used"),
        ({"sampling": {"num_samples": 4, "guidance_interval": 3}}, "sampling: guidance_interval=3 cannot be used"),
        ({"sampling": {"num_samples": True}}, "sampling: num_samples=True cannot be used"),
        ({"sampling": {"num_samples": 4, 5: 6}}, "sampling: unknown options 5"),
        ({"sampling": None}, "sampling: num_samples must be given"),
        ({"train": {1: 2}}, "train: YAML reads the name 1 as a int; it is no option"),
        ({"models": {"A": {None: 2}, "B": {}}}, "A: YAML reads the name None as a NoneType; it is no option"),
        (
            {"max_steps": 10**8},
            "max_steps=100000000, evaluate_every=400: that would be more than 10000",
        ),
        ({"seeds": [2**63]}, "seeds=9223372036854775808 must be a whole number of at least 0"),
        ({"seeds": [-1]}, "seeds=-1 must be a whole number of at least 0"),
    ],
)
def test_values_of_another_type_are_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        duel(**changes)
