"""Settings of the page, read from environment variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_api.job import describe
from lora_api.profile import BaseModelSource, Profiles
from lora_api.stages import StoreAccess, TrainConfig

from ..errors import BadConfigurationError
from .jobs_api import JobsAccess


@dataclass(frozen=True)
class Settings:
    """Settings of the page."""

    store_access: StoreAccess
    models: Mapping[str, BaseModelSource]
    """Base models of the profile, by name. Manifests cannot name other models to load; see `allows`."""
    profile: str
    """Name of the profile."""
    cache: Path
    """Folder for base models and adapters."""
    runs: Path | None
    """Folder of local jobs (`lora run`); None in a cluster."""
    read_only: bool = False
    """Whether captions can be viewed but not changed, and no jobs are started."""
    has_llm: bool = False
    """Whether the profile has a language model for captions."""
    run: tuple[str, ...] | None = None
    """The command that runs a job on this machine; None in a cluster."""
    uploads: Path | None = None
    """Folder for uploaded images; None in a cluster."""
    access: JobsAccess = JobsAccess.NONE
    """Whose permissions are used to list and create jobs in the cluster."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose jobs are listed and created in the cluster."""

    @property
    def starts_jobs(self) -> bool:
        """Whether the page offers to start jobs."""
        return not self.read_only and (self.run is not None or self.access != JobsAccess.NONE)

    def allows(self, model: BaseModelSource | None) -> bool:
        """Return whether a base model is in the profile or in the configuration of a local job."""
        if model is None:
            return False
        known = [*self.models.values(), *_models_of_runs(self.runs)]
        return model.identity() in {source.identity() for source in known}


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from environment variables.

    LORA_PROFILES is the operator's profiles file, LORA_PROFILE the profile whose store is used (`default`),
    LORA_STORE_SECRET a folder with the files accessKey and secretKey, LORA_STORE_CA the store's certificate
    authority, LORA_CACHE a folder for models and adapters, LORA_RUNS the folder of local jobs, LORA_READ_ONLY
    `true` to forbid changes of captions and new jobs.

    To start jobs on this machine, LORA_RUN is a JSON list with the command, and LORA_UPLOADS a folder for images. In a
    cluster, LORA_JOBS_ACCESS (`none`, `user` or `serviceAccount`) and LORA_JOBS_NAMESPACES (comma-separated).

    Raises:
        BadConfigurationError: when a variable is missing or the file is invalid; the message names it.
    """
    path = Path(_require(environment, "LORA_PROFILES"))
    try:
        profiles = Profiles.model_validate(
            yaml.safe_load(path.read_text()), by_alias=True, by_name=False
        ).profiles
    except OSError as error:
        raise BadConfigurationError(f"cannot read the profiles file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise BadConfigurationError(f"{path} is not valid YAML: {error}") from None
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
        credentials_dir=_require(environment, "LORA_STORE_SECRET"),
        input_bucket=store.input_bucket,
        output_bucket=store.output_bucket,
    )
    hub = Path(environment.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    runs = environment.get("LORA_RUNS")
    return Settings(
        store_access=access,
        models=profiles[name].models,
        profile=name,
        cache=Path(environment.get("LORA_CACHE", hub / "lora")),
        runs=Path(runs) if runs else None,
        read_only=_flag(environment, "LORA_READ_ONLY"),
        has_llm=profiles[name].llm is not None,
        **_job_settings(environment),
    )


def _job_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read the fields of `Settings` that concern starting and listing jobs."""
    run, access = environment.get("LORA_RUN", ""), environment.get("LORA_JOBS_ACCESS", "") or JobsAccess.NONE
    if access not in list(JobsAccess):
        raise BadConfigurationError(
            f"LORA_JOBS_ACCESS must be one of {', '.join(JobsAccess)}, not {access!r}"
        )
    listed = environment.get("LORA_JOBS_NAMESPACES", "").split(",")
    namespaces = tuple(name.strip() for name in listed if name.strip())
    if access != JobsAccess.NONE and not namespaces:
        raise BadConfigurationError(
            "set LORA_JOBS_NAMESPACES to the namespaces of the jobs, or LORA_JOBS_ACCESS to none"
        )
    return {
        "run": tuple(json.loads(run)) if run else None,
        "uploads": Path(_require(environment, "LORA_UPLOADS")) if run else None,
        "access": JobsAccess(access),
        "namespaces": namespaces,
    }


def _models_of_runs(runs: Path | None) -> Iterator[BaseModelSource]:
    """Base models of local jobs, which may come from any profiles file that `lora run` was given."""
    for file in runs.glob("*/*/*-train-*.json") if runs else ():
        try:
            yield TrainConfig.model_validate_json(file.read_bytes()).base_model
        except (OSError, ValidationError):
            continue  # of another version, or removed meanwhile


def _require(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise BadConfigurationError(f"set {name}, or start the page with `lora demo`, which sets it")
    return value


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "false").lower()
    if value not in ("true", "false"):
        raise BadConfigurationError(f"{name} must be true or false, not {value!r}")
    return value == "true"
