"""LoraTrainingJobs in the cluster, with the permissions of the user or of the page's ServiceAccount."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from lora_api import GROUP, PLURAL, VERSION

from ..errors import BadSetupError, UnavailableError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FORBIDDEN, UNAUTHORIZED = 403, 401
TIMEOUT_SECONDS = 15
TOKEN = re.compile("[!-~]+")
MAX_JOBS = 500
"""Jobs of a namespace that are listed."""


class JobsAccess(StrEnum):
    """Whose permissions the page uses in the cluster."""

    NONE = "none"
    """The page does not use the Kubernetes API."""
    USER = "user"
    """Those of the bearer token that a login proxy forwards or the user enters."""
    SERVICE_ACCOUNT = "serviceAccount"
    """Those of the page's own ServiceAccount, the same for all users."""


@dataclass(frozen=True)
class JobsApi:
    """Lists and creates jobs with one token."""

    token: str
    host: str
    ca_file: str

    def list_jobs(self, namespace: str) -> list[dict[str, Any]]:
        """List the jobs of a namespace, at most `MAX_JOBS`."""
        answer = self._call("list_namespaced_custom_object", namespace, limit=MAX_JOBS)
        items: list[dict[str, Any]] = answer["items"]
        return items

    def create_job(self, namespace: str, manifest: Mapping[str, Any], dry_run: bool = False) -> None:
        """Create a job, or only let the API server check it and the permissions.

        Raises:
            BadSetupError: with the message of the API server.
        """
        options: dict[str, Any] = {"dry_run": "All"} if dry_run else {}
        self._call(
            "create_namespaced_custom_object", namespace, body=manifest, field_validation="Strict", **options
        )

    def _call(self, method: str, namespace: str, **options: Any) -> dict[str, Any]:
        configuration = client.Configuration(host=self.host)
        configuration.ssl_ca_cert = self.ca_file or None
        configuration.api_key["authorization"] = self.token
        configuration.api_key_prefix["authorization"] = "Bearer"
        configuration.retries = 1
        with client.ApiClient(configuration) as connection:
            call = getattr(client.CustomObjectsApi(connection), method)
            try:
                answer: dict[str, Any] = call(
                    GROUP, VERSION, namespace, PLURAL, _request_timeout=TIMEOUT_SECONDS, **options
                )
            except ApiException as error:
                raise BadSetupError(_explain(error)) from None
            except (HTTPError, OSError) as error:
                raise UnavailableError(
                    f"the Kubernetes API does not answer: {type(error).__name__}"
                ) from None
        return answer


def connect(access: JobsAccess, token: str, environment: Mapping[str, str] = os.environ) -> JobsApi | None:
    """Connect with the token of the user or of the ServiceAccount.

    Args:
        access: whose permissions to use.
        token: the user's token; empty before it is known.

    Returns:
        None when there is no token yet.

    Raises:
        BadSetupError: when the pod has no address of the API server or no token.
    """
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        raise BadSetupError("KUBERNETES_SERVICE_HOST is not set: the page does not run in a cluster")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    address = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    ca_file = environment.get("LORA_KUBERNETES_CA", str(SERVICE_ACCOUNT / "ca.crt"))
    if access == JobsAccess.SERVICE_ACCOUNT:
        token_file = Path(environment.get("LORA_KUBERNETES_TOKEN", SERVICE_ACCOUNT / "token"))
        try:
            token = token_file.read_text().strip()  # read each time: the kubelet replaces it
        except OSError as error:
            raise BadSetupError(f"cannot read the token of the ServiceAccount: {error.strerror}") from None
    if token and not TOKEN.fullmatch(token):
        # the HTTP client would repeat the token in its error
        raise BadSetupError("the token contains characters that no token has: enter another one")
    return JobsApi(token, address, ca_file) if token else None


def user_token(headers: Mapping[str, str]) -> str:
    """Find the token that a login proxy forwards; empty if there is none."""
    named = {name.lower(): value for name, value in headers.items()}
    scheme, _, token = named.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else named.get("x-forwarded-access-token", "").strip()


def _explain(error: ApiException) -> str:
    try:
        message = str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{error.status} {error.reason}"
    if error.status == UNAUTHORIZED:
        return "the Kubernetes API does not accept the token: sign in again, or enter another one"
    return message


def readable_jobs(api: JobsApi, namespaces: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """List the jobs of all namespaces that the token may read.

    Returns:
        The jobs, and a message for each namespace that cannot be read.
    """
    jobs: list[dict[str, Any]] = []
    problems = []
    for namespace in namespaces:
        try:
            jobs += api.list_jobs(namespace)
        except (BadSetupError, UnavailableError) as error:
            problems.append(f"{namespace}: {error}")
    return jobs, problems
