"""Sharing a pipeline folder: its model card, made from what lies in the folder, and its upload to the Hugging Face Hub.

Beside weights and code a folder may hold, for the card: `training_config.yaml`, `metrics.json` and `samples.png`.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from PIL import Image
from safetensors import safe_open

from ..models.weight_files import stored_variants, weight_patterns
from .portable import FILE_HASH

CARD_FILE, SAMPLES_FILE = "README.md", "samples.png"
TRAINING_FILE, METRICS_FILE, RECORD_FILE = "training_config.yaml", "metrics.json", "conversion.json"
# In which a card carries the hash of the rest of itself: it is made anew only while nobody has edited it.
CARD_MARK = re.compile(r"<!-- made by sit-atconv ([0-9a-f]{16}) -->\n")
CARD_METRICS = {  # of the reports that evaluations write
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
SECRETS = re.compile("(token|key|secret|password)s?$", flags=re.IGNORECASE)
METRIC_SETTINGS = ("num_samples", "extractor", "biased", "guidance_scale", "num_inference_steps", "seed")
# HTTPError is that of the HTTP library which huggingface_hub uses, and the base of its own.
HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def stored_parameters(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the transformer's weights by name, from the headers of its files alone."""
    shapes = {}
    for file in sorted((Path(folder) / "transformer").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def weights_variant(folder: str | Path) -> str | None:
    """The variant that has to be named to load the transformer: None where there are plain weights."""
    variants = stored_variants(Path(folder) / "transformer")
    return None if None in variants or not variants else sorted(variants)[0]


def read_json(file: Path) -> dict:
    """The content of a JSON file, {} where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def is_pipeline_folder(folder: str | Path) -> bool:
    """Whether the folder is one that `save_pretrained` of a pipeline wrote."""
    return (Path(folder) / "model_index.json").is_file()


def check_pipeline_folder(folder: str | Path) -> None:
    """Raise ValueError unless this is a folder of a SiTPipeline."""
    if not is_pipeline_folder(folder):
        raise ValueError(f"folder={str(folder)!r} is no pipeline folder: it has no model_index.json")
    name = read_json(Path(folder) / "model_index.json").get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    if name != "SiTPipeline" or not (Path(folder) / "transformer" / "config.json").is_file():
        raise ValueError(f"folder={str(folder)!r} is no folder of a SiTPipeline, but of {name}")


def describe_folder(folder: str | Path) -> dict[str, str]:
    """What a pipeline folder holds, in words, by the name of each property."""
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    model, vae = read_json(folder / "transformer" / "config.json"), read_json(folder / "vae" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    mixer, depth = model["mixer"], model["num_layers"]
    blocks = f"{depth} × {mixer}" if isinstance(mixer, str) else ", ".join(mixer)
    width = model["num_attention_heads"] * model["attention_head_dim"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1) if vae else 1
    size, channels = model["sample_size"], model["in_channels"]
    guided = "and a null class" if model["class_dropout_prob"] else "no null class, so no guidance"
    options = ", ".join(f"{key} {scheduler[key]}" for key in ("path", "prediction", "solver") if key in scheduler)
    names = len(index.get("id2label") or {})
    return {
        "parameters": f"{sum(map(count_elements, stored_parameters(folder).values())) / 1e6:.2f} M",
        "blocks": f"{blocks}, width {width}, {model['num_attention_heads']} heads, patch {model['patch_size']}",
        "images": f"{size * factor} × {size * factor} pixels; the network sees {channels} × {size} × {size}",
        "VAE": vae.get("_class_name", "none: the network makes pixels"),
        "classes": f"{model['num_classes']}, {guided}; {names or 'no'} names",
        "scheduler": f"{scheduler['_class_name']}{options and f': {options}'}",
    }


def count_elements(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of this shape."""
    total = 1
    for side in shape:
        total *= side
    return total


def _is_public(value) -> bool:
    """Whether this is a plain value, and no place on this machine."""
    if isinstance(value, str):
        return not value.startswith(("/", "~", "\\", "file:")) and value[1:3] not in (":\\", ":/")
    return isinstance(value, (int, float, list, tuple, dict, type(None)))


def _public(value):
    """What may be shown of a configuration, down to the innermost values."""
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if _is_public(inner) and not SECRETS.search(str(name))}
        return {name: _public(inner) for name, inner in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_public(inner) for inner in value if _is_public(inner)]
    return value


