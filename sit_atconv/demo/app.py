"""The demo where only its models' folders exist, such as a Space of the Hugging Face Hub.

The models run the code of their own folders. This module becomes the file app.py, with all that it uses.
"""

from collections.abc import Mapping

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .names import page_names
from .page import Demo, launch


def serve(models: Mapping[str, str | None]) -> None:
    """Serve a page for one model, or for two with the same classes and sizes.

    Args:
        models: for each name on the Hub, or folder, the variant of its weights; None for plain ones.
    """
    pipelines = {}
    for title, (name, variant) in zip(page_names(list(models)), models.items(), strict=True):
        pipeline = DiffusionPipeline.from_pretrained(name, trust_remote_code=True, variant=variant)
        pipeline.set_progress_bar_config(disable=True)
        pipelines[title] = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    launch(Demo(pipelines).build())
