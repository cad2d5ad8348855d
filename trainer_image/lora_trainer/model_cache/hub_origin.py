"""Models on the Hugging Face hub; each file is verified against the hash that the hub lists."""

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

from ..errors import BadConfigurationError, StageError, UnavailableError
from ..store import file_sha256
from .origin import MODEL, VAE, Contents
from .selection import component_files, encoder_files, pipeline_files
from .single_file import DOWNLOADS, convert

log = logging.getLogger(__name__)


class HubOrigin:
    """Origin of a model on the hub: a pipeline in diffusers' layout, an encoder, or a checkpoint in one file."""

    def __init__(self, source: HubModel, kind: str = "pipeline") -> None:
        self._kind = kind
        self._source = source

    @property
    def address(self) -> str:
        return self._source.identity()

    def still_has(self, identity: str) -> bool:
        """Return True: a commit never changes. Without a revision in the profile, the commit fetched first is kept."""
        return True

    def fetch(self, folder: Path) -> Contents:
        source, vae = self._source, self._source.vae
        if source.file:
            return self._fetch_file(folder)
        commit, files = _fetch(
            source.repo,
            source.revision,
            lambda names: (
                encoder_files(names)
                if self._kind == "encoder"
                else pipeline_files(names, source.variant, own_vae=vae is None)
            ),
            folder / MODEL,
        )
        # The identity names the resolved commit, even if the profile names no revision.
        identity = f"hub:{source.repo}@{commit}#{source.variant}"
        return self._with_vae(folder, identity, files)

    def _fetch_file(self, folder: Path) -> Contents:
        source = self._source
        commit, _ = _fetch(source.repo, source.revision, self._choose_file, folder / DOWNLOADS)
        with _translate_errors(source.repo, source.revision):
            files = convert(folder / DOWNLOADS / source.file, folder / MODEL, source.checkpoint)
        identity = f"hub:{source.repo}/{source.file}{source.checkpoint.identity()}@{commit}"
        return self._with_vae(folder, identity, files)

    # StageErrors in this module begin with a verb: `_translate_errors` puts the repository in front of them.
    def _choose_file(self, names: Collection[str]) -> list[str]:
        if self._source.file not in names:
            raise BadConfigurationError(f"has no file {self._source.file}")
        return [self._source.file]

    def _with_vae(self, folder: Path, identity: str, files: list[FileEntry]) -> Contents:
        """Fetch the VAE that the profile names, if any, and add it to the identity and the files."""
        vae = self._source.vae
        if vae:
            commit, more = _fetch(
                vae.repo, vae.revision, lambda names: component_files(names, "", ""), folder / VAE
            )
            identity += f"+{vae.repo}@{commit}"
            files = files + more
        return Contents(identity=identity, files=files)


def _fetch(
    repo: str, revision: str, choose: Callable[[Collection[str]], list[str]], folder: Path
) -> tuple[str, list[FileEntry]]:
    """Download and verify files of a repository.

    Args:
        revision: a branch, tag or commit; empty for the default branch.
        choose: selects the files to download from the paths of all files.

    Returns:
        The commit that the revision resolves to, and the files.
    """
    disable_progress_bars()
    hub = HfApi()
    with _translate_errors(repo, revision):
        info = hub.model_info(repo, revision=revision or None, files_metadata=True)
        commit, siblings = info.sha, {file.rfilename: file for file in info.siblings or []}
        if commit is None or (re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision):
            raise BadConfigurationError(f"resolves revision {revision} to commit {commit}")
        chosen = choose(siblings)
        files: list[FileEntry] = []
        for number, name in enumerate(chosen, 1):
            sibling = siblings[name]
            log.info("%s %d of %d: %s, %.1f MB", repo, number, len(chosen), name, (sibling.size or 0) / 1e6)
            path = Path(hub.hf_hub_download(repo, name, revision=commit, local_dir=folder))
            files.append(
                FileEntry(
                    key=f"{folder.name}/{name}", bytes=path.stat().st_size, sha256=_verify(path, sibling)
                )
            )
    return commit, files


def _verify(path: Path, sibling: RepoSibling) -> str:
    """Verify a file against the hub's hash: the sha256 of an LFS file, git's blob hash of any other.

    Returns:
        The sha256 of the file.

    Raises:
        UnavailableError: when the hash differs. The file is then removed, so that a retry downloads it again.
    """
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
            f"sent {sibling.rfilename} with a wrong hash: try again",
            Reason.MODEL_UNAVAILABLE,
        )
    return sha256


@contextmanager
def _translate_errors(repo: str, revision: str) -> Iterator[None]:
    """Translate the client's errors to StageErrors, and put the repository in front of every message."""
    where = f"the hub's model {repo!r}" + (f" at {revision}" if revision else "")
    try:
        yield
    except StageError as error:
        raise type(error)(f"{where} {error}", error.reason) from None
    except GatedRepoError as error:
        raise BadConfigurationError(
            f"{where} requires accepting a licence: download it with your account, "
            "upload it to the store and name it in the profile with `source: store`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise BadConfigurationError(
            f"{where} does not exist or is not public: {_first_line(error)}"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
        ):
            raise  # an error of the local disk, not of the hub
        raise UnavailableError(
            f"{where} cannot be fetched: {_first_line(error)}", Reason.MODEL_UNAVAILABLE
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