def write_training_config(folder: str | Path, config: dict) -> None:
    """Keep the configuration of the training in a pipeline folder, without places on this machine and secrets."""
    text = yaml.safe_dump(_public(config), sort_keys=False, allow_unicode=True)
    (Path(folder) / TRAINING_FILE).write_text(text, encoding="utf-8")


def add_report(folder: str | Path, report: str | Path) -> None:
    """Take the metrics of a report that an evaluation wrote into a pipeline folder.

    Raises:
        ValueError: for a report without a metric that the card knows.
    """
    try:
        content = json.loads(Path(report).read_text(encoding="utf-8"))
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
    (Path(folder) / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def add_samples(folder: str | Path, picture: str | Path) -> None:
    """Take a grid of samples into a pipeline folder.

    Raises:
        ValueError: for a file that is no picture.
    """
    try:
        with Image.open(picture) as opened:
            opened.verify()
    except OSError as error:
        raise ValueError(f"samples={str(picture)!r} is no picture: {error}") from error
    target = Path(folder) / SAMPLES_FILE
    if Path(picture).absolute() != target.absolute():
        shutil.copyfile(picture, target)


def example_label(labels: dict[str, str]) -> str | int:
    """A class for the snippet: by a name that no other class has, else by its id."""
    example = "207" if "207" in labels else "0"
    parts = [name.strip() for names in labels.values() for name in {*names.split(","), names}]
    names = labels.get(example, "")
    candidates = [names.split(",")[0].strip(), names.strip()]
    return next((name for name in candidates if name and parts.count(name) == 1), int(example) if names else 0)


def model_card(folder: str | Path, name: str, license: str | None = None) -> str:
    """The text of the model card of a pipeline folder: a function of what the folder holds.

    Args:
        folder: the pipeline folder.
        name: how the snippet refers to it, such as "someone/sit-atconv".
        license: an identifier of the Hub; "unknown" where None.
    """
    folder = Path(folder)
    index, record = read_json(folder / "model_index.json"), read_json(folder / RECORD_FILE)
    metrics = read_json(folder / METRICS_FILE)
    title = name.rpartition("/")[2]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",  # the Hub has no tag for classes as the condition
        license=license or "unknown",
        tags=["sit", "atconv", "class-conditional", "diffusers:SiTPipeline"],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="unconditional-image-generation",
                dataset_type=metric["dataset"],
                dataset_name=metric["dataset"],
                metric_type=metric["metric"],
                metric_name=CARD_METRICS[metric["metric"]],
                metric_value=metric["value"],
            )
            for metric in metrics.values()
        ]
        or None,
    )
    labels = index.get("id2label") or {}
    example = example_label(labels)
    variant = weights_variant(folder)
    options = f', variant="{variant}"' if variant else ""
    properties = [f"| {key} | {value} |" for key, value in describe_folder(folder).items()]
    parts = [f"# {title}", "A class-conditional diffusion transformer, SiT with ATConv or attention, for diffusers."]
    if (folder / SAMPLES_FILE).is_file():
        parts.append(f"![Samples]({SAMPLES_FILE})")
    parts += [
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
        "## Model",
        "\n".join(["| | |", "| --- | --- |", *properties]),
    ]
    if record:
        parts.append(
            f"Converted from `{record['checkpoint']}`: layout {record['layout']}, weights {record['weights']}."
        )
    if metrics:
        lines = ["| metric | value | data | settings |", "| --- | ---: | --- | --- |"]
        for metric in metrics.values():
            settings = ", ".join(f"{key} {metric[key]}" for key in METRIC_SETTINGS if key in metric)
            lines.append(
                f"| {CARD_METRICS[metric['metric']]} | {metric['value']:.4g} | {metric['dataset']} | {settings} |"
            )
        parts += ["## Metrics", "\n".join(lines)]
    if (folder / TRAINING_FILE).is_file():
        training = (folder / TRAINING_FILE).read_text(encoding="utf-8").strip()
        parts += ["## Training", f"```yaml\n{training}\n```"]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def write_model_card(folder: str | Path, name: str | None = None, license: str | None = None) -> None:
    """Write the model card of a pipeline folder, unless there is one that somebody wrote or edited.

    Args:
        folder: the pipeline folder.
        name: how the snippet refers to it; the folder's name where None.
        license: of the weights; that of the present card where None.
    """
    file = Path(folder) / CARD_FILE
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        mark = CARD_MARK.search(text)
        if mark is None or card_hash(CARD_MARK.sub("", text)) != mark[1]:
            warnings.warn(
                f"{file} was edited and stays as it is: neither the licence nor metrics or samples are put into it; "
                "move it away to have one made anew",
                stacklevel=2,
            )
            return
        license = license or re.search(r"^license: (\S+)$", text, flags=re.MULTILINE)[1]
    text = model_card(folder, name or Path(folder).absolute().name, license)
    file.write_text(f"{text}<!-- made by sit-atconv {card_hash(text)} -->\n", encoding="utf-8")


