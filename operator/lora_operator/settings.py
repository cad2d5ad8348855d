"""Settings of the operator's process, read once: environment variables and the mounted profiles file."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from lora_api.job import describe
from lora_api.profile import Profile, Profiles

log = logging.getLogger(__name__)


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the variable or the file and what to change."""


@dataclass(frozen=True)
class Images:
    """What the children run."""

    annotate: str
    train: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """
    Environment variables:
        LORA_ANNOTATE_IMAGE, LORA_TRAIN_IMAGE: the steps' images.
        LORA_IMAGE_PULL_POLICY, LORA_IMAGE_PULL_SECRETS (comma-separated): for them.
        LORA_PROFILES: the profiles file; default /etc/lora-operator/profiles.yaml.
        LORA_WATCH_NAMESPACES: comma-separated; empty watches all.
        LORA_PORT: of /healthz, /readyz and /metrics; default 8080.
        LORA_LEASE: namespace/name of the Lease by which several operators find the one that works;
            empty where there is only one.
    """

    images: Images
    profiles_file: Path
    namespaces: tuple[str, ...] = ()
    lease: tuple[str, str] | None = None
    port: int = 8080
    host: str = "0.0.0.0"  # noqa: S104 - a pod serves its probes to the kubelet


def read_settings(environment: dict[str, str] | None = None) -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: naming the variable that is missing or wrong.
    """
    env = dict(os.environ) if environment is None else environment
    try:
        images = Images(
            annotate=env["LORA_ANNOTATE_IMAGE"],
            train=env["LORA_TRAIN_IMAGE"],
            pull_policy=env.get("LORA_IMAGE_PULL_POLICY", "IfNotPresent"),
            pull_secrets=_words(env.get("LORA_IMAGE_PULL_SECRETS", "")),
        )
        port = int(env.get("LORA_PORT", "8080"))
    except KeyError as error:
        raise SettingsError(f"set the environment variable {error.args[0]}") from None
    except ValueError:
        raise SettingsError("LORA_PORT must be a number") from None
    namespace, _, lease = env.get("LORA_LEASE", "").partition("/")
    if bool(namespace) != bool(lease):
        raise SettingsError("LORA_LEASE must be namespace/name")
    return Settings(
        images=images,
        lease=(namespace, lease) if lease else None,
        profiles_file=Path(env.get("LORA_PROFILES", "/etc/lora-operator/profiles.yaml")),
        namespaces=_words(env.get("LORA_WATCH_NAMESPACES", "")),
        port=port,
        host=env.get("LORA_HOST", Settings.host),
    )


def read_profiles(path: Path) -> dict[str, Profile]:
    """The administrator's profiles.

    Raises:
        SettingsError: naming the file and each field that is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text())
        return Profiles.model_validate(raw).profiles
    except OSError as error:
        raise SettingsError(f"cannot read the profiles file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no YAML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {describe(error, 'profiles file')}") from None


class ProfilesFile:
    """The profiles as the file has them now: an edit of the mounted ConfigMap needs no restart.

    A file that has become unreadable or invalid is said so in the log, once, and the profiles before it hold.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._profiles = read_profiles(path)

    def current(self) -> dict[str, Profile]:
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._profiles = read_profiles(self._path)
                log.info("read the profiles again: %s", ", ".join(sorted(self._profiles)))
            except SettingsError as error:
                log.error("the profiles stay as they were: %s", error)
        return self._profiles

    def _look(self) -> tuple[int, int]:
        """Changes whenever the file does; a mounted ConfigMap is exchanged whole, behind a link."""
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
