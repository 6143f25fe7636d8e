"""Names of timm's models and of AttNet, as the source code shows them. Neither timm nor PyTorch is imported for it."""

import difflib
import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

DEFINITION = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@functools.cache
def _sources() -> str:
    """The source code that defines models, without that of other packages that add some to timm."""
    spec = importlib.util.find_spec("timm")  # finds the package, and imports nothing
    assert spec is not None and spec.origin is not None
    files = [*Path(spec.origin).parent.glob("models/*.py"), Path(__file__).with_name("attnet_variants.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))


def defined_models() -> list[str]:
    """The models that timm offers, without the old names that some of them also have."""
    return sorted(DEFINITION.findall(_sources()))


def check_timm_name(field: str, value: str, model_name: str) -> None:
    """Raise ValueError if a name is written nowhere in the source code of the models, so that timm cannot know it.

    It is a first answer, in a tenth of a second; `check_timm_model` (timm_encoders.py) asks timm.

    Args:
        field: name of the option, for the message.
        value: the option as given, for the message.
        model_name: "ARCHITECTURE" or "ARCHITECTURE.TAG".
    """
    architecture = model_name.partition(".")[0]
    if not re.search(rf"\b{re.escape(architecture)}\b", _sources()):
        raise unknown_model(field, value, architecture, defined_models())


def unknown_model(field: str, value: str, architecture: str, known: Iterable[str]) -> ValueError:
    """The error for a model that timm does not know, with the names that are similar."""
    similar = difflib.get_close_matches(architecture, list(known), n=5)
    hint = f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists all"
    return ValueError(f"{field}={value!r}: timm has no model {architecture!r}; {hint}")
