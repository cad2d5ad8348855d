"""Settings of the operator: environment variables, read once, and the mounted profiles file."""

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
    """The images of the child Jobs."""

    annotate: str
    train: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """
    Environment variables:
        LORA_ANNOTATE_IMAGE, LORA_TRAIN_IMAGE: the stages' images.
        LORA_IMAGE_PULL_POLICY: the pull policy of these images; default IfNotPresent.
        LORA_IMAGE_PULL_SECRETS: the Secrets to pull these images with, comma-separated.
        LORA_PROFILES: the profiles file; default /etc/lora-operator/profiles.yaml.
        LORA_WEBHOOK_SECRETS: a folder with a folder for each Secret of the profiles' webhooks; default
            /etc/lora-webhooks.
        LORA_WATCH_NAMESPACES: the namespaces to watch, comma-separated; empty for all.
        LORA_HOST: the address of /healthz, /readyz and /metrics; default 0.0.0.0.
        LORA_PORT: the port of /healthz, /readyz and /metrics; default 8080.
        LORA_LEASE: namespace/name of the Lease by which several replicas elect a leader;
            empty for a single replica.
        LORA_POD_NAME, LORA_POD_UID: this process's pod, which owns the Lease while it leads.
        LORA_LOG_FORMAT: text or json; default text.
        LORA_METRICS_AUTHENTICATION: Token to require a bearer token for /metrics, which the API server reviews; default
            None.
    """

    images: Images
    profiles_file: Path
    webhook_secrets: Path = Path("/etc/lora-webhooks")
    namespaces: tuple[str, ...] = ()
    lease: tuple[str, str] | None = None
    pod: tuple[str, str] | None = None
    port: int = 8080
    log_format: str = "text"
    metrics_authentication: str = "None"
    host: str = "0.0.0.0"  # noqa: S104 - a pod serves its probes to the kubelet


def read_settings(environment: dict[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: naming the variable that is missing or wrong.
    """
    env = dict(os.environ) if environment is None else environment
    try:
        images = Images(
            annotate=env["LORA_ANNOTATE_IMAGE"],
            train=env["LORA_TRAIN_IMAGE"],
            pull_policy=env.get("LORA_IMAGE_PULL_POLICY", "IfNotPresent"),
            pull_secrets=_split_list(env.get("LORA_IMAGE_PULL_SECRETS", "")),
        )
        port = int(env.get("LORA_PORT", "8080"))
    except KeyError as error:
        raise SettingsError(f"set the environment variable {error.args[0]}") from None
    except ValueError:
        raise SettingsError("LORA_PORT must be a number") from None
    namespace, _, lease = env.get("LORA_LEASE", "").partition("/")
    if bool(namespace) != bool(lease):
        raise SettingsError("LORA_LEASE must be namespace/name")
    pod = env.get("LORA_POD_NAME", ""), env.get("LORA_POD_UID", "")
    log_format = env.get("LORA_LOG_FORMAT", "") or "text"
    if log_format not in ("text", "json"):
        raise SettingsError(f"LORA_LOG_FORMAT must be text or json, not {log_format!r}")
    authentication = env.get("LORA_METRICS_AUTHENTICATION", "") or "None"
    if authentication not in ("None", "Token"):
        raise SettingsError(f"LORA_METRICS_AUTHENTICATION must be None or Token, not {authentication!r}")
    return Settings(
        images=images,
        log_format=log_format,
        metrics_authentication=authentication,
        lease=(namespace, lease) if lease else None,
        pod=pod if all(pod) else None,
        profiles_file=Path(env.get("LORA_PROFILES", "/etc/lora-operator/profiles.yaml")),
        webhook_secrets=Path(env.get("LORA_WEBHOOK_SECRETS", Settings.webhook_secrets)),
        namespaces=_split_list(env.get("LORA_WATCH_NAMESPACES", "")),
        port=port,
        host=env.get("LORA_HOST", Settings.host),
    )


def read_profiles(path: Path) -> dict[str, Profile]:
    """Read the administrator's profiles.

    Raises:
        SettingsError: naming the file and each field that is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text())
        return Profiles.model_validate(raw, by_alias=True, by_name=False).profiles
    except OSError as error:
        raise SettingsError(f"cannot read the profiles file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {describe(error, 'profiles file')}") from None


class ProfilesFile:
    """The profiles file, which is read again when it has changed.

    An edit of the mounted ConfigMap needs no restart. A file that has become invalid is logged once, and the last
    valid profiles stay in use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._profiles = read_profiles(path)

    def current(self) -> dict[str, Profile]:
        stamp = self._stat()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._profiles = read_profiles(self._path)
                log.info("profiles reloaded: %s", ", ".join(sorted(self._profiles)))
            except SettingsError as error:
                log.error("invalid profiles, keeping the last valid ones: %s", error)
        return self._profiles

    def _stat(self) -> tuple[int, int]:
        """Return a pair of numbers that changes with the file.

        It includes the inode, because Kubernetes updates a mounted ConfigMap by pointing a symbolic link to a new file.
        """
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)


def _split_list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
