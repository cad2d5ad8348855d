"""The profile of a local run: from a profiles file, or the built-in default."""

from __future__ import annotations

from pathlib import Path

import yaml

from lora_api.profile import Profile

from .errors import UsageError

DEFAULT_PROFILE = Profile.model_validate(
    yaml.safe_load(Path(__file__).with_name("default_profile.yaml").read_text())
)
"""The profile that is used without a profiles file. `make chart` copies it from the chart's `profiles.default`."""


DEFAULT_PROFILE_NAME = "default"
"""Name of the profile of jobs that name none."""


def read_profile(path: Path | None, name: str) -> Profile:
    """Read a profile.

    Args:
        path: the profiles file; None for the default profile, whatever the name.
        name: the profile that a job names.

    Raises:
        UsageError: when the file has no such profile.
        SettingsError: when the file cannot be read.
    """
    if path is None:
        return DEFAULT_PROFILE
    from lora_operator.settings import read_profiles

    profiles = read_profiles(path)
    if name not in profiles:
        raise UsageError(f"{path} has no profile {name!r}; it has: {', '.join(sorted(profiles))}")
    return profiles[name]
