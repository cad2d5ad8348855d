"""Models of the Hugging Face hub, each file verified by the hash that the hub has of it."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.tqdm import disable_progress_bars

from lora_api.manifest import FileEntry
from lora_api.profile import HubModel
from lora_api.reasons import Reason

from ..errors import BadConfigurationError, StepError, UnavailableError
from ..store import file_sha256
from .origin import MODEL, VAE, Contents
from .selection import component_files, pipeline_files

log = logging.getLogger(__name__)


class HubOrigin:
    def __init__(self, source: HubModel) -> None:
        self._source = source

    @property
    def address(self) -> str:
        return self._source.identity()

    def still_has(self, identity: str) -> bool:
        """A commit does not change; a profile that names none gets the one that was first fetched."""
        return True

    def fetch(self, folder: Path) -> Contents:
        source, vae = self._source, self._source.vae
        commit, files = _fetch(
            source.repo,
            source.revision,
            lambda names: pipeline_files(names, source.variant, own_vae=vae is None),
            folder / MODEL,
        )
        # The identity is of commits, also where the profile names none.
        identity = f"hub:{source.repo}@{commit}#{source.variant}"
        if vae:
            commit, more = _fetch(
                vae.repo, vae.revision, lambda names: component_files(names, "", ""), folder / VAE
            )
            identity += f"+{vae.repo}@{commit}"
            files += more
        return Contents(identity=identity, files=files)


def _fetch(
    repo: str, revision: str, choose: Callable[[Collection[str]], list[str]], folder: Path
) -> tuple[str, list[FileEntry]]:
    """Download some files of a repository; returns the commit that they are of."""
    disable_progress_bars()
    hub = HfApi()
    with _plainly(repo, revision):
        info = hub.model_info(repo, revision=revision or None, files_metadata=True)
        commit, siblings = info.sha, {file.rfilename: file for file in info.siblings or []}
        if commit is None or (re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision):
            raise BadConfigurationError(f"gives commit {commit} for revision {revision}")
        chosen = choose(siblings)
        files: list[FileEntry] = []
        for number, name in enumerate(chosen, 1):
            sibling = siblings[name]
            log.info("%s %d of %d: %s, %.1f MB", repo, number, len(chosen), name, (sibling.size or 0) / 1e6)
            path = Path(hub.hf_hub_download(repo, name, revision=commit, local_dir=folder))
            files.append(
                FileEntry(
                    key=f"{folder.name}/{name}", bytes=path.stat().st_size, sha256=_verified(path, sibling)
                )
            )
    return commit, files


def _verified(path: Path, sibling: RepoSibling) -> str:
    """The sha256 of a file that is what the hub says: by sha256 where it lies in LFS, else by git's own hash."""
    sha256 = file_sha256(path)
    if sibling.lfs:
        right = sha256 == sibling.lfs.sha256
    else:
        data = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        right = blob == sibling.blob_id
    if not right:
        path.unlink()
        raise UnavailableError(
            f"gave a {sibling.rfilename} whose hash is not the one it names: try again",
            Reason.MODEL_UNAVAILABLE,
        )
    return sha256


@contextmanager
def _plainly(repo: str, revision: str) -> Iterator[None]:
    """Turn the client's errors into the step's; every message begins with the repository."""
    where = f"the hub's model {repo!r}" + (f" at {revision}" if revision else "")
    try:
        yield
    except StepError as error:
        raise type(error)(f"{where} {error}", error.reason) from None
    except GatedRepoError as error:
        raise BadConfigurationError(
            f"{where} asks for a licence to be accepted: fetch it with your account, "
            "upload it to the store and name it in the profile with `source: store`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise BadConfigurationError(f"{where} is not there, or not public: {_first_line(error)}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
        ):
            raise  # the disk's error, not the hub's
        raise UnavailableError(
            f"{where} cannot be fetched: {_first_line(error)}", Reason.MODEL_UNAVAILABLE
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
