"""SiT with ATConv in place of self-attention, on diffusers. Public names load on first use, so importing is cheap.

timm knows the AttNet models once both packages have been imported, in either order.
"""

import importlib
from typing import TYPE_CHECKING

from .utils.after_import import import_after

if TYPE_CHECKING:  # for type checkers and editors, which do not run __getattr__
    from .flow.interpolants import Interpolant
    from .flow.losses import InterpolantLoss
    from .models.atconv import ATConv
    from .models.transformer_sit import SiTTransformer2DModel
    from .pipelines.editing import SiTImg2ImgPipeline, SiTInpaintPipeline
    from .pipelines.pipeline_sit import SiTPipeline
    from .schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
    from .schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler

_PUBLIC = {
    "ATConv": "sit_atconv.models.atconv",
    "SiTTransformer2DModel": "sit_atconv.models.transformer_sit",
    "Interpolant": "sit_atconv.flow.interpolants",
    "InterpolantLoss": "sit_atconv.flow.losses",
    "InterpolantODEScheduler": "sit_atconv.schedulers.scheduling_interpolant_ode",
    "InterpolantSDEScheduler": "sit_atconv.schedulers.scheduling_interpolant_sde",
    "SiTImg2ImgPipeline": "sit_atconv.pipelines.editing",
    "SiTInpaintPipeline": "sit_atconv.pipelines.editing",
    "SiTPipeline": "sit_atconv.pipelines.pipeline_sit",
}

__all__ = [
    "ATConv",
    "Interpolant",
    "InterpolantLoss",
    "InterpolantODEScheduler",
    "InterpolantSDEScheduler",
    "SiTImg2ImgPipeline",
    "SiTInpaintPipeline",
    "SiTPipeline",
    "SiTTransformer2DModel",
    "__version__",
]
__version__ = "0.1.0"


# timm has no entry points for models of other packages.
import_after("timm", "sit_atconv.models.attnet_variants")


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sit_atconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
