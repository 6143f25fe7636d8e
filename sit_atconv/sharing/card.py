"""The model card of a pipeline folder (README.md), made from what lies in the folder.

Beside weights and code a folder may hold, for the card: `training_config.yaml`, `lineage.json`, `metrics.json` and
`samples.png`.
"""

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from PIL import Image

from ..models.presets import mixer_per_block
from ..utils.bounded_text import read_json as read_json_file
from ..utils.bounded_text import read_yaml
from ..utils.files import open_regular, staged, write_atomically, write_json
from ..utils.tables import markdown_table
from ..utils.text import code_block, markdown_text, one_line
from .folder import RECORD_FILE, describe_folder, read_json, weights_variant

CARD_FILE, SAMPLES_FILE = "README.md", "samples.png"
PICTURES = ("PNG", "JPEG", "WEBP")  # formats of samples that a browser shows, whatever the name of the file
TRAINING_FILE, METRICS_FILE = "training_config.yaml", "metrics.json"
LINEAGE_FILE = "lineage.json"  # the trained pipelines that the model was made of
# A card bears the hash of the rest of itself: it is written again only as long as nobody has edited it.
CARD_MARK = re.compile(r"<!-- made by sit-atconv ([0-9a-f]{16}) -->\n")
TASK = "unconditional-image-generation"  # the Hub has no task for images of given classes
CARD_METRICS = {  # names in the reports of evaluations, and for people
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "fid_infinity": "FID∞",
    "class_accuracy": "class accuracy",
}
METRIC_SETTINGS = ("num_samples", "extractor", "biased", "guidance_scale", "num_inference_steps", "seed")
SECRETS = re.compile("(token|key|secret|password)s?$", flags=re.IGNORECASE)
GENERIC_NAME = "pipeline"  # of the folder that a training leaves; its card bears the name of the run


def _is_public(value: Any) -> bool:
    """Whether a value may be published: plain, and not a path of this machine."""
    if isinstance(value, str):
        return not value.startswith(("/", "~", "\\", "file:")) and value[1:3] not in (":\\", ":/")
    return isinstance(value, (int, float, list, tuple, dict, type(None)))


def _public(value: Any) -> Any:
    """Return a configuration without the values, at any depth, that may not be published."""
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if _is_public(inner) and not SECRETS.search(str(name))}
        return {name: _public(inner) for name, inner in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_public(inner) for inner in value if _is_public(inner)]
    return value


def write_training_config(folder: str | Path, config: dict) -> None:
    """Write the configuration of the training into a pipeline folder, without secrets and paths of this machine."""
    text = yaml.safe_dump(_public(config), sort_keys=False, allow_unicode=True)
    (Path(folder) / TRAINING_FILE).write_text(text, encoding="utf-8")


def write_lineage(folder: str | Path, lineage: dict[str, Any]) -> None:
    """Write into a pipeline folder what its model was made of, as `sit_atconv.training.lineage` describes it."""
    write_json(Path(folder) / LINEAGE_FILE, lineage)


def add_report(folder: str | Path, report: str | Path) -> None:
    """Add the metrics of an evaluation's report to a pipeline folder.

    Raises:
        ValueError: if the report cannot be read, or holds no metric that the card knows.
    """
    try:
        content = read_json_file(report)
    except (OSError, ValueError) as error:
        raise ValueError(f"report={str(report)!r} cannot be read: {error}") from error
    names = [name for name in CARD_METRICS if isinstance(content, dict) and isinstance(content.get(name), float)]
    if not names:
        raise ValueError(f"report={str(report)!r} holds none of: {', '.join(CARD_METRICS)}")
    metrics = read_json(Path(folder) / METRICS_FILE)
    for name in names:
        dataset = Path(str(content.get("reference", "unknown"))).name
        settings = {key: content[key] for key in METRIC_SETTINGS if key in content}
        metrics[f"{name} on {dataset}"] = {"metric": name, "value": content[name], "dataset": dataset, **settings}
    write_json(Path(folder) / METRICS_FILE, metrics)


