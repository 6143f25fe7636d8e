"""The arguments of the model among the options of a run, checked without importing the model."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from ..models.arguments import check_arguments, choose_end_time_blocks, choose_position_embedding
from ..models.presets import mixer_per_block
from ..utils.checks import check_known
from ..utils.outlines import function_outline

# Arguments that follow from the data, the VAE and other options.
DERIVED = {"sample_size", "in_channels", "out_channels", "num_classes", "mixer", "trained_guidance_scale"}


@functools.cache
def model_arguments() -> dict[str, Any]:
    """The arguments of `SiTTransformer2DModel` and their defaults."""
    model = function_outline("sit_atconv.models.transformer_sit", "SiTTransformer2DModel.__init__", {"self"})
    return {name: each.default for name, each in inspect.signature(model).parameters.items()}


def check_model(given: Mapping[str, Any], preset: Mapping[str, Any], mixer: str | list[str]) -> None:
    """Check the arguments of a model, apart from those that the data determine.

    Args:
        given: the option `model`.
        preset: the arguments of the preset, or of the trained model in `init_from`, which `given` replaces.
        mixer: the mixers of the blocks.

    Raises:
        ValueError: for an argument that does not exist, that other options determine, or that no model can have.
    """
    check_known("model", given, model_arguments())
    if derived := sorted(DERIVED & given.keys()):
        raise ValueError(f"model: {', '.join(derived)} follow from --data, --vae and --mixer; leave them out")
    arguments = {**model_arguments(), **preset, **given}
    arguments["sample_size"] = arguments["patch_size"]  # the real one depends on the data
    try:
        check_arguments(arguments)
        choose_position_embedding(arguments, mixer_per_block(mixer, arguments["num_layers"]))
        choose_end_time_blocks(arguments)
    except ValueError as error:
        is_given = str(error).partition("=")[0] in given
        raise ValueError(f"{'model.' * is_given}{error}") from error
