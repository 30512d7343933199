"""Uploads an exported policy to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qohort.config.errors import ConfigError, RunsFailed
from qohort.environments.checked import in_words
from qohort.runs.exported import quiet


def check(name: str) -> None:
    """Check the name of a repository, and that the Hub knows the user.

    Args:
        name: The name, as `user/name`, or `name` for one of the user's own.

    Raises:
        ConfigError: If the name is not one, no token is there, or the Hub does not accept it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"to=hub:{name} is not the name of a repository: it must be like user/name") from error
    try:
        with quiet():
            HfApi().whoami()
    except Exception as error:  # errors of the network, of many kinds
        raise ConfigError(
            f"to=hub:{name}: the Hub does not know who you are: log in with `hf auth login`, or set HF_TOKEN "
            f"({in_words(error)[:200]})"
        ) from error


def upload(name: str, directory: Path, own: Sequence[str], private: bool) -> str:
    """Upload a directory in one commit, to a repository that is made if it does not exist.

    Args:
        name: The name of the repository.
        directory: The directory.
        own: Names of files that are deleted from the repository if the directory does not have them.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        RunsFailed: If it fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    api = HfApi()
    try:
        with quiet():
            repository = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=directory,
                commit_message="Upload a policy with Qohort",
                delete_patterns=list(own),
            )
    except Exception as error:  # as above
        raise RunsFailed(f"to=hub:{name}: the upload failed, and the files with it: {in_words(error)[:300]}") from error
    return str(repository)
