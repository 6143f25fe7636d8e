"""The files of a Space of the Hugging Face Hub that shows the demo, without this package."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from ..sharing.bundle import bundle_source
from ..sharing.folder import weights_variant
from ..sharing.hub import prepare_repository, publish_space

APP_MODULE = "sit_atconv.demo.app"
MADE_BY_US = f"Made from sit_atconv: {APP_MODULE}"  # in what `bundle_source` returns
APP, REQUIREMENTS, README = "app.py", "requirements.txt", "README.md"
# What the page and the code in pipeline folders import, as in pyproject.toml.
NEEDED = (
    "accelerate>=1.10",
    "diffusers>=0.38",
    "gradio>=6.31",
    "numpy",
    "pillow",
    "safetensors>=0.5",
    "torch>=2.11",
    "torchdiffeq>=0.2.5",
)


def publish_demo(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Write a Space that shows a pipeline of the Hub, and return its address.

    Args:
        folder: the folder from which the pipeline was uploaded.
        repo_id: its name on the Hub; the Space is called NAME-demo. A private pipeline needs a secret of the Space,
            HF_TOKEN, that may read it.
        private: whether a new Space is private; defaults to the account's setting.
        token: token of the Hub; defaults to that of `hf auth login`.

    Raises:
        ValueError: if the Space has another app.py, or the Hub refuses or cannot be reached.
    """
    model = prepare_repository(repo_id, private, token)
    files = space_files({model: weights_variant(folder)})
    return publish_space(f"{model}-demo", files, MADE_BY_US, private, token)


def space_files(models: Mapping[str, str | None]) -> dict[str, str]:
    """The text of each file of a Space.

    Args:
        models: for each name on the Hub, the variant of its weights; None for plain ones.
    """
    return {APP: app_source(models), REQUIREMENTS: "\n".join(NEEDED) + "\n", README: readme(list(models))}


def app_source(models: Mapping[str, str | None]) -> str:
    """The program: the demo in one file, and a call that names the models."""
    code = bundle_source(APP_MODULE)
    return f'{code}\n\nif __name__ == "__main__":\n    serve({dict(models)!r})\n'


def readme(names: list[str]) -> str:
    """What the Hub shows of the Space, with the settings that it reads."""
    title = f"{' and '.join(name.rpartition('/')[2] for name in names)}: demo"
    settings = {
        "title": title,
        "emoji": "🌀",
        "colorFrom": "indigo",
        "colorTo": "blue",
        "sdk": "gradio",
        "app_file": APP,
        "models": names,
    }
    front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    links = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in names)
    what = "time, network calls, the way from noise to image, and the kernels that the network generates"
    local = f"`pip install -r {REQUIREMENTS} && python {APP}` runs it on your machine."
    return f"---\n{front}---\n\nImages of chosen classes by {links}: {what}.\n\n{local}\n"
