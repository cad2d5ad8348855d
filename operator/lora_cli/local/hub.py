"""Upload of a result to the Hugging Face hub. Its `README.md`, which the training wrote, is the model card."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import CommandError, ServiceUnavailableError, UsageError
from ..exits import Exit

if TYPE_CHECKING:
    from .runs import Run

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class HubError(CommandError):
    """The hub refused the upload."""

    exit_code = Exit.REFUSED


def push_folder(run: Run, repository: str, private: bool) -> str:
    """Create a model repository if it is missing, and upload a job's result.

    Returns:
        The repository's URL.

    Raises:
        UsageError: when the repository is not OWNER/NAME.
        HubError: when the hub refuses the token or the upload.
        ServiceUnavailableError: when the hub does not answer.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not REPOSITORY.fullmatch(repository):
        raise UsageError(f"name the repository as OWNER/NAME, not {repository!r}")
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=run.result,
            commit_message=f"Upload {run.resource['metadata']['name']}",
            ignore_patterns=["*.part"],
        )
    except HfHubHTTPError as error:
        raise HubError(f"the hub refused the upload: {error.server_message or error}") from None
    except ValueError as error:  # the client refused the model card, or the answer was not the hub's
        raise HubError(f"the hub did not take the upload: {error}") from None
    except (HTTPError, OSError) as error:
        raise ServiceUnavailableError(f"the hub cannot be reached: {error}") from None
    return str(url)
