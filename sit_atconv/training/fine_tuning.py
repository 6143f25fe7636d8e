"""What a run takes over from trained pipelines: the weights that it starts from, a graft, and a teacher."""

from pathlib import Path

import torch

from ..models.latent_scaling import latent_statistics
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE, load_vae
from ..utils.bounded_text import read_json_object
from ..utils.hashing import tensors_sha256
from .references import pipeline_vae


def load_pretrained(folder: str, field: str = "init_from") -> SiTTransformer2DModel:
    """Load the transformer of a pipeline folder in float32.

    Raises:
        ValueError: if the folder in the option `field` cannot be loaded.
    """
    try:
        return SiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True).float()
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}={folder!r} cannot be loaded: {error}") from error


def load_teacher(
    folder: str, student: SiTTransformer2DModel, classes: list[str], guidance_scale: float = 1.0, field: str = "teacher"
) -> SiTTransformer2DModel:
    """Load the frozen transformer of a pipeline folder, whose outputs `student` learns.

    Args:
        folder: the pipeline folder.
        student: the model that is trained.
        classes: the class names of the data.
        guidance_scale: scale of the guidance of the teacher's outputs; 1 for none.
        field: the option that names the folder.

    Raises:
        ValueError: if it cannot be loaded, or takes other images or classes than the student.
    """
    teacher = load_pretrained(folder, field).requires_grad_(False)
    for name in ("in_channels", "num_classes"):
        if teacher.config[name] != student.config[name]:
            raise ValueError(
                f"{field}={folder!r} has {name}={teacher.config[name]}, but the model that is trained has "
                f"{student.config[name]}; they must agree"
            )
    if pretrained_classes(folder) != classes:
        raise ValueError(f"{field}={folder!r} was trained on other classes than those of the data; they must agree")
    if teacher.config.class_dropout_prob == 0 and (student.config.class_dropout_prob > 0 or guidance_scale != 1):
        raise ValueError(
            f"{field}={folder!r} was trained without class dropout and cannot predict without a label; give "
            "--model.class_dropout_prob 0 and no guidance"
        )
    if teacher.config.trained_guidance_scale != 1:
        raise ValueError(
            f"{field}={folder!r} has guidance of scale {teacher.config.trained_guidance_scale:g} built in, which is no "
            "velocity of the data; give the flow that it was made of"
        )
    return teacher.train()  # only in training mode, labels are dropped as the student's are


def pretrained_classes(folder: str) -> list[str]:
    """The class names of a pipeline folder, in the order of their ids."""
    names = read_json_object(Path(folder) / "model_index.json").get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)]


def take_over_weights(new: SiTTransformer2DModel, trained: SiTTransformer2DModel, same_classes: bool) -> None:
    """Copy all weights, except the label embeddings of classes that differ.

    A model of velocities has no embedding of the length of a step; that of the new model keeps its initial weights.

    Args:
        new: the freshly initialized model.
        trained: the model whose weights are copied.
        same_classes: whether both models have the same class names.

    Raises:
        ValueError: if the trained model has such an embedding, and the new one has not.
    """
    weights: dict[str, torch.Tensor] = trained.state_dict()
    trained_rows, rows = weights["class_embed.weight"], new.class_embed.weight.detach().clone()
    if same_classes and new.config.num_classes == trained.config.num_classes:  # classes may have no names
        rows[: trained.config.num_classes] = trained_rows[: trained.config.num_classes]
    row, trained_row = _no_class_row(new), _no_class_row(trained)
    if row is not None and trained_row is not None:
        rows[row] = trained_rows[trained_row]
    weights = new.state_dict() | weights | {"class_embed.weight": rows}
    if weights.keys() != new.state_dict().keys():
        raise ValueError(
            f"model.step_conditioning={new.config.step_conditioning!r}: the model in init_from has "
            f"{trained.config.step_conditioning!r}, whose weights would be lost; leave it out"
        )
    new.load_state_dict(weights)


def _no_class_row(model: SiTTransformer2DModel) -> int | None:
    """The row of the label embedding that stands for "no class": the null row, or the only row without classes."""
    if model.config.class_dropout_prob > 0:
        return model.null_class
    return 0 if model.config.num_classes == 1 else None


def check_teacher_vae(folder: str, vae_name: str | None, vae: VAE | None, field: str = "teacher") -> None:
    """Check that a teacher works on the latents of the run's VAE, or on pixels if the run does.

    Args:
        folder: the pipeline folder of the teacher.
        vae_name: the VAE of the run, as `load_vae` takes it.
        vae: the VAE of the run; None for pixels.
        field: the option that names the folder.

    Raises:
        ValueError: if the teacher has another VAE.
    """
    own = pipeline_vae(folder)
    if (own is None) != (vae is None):
        raise ValueError(
            f"{field}={folder!r} works on {'pixels' if own is None else 'the latents of its VAE'}, but the run on "
            f"{'pixels' if vae is None else f'the latents of vae={vae_name!r}'}; they must agree"
        )
    if own is None or vae is None or own == vae_name:
        return
    if not have_same_latents(load_vae(own), vae):
        raise ValueError(
            f"{field}={folder!r} has another VAE than vae={vae_name!r}, or other statistics of its latents, so that "
            f"their latents differ; give --vae {folder}"
        )


def have_same_latents(one: VAE, other: VAE) -> bool:
    """Whether two VAEs have the same weights, and normalize their latents by the same numbers."""
    if latent_statistics(one) != latent_statistics(other):
        return False
    return tensors_sha256(one.state_dict()) == tensors_sha256(other.state_dict())