def add_samples(folder: str | Path, picture: str | Path) -> None:
    """Add a grid of samples to a pipeline folder.

    Raises:
        ValueError: if the file is not a picture that browsers show.
    """
    try:
        with open_regular(picture) as file, Image.open(file, formats=PICTURES) as opened:
            opened.verify()
    except Exception as error:  # Pillow's plugins raise all sorts
        raise ValueError(f"samples={str(picture)!r} is not a picture, {' or '.join(PICTURES)}: {error}") from error
    target = Path(folder) / SAMPLES_FILE
    if Path(picture).absolute() != target.absolute():
        with staged(target) as staging:
            shutil.copyfile(picture, staging)


def model_card(folder: str | Path, name: str, license: str | None = None) -> str:
    """Return the model card of a pipeline folder, a function of what the folder holds.

    Args:
        folder: the pipeline folder.
        name: name of the model in the example, such as "someone/sit-atconv".
        license: license of the weights, an identifier of the Hub; defaults to "unknown".
    """
    folder = Path(folder)
    metrics = list(read_json(folder / METRICS_FILE).values())
    title = run_name(folder) if name == GENERIC_NAME else name.rpartition("/")[2]
    parts = [
        f"# {markdown_text(title)}",
        f"A diffusion transformer for images, SiT with {describe_mixer(folder)}, for diffusers.",
    ]
    if (folder / SAMPLES_FILE).is_file():
        parts.append(f"![Samples]({SAMPLES_FILE})")
    parts += _usage(folder, name)
    parts += ["## Model", _facts_table(describe_folder(folder))]
    if record := read_json(folder / RECORD_FILE):
        layout, weights = (markdown_text(record[key]) for key in ("layout", "weights"))
        checkpoint = one_line(record["checkpoint"]).replace("`", "'")
        parts.append(f"Converted from `{checkpoint}`: layout {layout}, weights {weights}.")
    parts += _describe_lineage(read_json(folder / LINEAGE_FILE))
    if metrics:
        parts += ["## Metrics", _metrics_table(metrics)]
    if (folder / TRAINING_FILE).is_file():
        training = (folder / TRAINING_FILE).read_text(encoding="utf-8").strip()
        parts += ["## Training", code_block(training, "yaml")]
    return f"---\n{_front_matter(title, license, metrics)}\n---\n\n" + "\n\n".join(parts) + "\n"


def run_name(folder: Path) -> str:
    """The name of the run that a pipeline folder is the end of, by its training configuration; else the generic one."""
    try:
        training = read_yaml(folder / TRAINING_FILE) if (folder / TRAINING_FILE).is_file() else {}
    except ValueError:
        training = {}
    output = training.get("output_dir") if isinstance(training, dict) else None
    return Path(output).name if isinstance(output, str) and Path(output).name else GENERIC_NAME


def describe_mixer(folder: Path) -> str:
    """What mixes the tokens of a pipeline's model, in words."""
    config = read_json(folder / "transformer" / "config.json")
    words = {"atconv": "ATConv", "attention": "self-attention", "pooled_attention": "attention to pooled tokens"}
    mixers = set(mixer_per_block(config.get("mixer", "atconv"), config.get("num_layers", 1)))
    hourglass = " in an hourglass" if config.get("middle_layers") else ""
    return " and ".join(word for name, word in words.items() if name in mixers) + hourglass


def _describe_lineage(lineage: dict[str, Any]) -> list[str]:
    """Return the card's paragraph on the pipelines that the model was made of, if it is made of any."""
    origins = {role: lineage[role] for role in ("init_from", "teacher") if isinstance(lineage.get(role), dict)}
    names = {role: markdown_text(one_line(str(origin.get("name")))) for role, origin in origins.items()}
    sentences, weights = [], []
    if "init_from" in names:
        blocks = lineage.get("replaced_blocks")
        how, what = "Fine-tuned", ""
        if isinstance(blocks, list):
            how = "Grafted"
            what = f": self-attention is replaced in blocks {markdown_text(', '.join(map(str, blocks)))}, from 0"
        sentences.append(f"{how} from {names['init_from']}{what}.")
    if "teacher" in names:
        sentences.append(f"It learnt the outputs of a teacher, {names['teacher']}.")
    for role, origin in origins.items():
        hashes = origin.get("sha256")
        for file, sha256 in hashes.items() if isinstance(hashes, dict) else ():
            weights.append(f"{names[role]}, {markdown_text(str(file))}: {markdown_text(str(sha256))}")
    if weights:
        sentences.append(f"SHA-256 of weights: {'; '.join(dict.fromkeys(weights))}.")
    return [" ".join(sentences)] if sentences else []


