"""Which arguments of `SiTTransformer2DModel` fit together."""

from collections.abc import Mapping

from ..utils.checks import check_choice, check_count, check_positive

POSITION_EMBEDDINGS = ("sincos", "none")


def check_arguments(config: Mapping) -> None:
    """Raise ValueError if sizes or probabilities in the arguments of `SiTTransformer2DModel` are out of range."""
    sizes = ("sample_size", "patch_size", "in_channels", "num_layers", "num_classes")
    for field in (*sizes, "num_attention_heads", "attention_head_dim"):
        check_count(field, config[field])
    if config["out_channels"] is not None:
        check_count("out_channels", config["out_channels"])
    check_positive("mlp_ratio", config["mlp_ratio"])
    if config["sample_size"] % config["patch_size"]:
        raise ValueError(f"sample_size={config['sample_size']} is not divisible by patch_size={config['patch_size']}")
    if not 0 <= config["class_dropout_prob"] < 1:
        raise ValueError(f"class_dropout_prob={config['class_dropout_prob']} must be in [0, 1)")
    if config["timestep_at_noise"] == config["timestep_at_data"]:
        raise ValueError(f"timestep_at_data={config['timestep_at_data']} must differ from timestep_at_noise, as t does")


def choose_position_embedding(config: Mapping, mixers: list[str]) -> str:
    """Return "sincos" or "none"; if the config has None, "sincos" if at least one block is attention, else "none".

    Raises:
        ValueError: for an unknown choice, or "sincos" with a model width that is not divisible by 4.
    """
    choice = config["position_embedding"]
    if choice is None:
        choice = "sincos" if "attention" in mixers else "none"
    check_choice("position_embedding", choice, POSITION_EMBEDDINGS)
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    if choice == "sincos" and heads * head_dim % 4:
        raise ValueError(
            f"num_attention_heads={heads} × attention_head_dim={head_dim} = {heads * head_dim} must be divisible by 4 "
            "for the sin-cos position embedding"
        )
    return choice
