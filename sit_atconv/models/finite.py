"""Numbers that are not finite: an error that says where they come from, in place of black images."""

import torch


class NotFiniteError(ValueError, RuntimeError):
    """A result holds NaN or infinity.

    Args:
        message: what is not finite, and why.
        row: the first image of the batch that is not finite, if known.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


def check_finite(what: str, values: torch.Tensor, *models: torch.nn.Module | None) -> None:
    """Raise NotFiniteError if `values` are not finite, with the reason as far as the models' weights show it.

    Args:
        what: what the values are, the subject of the message.
        values: any shape; on a GPU, this waits for them.
        *models: the models that computed them.
    """
    finite = values.isfinite()
    if not finite.all():
        row = int(finite.flatten(1).all(1).logical_not().nonzero()[0]) if values.ndim > 1 else None
        raise not_finite_error(what, *models, row=row)


def not_finite_error(what: str, *models: torch.nn.Module | None, row: int | None = None) -> NotFiniteError:
    """The error that explains values that are not finite; arguments as those of `check_finite`."""
    return NotFiniteError(f"{what} are not finite{_reason(*models)}", row)


def _reason(*models: torch.nn.Module | None) -> str:
    present = [model for model in models if model is not None]
    for model in present:
        if names := weights_not_finite(model):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            return (
                f", because weights of {type(model).__name__} are not: {', '.join(names[:3])}{more}; load weights from "
                "before they broke, such as an earlier checkpoint or a fresh download"
            )
    if any(parameter.dtype == torch.float16 for model in present for parameter in model.parameters()):
        return (
            ": numbers above 65504 overflow in float16; load the pipeline again, and compute in bfloat16 or float32, "
            "as in SiTPipeline.from_pretrained(…).to(torch.bfloat16)"
        )
    return (
        ", although the weights are: numbers overflow on the way; lower guidance_scale, take more steps, or check what "
        "callbacks return"
    )


def weights_not_finite(model: torch.nn.Module) -> list[str]:
    """The names of the parameters that hold NaN or infinity, of those that can be read."""
    names = []
    for name, parameter in model.named_parameters():
        try:
            if not parameter.is_meta and not parameter.detach().float().isfinite().all():
                names.append(name)
        except (RuntimeError, NotImplementedError):  # a quantised type, whose numbers are always finite
            continue
    return names
