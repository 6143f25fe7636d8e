"""Costs are of models that take the same inputs."""

import pytest

from sit_atconv.evaluation.model_costs import check_inputs_agree


def test_models_of_other_inputs_are_refused(tiny_pipeline):
    pipelines = {"A": tiny_pipeline(), "B": tiny_pipeline()}
    check_inputs_agree(pipelines)
    for change in ({"sample_size": 16}, {"in_channels": 4}):
        with pytest.raises(ValueError, match=f"A and B cannot be compared: {next(iter(change))}: "):
            check_inputs_agree({**pipelines, "B": tiny_pipeline(**change)})