def _facts_table(facts: dict[str, str]) -> str:
    """Return the card's table of what the folder holds."""
    return markdown_table(["", ""], [(name, markdown_text(value)) for name, value in facts.items()], text_columns=2)


def _front_matter(title: str, license: str | None, metrics: list[dict]) -> str:
    """Return what the Hub reads of a card, as YAML."""
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=metric["dataset"],
            dataset_name=metric["dataset"],
            metric_type=metric["metric"],
            metric_name=CARD_METRICS[metric["metric"]],
            metric_value=metric["value"],
        )
        for metric in metrics
    ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        license=license or "unknown",
        tags=["sit", "atconv", "class-conditional", "diffusers:SiTPipeline"],
        model_name=title,
        eval_results=results or None,
    ).to_yaml()


def _usage(folder: Path, name: str) -> list[str]:
    """Return the card's paragraphs on loading and sampling."""
    example = example_label(read_json(folder / "model_index.json").get("id2label") or {})
    variant = weights_variant(folder)
    options = f', variant="{variant}"' if variant else ""
    return [
        "## Use",
        "The folder carries its own code, and needs PyTorch and diffusers alone. Read code before you trust it:",
        f"""```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({json.dumps(name)}, trust_remote_code=True{options})
image = pipe([{example!r}], generator=torch.Generator().manual_seed(0)).images[0]
image.save("sample.png")
```""",
        "With the package sit-atconv, `SiTPipeline.from_pretrained` loads it without running code from the folder.",
    ]


def example_label(labels: dict[str, str]) -> str | int:
    """Return a class for the example: a name that no other class has, else an id."""
    example = "207" if "207" in labels else "0"
    parts = [name.strip() for names in labels.values() for name in {*names.split(","), names}]
    names = labels.get(example, "")
    candidates = [names.split(",")[0].strip(), names.strip()]
    return next((name for name in candidates if name and parts.count(name) == 1), int(example) if names else 0)


def _metrics_table(metrics: list[dict]) -> str:
    """Return the card's table of metrics."""
    lines = ["| metric | value | data | settings |", "| --- | ---: | --- | --- |"]
    for metric in metrics:
        settings = ", ".join(f"{key} {metric[key]}" for key in METRIC_SETTINGS if key in metric)
        cells = (CARD_METRICS[metric["metric"]], f"{metric['value']:.4g}", metric["dataset"], settings)
        lines.append(f"| {' | '.join(map(markdown_text, cells))} |")
    return "\n".join(lines)


def write_model_card(folder: str | Path, name: str | None = None, license: str | None = None) -> None:
    """Write the model card of a pipeline folder, unless there is one that somebody wrote or edited.

    Args:
        folder: the pipeline folder.
        name: name of the model in the example; defaults to the folder's name.
        license: license of the weights; defaults to that of the present card.
    """
    file = Path(folder) / CARD_FILE
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        mark = CARD_MARK.search(text)
        if mark is None or card_hash(CARD_MARK.sub("", text)) != mark[1]:
            warnings.warn(
                f"{file} was edited and stays as it is: neither the licence nor metrics or samples are put into it; "
                "move it away to have a new one written",
                stacklevel=2,
            )
            return
        if license is None and (found := re.search(r"^license: (\S+)$", text, flags=re.MULTILINE)):
            license = found[1]
    text = model_card(folder, name or Path(folder).absolute().name, license)
    write_atomically(file, f"{text}<!-- made by sit-atconv {card_hash(text)} -->\n")


def card_hash(text: str) -> str:
    """Return the hash by which an edited card is told from an untouched one."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
