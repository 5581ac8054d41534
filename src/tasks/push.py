"""Upload of an exported folder to the Hugging Face hub.

Source: huggingface_hub (HfApi.create_repo, HfApi.upload_folder); the token is that of `HF_TOKEN` or `hf auth login`.
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token

from src.errors import UserError, one_line

#: Names that the hub accepts (huggingface_hub, utils/_validators.py), but that it rejects `--` and `..` too.
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,94}[A-Za-z0-9]/[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9])?", re.ASCII)
HINT = "set HF_TOKEN to one that may write, or run `hf auth login`"


def require_pushable(repo: str) -> None:
    """Reject what cannot be pushed, before anything is exported.

    Raises:
        UserError: `repo` is not <organisation or user>/<name>, or there is no token.
    """
    if REPO.fullmatch(repo) is None or "--" in repo or ".." in repo:
        raise UserError(
            f"push_to must be <organisation or user>/<name> of letters, digits, -, _ and . (at most 96 each), got {repo}"
        )
    if get_token() is None:
        raise UserError(f"push_to={repo} needs a token of the Hugging Face hub; {HINT}")


def push_folder(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload a folder as one commit; return the address of the repository, which is created if there is none.

    Args:
        folder: exported folder.
        repo: <organisation or user>/<name>.
        private: visibility of a repository that is created; that of an existing one stays.
        message: subject of the commit.

    Raises:
        UserError: the hub rejects the upload or cannot be reached; the folder stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:  # the HTTP library, and with it the error, depends on huggingface_hub's version
        response = getattr(error, "response", None)
        hint = f"; {HINT}" if response is not None and response.status_code in (401, 403, 404) else ""
        raise UserError(f"push_to={repo} failed: {one_line(error)[:300]}{hint}; the export is in {folder}") from error
    return str(address)
