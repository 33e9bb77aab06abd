"""Putting an exported policy on the hub, and saying beforehand what would be put there."""

from __future__ import annotations

from pathlib import Path

from online_dpo.errors import UserError, first_line
from online_dpo.models.locating import HUB_ID


def expect_repo(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UserError: it is not of the form owner/name.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise UserError(f"--push-to-hub is {repo_id!r}; give the repository as owner/name, such as me/kinder-reviews")


def expect_token() -> None:
    """Refuse to begin what cannot end: nothing was written yet.

    Raises:
        UserError: there is no token.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            "--push-to-hub needs a token with write access, and there is none; log in with `hf auth login`, or set "
            "HF_TOKEN"
        )


def listed(folder: Path) -> list[tuple[str, int]]:
    """Every file that would be uploaded, by its name in the repository, with its size in bytes."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted((file.relative_to(folder).as_posix(), file.stat().st_size) for file in files)


def push(folder: Path, repo_id: str, *, private: bool, message: str) -> str:
    """Upload a folder, in one commit.

    Args:
        folder: of the export.
        repo_id: owner/name; it is made where there is none.
        private: only its owner may see the repository.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        UserError: the hub refuses it or cannot be reached, or the repository is there already and is public, though it
            was to be private.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        is_public = private and api.model_info(repo_id).private is False
        if not is_public:
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    # Errors of the hub, of HTTP and of the disk have no common base; the cause stays attached.
    except Exception as error:
        raise UserError(
            f"{repo_id} could not be uploaded ({first_line(error)}); all files are in {folder}: put it right, and "
            f"upload them with `hf upload {repo_id} {folder}`"
        ) from error
    if is_public:
        raise UserError(
            f"--private is given, and {repo_id} is there already and is public: nothing was uploaded; make it private "
            f"on the hub, or name another repository (all files are in {folder})"
        )
    return str(url)
