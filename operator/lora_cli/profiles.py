"""The profile of a local run: from a profiles file, or the built-in default."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from lora_api.profile import Profile, Profiles

from .errors import UsageError
from .job_file import InvalidManifestError, locate, read_file, source_of
from .manifests.checks import explain

DEFAULT_PROFILE = Profile.model_validate(
    yaml.safe_load(Path(__file__).with_name("default_profile.yaml").read_text())
)
"""The profile that is used without a profiles file. `make chart` copies it from the chart's `profiles.default`."""


DEFAULT_PROFILE_NAME = "default"
"""Name of the profile of jobs that name none."""


def read_profiles(path: Path) -> dict[str, Profile]:
    """Read a profiles file.

    Raises:
        UsageError: when the file cannot be read.
        InvalidManifestError: when it is not valid; the message names each wrong field and its line.
    """
    documents, source = read_file(path), source_of(path)
    if not documents:
        raise InvalidManifestError(f"{source}:1: holds no profiles")
    document, *more = documents
    if more:
        raise InvalidManifestError(f"{source}:{more[0].first_line}: a profiles file has one document")
    try:
        return Profiles.model_validate(document.data, by_alias=True, by_name=False).profiles
    except ValidationError as error:
        problems = explain(error, Profiles, document.data)
        raise InvalidManifestError("\n".join(locate(problems, document, source))) from None


def read_profile(path: Path | None, name: str) -> Profile:
    """Read a profile.

    Args:
        path: the profiles file; None for the default profile, whatever the name.
        name: the profile that a job names.

    Raises:
        UsageError: when the file has no such profile.
        UsageError, InvalidManifestError: as `read_profiles`.
    """
    if path is None:
        return DEFAULT_PROFILE
    profiles = read_profiles(path)
    if name not in profiles:
        raise UsageError(f"{path} has no profile {name!r}; it has: {', '.join(sorted(profiles))}")
    return profiles[name]
