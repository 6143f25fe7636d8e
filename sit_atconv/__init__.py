"""SiT with ATConv in place of self-attention, on diffusers. Public names load on first use, so importing is cheap."""

import importlib

_PUBLIC = {
    "ATConv": "sit_atconv.models.atconv",
    "SiTTransformer2DModel": "sit_atconv.models.transformer_sit",
    "Interpolant": "sit_atconv.flow.interpolants",
    "InterpolantLoss": "sit_atconv.flow.losses",
    "InterpolantODEScheduler": "sit_atconv.schedulers.scheduling_interpolant_ode",
    "InterpolantSDEScheduler": "sit_atconv.schedulers.scheduling_interpolant_sde",
    "SiTPipeline": "sit_atconv.pipelines.pipeline_sit",
}

__all__ = [*sorted(_PUBLIC), "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sit_atconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
