"""Where the page finds its store, from the environment of its process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from lora_api.job import describe
from lora_api.profile import Profiles
from lora_api.steps import StoreAccess

from ..errors import BadConfigurationError


@dataclass(frozen=True)
class Settings:
    """What the page works with."""

    access: StoreAccess
    cache: Path
    """Where base models and adapters are kept."""
    runs: Path | None
    """The folder of `lora run`'s jobs, where the page runs beside them."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment.

    LORA_PROFILES is the operator's profiles file, LORA_PROFILE the profile whose store is used (`default`),
    LORA_STORE_SECRET a folder with the files accessKey and secretKey, LORA_STORE_CA the store's certificate
    authority, LORA_CACHE a folder for models and adapters, LORA_RUNS the folder of `lora run`'s jobs.

    Raises:
        BadConfigurationError: naming the variable that is missing or what is wrong with the file.
    """
    path = Path(_need(environment, "LORA_PROFILES"))
    try:
        profiles = Profiles.model_validate(yaml.safe_load(path.read_text())).profiles
    except OSError as error:
        raise BadConfigurationError(f"cannot read the profiles file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise BadConfigurationError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        raise BadConfigurationError(f"{path}: {describe(error, 'profiles file')}") from None
    name = environment.get("LORA_PROFILE", "default")
    if name not in profiles:
        known = ", ".join(sorted(profiles))
        raise BadConfigurationError(f"{path} has no profile {name!r}; set LORA_PROFILE to one of: {known}")
    store = profiles[name].store
    access = StoreAccess(
        endpoint=store.endpoint,
        secure=store.secure,
        region=store.region,
        ca_file=environment.get("LORA_STORE_CA", ""),
        credentials_dir=_need(environment, "LORA_STORE_SECRET"),
        input_bucket=store.input_bucket,
        output_bucket=store.output_bucket,
    )
    hub = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    runs = environment.get("LORA_RUNS")
    return Settings(access, Path(environment.get("LORA_CACHE", hub / "lora")), Path(runs) if runs else None)


def _need(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise BadConfigurationError(
            f"set {name}, or start the page with `lora demo`, which sets all that it needs"
        )
    return value
