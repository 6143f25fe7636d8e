"""Uploading a pipeline folder to the Hugging Face Hub."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ..models.weight_files import stored_variants, weight_patterns
from .card import write_model_card
from .folder import check_pipeline_folder
from .formats import FILE_HASH

# HTTPError is that of the HTTP library which huggingface_hub uses, and the base class of its own errors.
HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def prepare_repository(repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Create a model repository on the Hub unless it exists, and return its full name.

    Args:
        repo_id: "user/name", or "name" for one's own account.
        private: whether a new repository is private; defaults to the account's setting.
        token: token of the Hub; defaults to that of `hf auth login`.

    Raises:
        ValueError: if the name is invalid, nobody is logged in, or the Hub refuses or cannot be reached.
    """
    try:
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    except HUB_ERRORS as error:
        raise ValueError(_hub_message(repo_id, error)) from error


def _hub_message(repo_id: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"push_to_hub: {repo_id!r} cannot be written: {reason}; log in with `hf auth login`, or check the name"


def replaced_files(folder: Path) -> list[str]:
    """Return patterns of the files that an upload of this folder replaces: its code and its variants of the weights."""
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
    """Upload a pipeline folder to a model repository on the Hub, which is created if it does not exist.

    The card is written again with the repository's name, unless somebody has edited it. Pickles are not uploaded. The
    repository's files of the same variants of the weights, and its code, are replaced; all others are kept.

    Args:
        folder: a folder that `SiTPipeline.save_pretrained` wrote.
        repo_id: "user/name", or "name" for one's own account; defaults to the folder's name.
        license: license of the weights, for the card.
        private: whether a new repository is private; defaults to the account's setting.
        token: token of the Hub; defaults to that of `hf auth login`.
        commit_message: message of the commit.
        create_pr: open a pull request with the upload.

    Returns:
        The address of the upload.

    Raises:
        ValueError: if the folder is not a pipeline folder, or the Hub refuses or cannot be reached.
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


def publish_space(
    repo_id: str, files: Mapping[str, str], made_by_us: str, private: bool | None = None, token: str | None = None
) -> str:
    """Write the files of a Gradio app to a Space on the Hub, which is created if it does not exist.

    Args:
        repo_id: "user/name" of the Space.
        files: the text of each file by its name, "app.py" and "README.md" among them. The README of a Space that exists
            is left as it is.
        made_by_us: what the text of an app.py contains that may be replaced.
        private: whether a new Space is private; defaults to the account's setting.
        token: token of the Hub; defaults to that of `hf auth login`.

    Returns:
        The address of the Space.

    Raises:
        ValueError: if the Space exists and has another app.py, or the Hub refuses or cannot be reached.
    """
    api, kind = HfApi(token=token), "space"
    try:
        exists = api.file_exists(repo_id, "app.py", repo_type=kind)
        if exists:
            with tempfile.TemporaryDirectory() as folder:
                present = api.hf_hub_download(repo_id, "app.py", repo_type=kind, local_dir=folder)
                is_ours = made_by_us in Path(present).read_text(encoding="utf-8", errors="replace")
            if not is_ours:
                raise ValueError(f"push_to_hub: the Space {repo_id!r} has an app.py of its own; remove or rename it")
        address = api.create_repo(repo_id, repo_type=kind, space_sdk="gradio", private=private, exist_ok=True)
        written = {name: text for name, text in files.items() if not exists or name != "README.md"}
        operations = [CommitOperationAdd(name, text.encode()) for name, text in written.items()]
        api.create_commit(repo_id, operations, commit_message="Write the demo", repo_type=kind)
    except HUB_ERRORS as error:
        raise ValueError(_hub_message(repo_id, error)) from error
    return str(address)
