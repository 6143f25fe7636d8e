"""Fine-tuning: take over the weights of the transformer in a pipeline folder (`init_from`)."""

import json
from pathlib import Path

from ..models.transformer_sit import SiTTransformer2DModel


def load_trained(folder: str) -> SiTTransformer2DModel:
    try:
        return SiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True).float()
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from={folder!r} cannot be loaded: {error}") from error


def class_names(folder: str) -> list[str]:
    names = json.loads((Path(folder) / "model_index.json").read_text()).get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)]


def take_over_weights(new: SiTTransformer2DModel, trained: SiTTransformer2DModel, same_classes: bool) -> None:
    """Copy all weights, but for the rows of the label embedding whose classes are others."""
    state, rows = trained.state_dict(), new.class_embed.weight.detach().clone()
    if same_classes and new.config.num_classes == trained.config.num_classes:  # classes may have no names
        rows[: trained.config.num_classes] = state["class_embed.weight"][: trained.config.num_classes]
    row, trained_row = _no_class_row(new), _no_class_row(trained)
    if row is not None and trained_row is not None:
        rows[row] = state["class_embed.weight"][trained_row]
    new.load_state_dict(state | {"class_embed.weight": rows})


def _no_class_row(model: SiTTransformer2DModel) -> int | None:
    """Where the label embedding stands for no class: in the null row or, without classes, in the only one."""
    if model.config.class_dropout_prob > 0:
        return model.null_class
    return 0 if model.config.num_classes == 1 else None
