"""Fine-tuning: what a run takes over from the pipeline folder in `init_from`."""

from pathlib import Path

import torch

from ..models.transformer_sit import SiTTransformer2DModel
from ..utils.bounded_text import read_json_object


def check_objective(folder: str, path: str, prediction: str) -> None:
    """Check that a folder is a pipeline folder and that its model was trained with this path and prediction.

    Raises:
        ValueError: if the folder holds no transformer, or its scheduler names another path or prediction.
    """
    if not (Path(folder) / "transformer" / "config.json").is_file():
        raise ValueError(f"init_from={folder!r} is not a pipeline folder: it has no transformer/config.json")
    scheduler = Path(folder) / "scheduler" / "scheduler_config.json"
    trained = read_json_object(scheduler) if scheduler.is_file() else {}
    for name, value in (("path", path), ("prediction", prediction)):
        if trained.get(name, value) != value:
            raise ValueError(
                f"{name}={value}: the model in init_from={folder!r} was trained with {trained[name]}; "
                f"give --{name} {trained[name]}"
            )


def pipeline_vae(folder: str) -> str | None:
    """The folder itself if it holds a VAE, as `load_vae` takes it; None if the pipeline works on pixels."""
    return folder if (Path(folder) / "vae" / "config.json").is_file() else None


def load_pretrained(folder: str) -> SiTTransformer2DModel:
    """Load the transformer of a pipeline folder in float32.

    Raises:
        ValueError: if it cannot be loaded.
    """
    try:
        return SiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True).float()
    except (OSError, ValueError) as error:
        raise ValueError(f"init_from={folder!r} cannot be loaded: {error}") from error


def pretrained_classes(folder: str) -> list[str]:
    """The class names of a pipeline folder, in the order of their ids."""
    names = read_json_object(Path(folder) / "model_index.json").get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)]


def take_over_weights(new: SiTTransformer2DModel, trained: SiTTransformer2DModel, same_classes: bool) -> None:
    """Copy all weights, except the label embeddings of classes that differ.

    Args:
        new: the freshly initialized model.
        trained: the model whose weights are copied.
        same_classes: whether both models have the same class names.
    """
    weights: dict[str, torch.Tensor] = trained.state_dict()
    trained_rows, rows = weights["class_embed.weight"], new.class_embed.weight.detach().clone()
    if same_classes and new.config.num_classes == trained.config.num_classes:  # classes may have no names
        rows[: trained.config.num_classes] = trained_rows[: trained.config.num_classes]
    row, trained_row = _no_class_row(new), _no_class_row(trained)
    if row is not None and trained_row is not None:
        rows[row] = trained_rows[trained_row]
    new.load_state_dict(weights | {"class_embed.weight": rows})


def _no_class_row(model: SiTTransformer2DModel) -> int | None:
    """The row of the label embedding that stands for "no class": the null row, or the only row without classes."""
    if model.config.class_dropout_prob > 0:
        return model.null_class
    return 0 if model.config.num_classes == 1 else None