def card_hash(text: str) -> str:
    """What tells an edited card from an untouched one."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare_repository(repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Make sure that there is a model repository on the Hub that may be written to; return its full name.

    Raises:
        ValueError: where the name is not one, nobody is logged in, or the Hub refuses or cannot be reached.
    """
    try:
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    except HUB_ERRORS as error:
        raise ValueError(_hub_message(repo_id, error)) from error


def _hub_message(repo_id: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"push_to_hub: {repo_id!r} cannot be written: {reason}; log in with `hf auth login`, or check the name"


def replaced_files(folder: Path) -> list[str]:
    """Patterns of the files that an upload of this folder replaces: its variants of the weights, and its code."""
    patterns = []
    for file in folder.glob("*/config.json"):
        weights = [name for variant in stored_variants(file.parent) for name in weight_patterns(variant)]
        patterns += [f"{file.parent.name}/{name}" for name in weights]
    for file in folder.rglob("*.py"):
        if FILE_HASH.search(file.stem):
            patterns.append(str(file.relative_to(folder).with_stem(FILE_HASH.sub("_????????", file.stem)).as_posix()))
    return patterns


def publish(
    folder: str | Path,
    repo_id: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a pipeline folder to a model repository on the Hub, which is made where it does not exist.

    The card is made anew with the repository's name, unless somebody has edited it. Pickles stay behind. What the
    repository holds of the same variants of the weights, and of the code, is replaced; all else in it stays.

    Args:
        folder: a folder that `SiTPipeline.save_pretrained` wrote.
        repo_id: "user/name", or "name" for one's own account; the folder's name where None.
        license: of the weights, for the card.
        private: whether a new repository is private; as the account is set up where None.
        token: of the Hub; that of `hf auth login` where None.
        commit_message: of the upload.
        create_pr: make a pull request of it.

    Returns:
        The address of the upload.

    Raises:
        ValueError: for a folder that is no pipeline, or where the Hub refuses or cannot be reached.
    """
    folder = Path(folder)
    check_pipeline_folder(folder)
    repo_id = prepare_repository(repo_id or folder.absolute().name, private, token)
    write_model_card(folder, repo_id, license)
    try:
        uploaded = HfApi(token=token).upload_folder(
            repo_id=repo_id,
            folder_path=os.fspath(folder),
            commit_message=commit_message or "Upload SiTPipeline",
            create_pr=create_pr,
            ignore_patterns=[*PICKLES, ".*", "*/.*"],
            delete_patterns=replaced_files(folder),
        )
    except HUB_ERRORS as error:
        raise ValueError(_hub_message(repo_id, error)) from error
    return str(uploaded)


def finish_folder(folder: str | Path, training_config: dict, samples: Path, repo_id: str | None) -> str | None:
    """Complete the pipeline folder of a training: its card shows the configuration and the samples; upload it.

    Args:
        folder: the pipeline folder.
        training_config: every option of the training.
        samples: a grid of samples; left out where there is no such file.
        repo_id: where to upload it; None does not.

    Returns:
        The address of the upload.

    Raises:
        ValueError: where the upload fails; the folder is complete then.
    """
    write_training_config(folder, training_config)
    if samples.is_file():
        add_samples(folder, samples)
    write_model_card(folder)
    if repo_id is None:
        return None
    try:
        return publish(folder, repo_id)
    except ValueError as error:
        raise ValueError(
            f"{error}. The folder is complete; upload it with: sit-atconv push {folder} {repo_id}"
        ) from error
