"""Webhooks: signed HTTP requests that announce the end of a job.

Messages and signatures follow the Standard Webhooks specification 1.0 (https://www.standardwebhooks.com). A message is
delivered at least once. Its ID is the same in every attempt, also after a restart, so receivers can drop repetitions.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import aiohttp
from standardwebhooks import Webhook as Signer

from lora_api import __version__
from lora_api.profile import Webhook
from lora_api.redact import register_secret
from lora_api.status import ConditionType, JobStatus, Phase, WebhookStatus

from . import metrics
from .snapshot import Key, Snapshot

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0
"""Shortest and longest pause between two attempts. It doubles with every attempt."""
MAX_CONCURRENT = 16
"""Requests at the same time."""
GONE = 410
"""HTTP status with which a receiver asks for no further attempts."""
MIN_SECRET_BYTES = 24
"""The specification's lower bound."""
SECRET_FILE, CA_FILE = "secret", "ca.crt"


class WebhookError(Exception):
    """A message was not accepted.

    Attributes:
        final: whether the receiver asks for no further attempts.
    """

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True)
class Delivery:
    """A message and where it goes."""

    key: Key
    id: str
    """Identifies this end of this job. A failed job that is retried ends again, with another ID."""
    body: str
    """JSON."""
    webhook: Webhook
    deadline: datetime
    """When to make no further attempts."""


def message_id(uid: str, status: JobStatus) -> str:
    """Return the ID of the message that announces the end of a job."""
    try:
        namespace = UUID(uid)
    except ValueError:  # Kubernetes does not promise that a UID is a UUID
        namespace = uuid5(UUID(int=0), uid)
    return f"msg_{uuid5(namespace, f'{status.finish_time:%Y-%m-%dT%H:%M:%SZ}').hex}"


def build_delivery(snapshot: Snapshot, webhook: Webhook, deadline: datetime) -> Delivery:
    """Build the message for a job that has ended."""
    status = snapshot.status
    condition = status.condition(ConditionType.SUCCEEDED)
    wire = status.to_wire()
    data: dict[str, Any] = {
        "namespace": snapshot.namespace,
        "name": snapshot.name,
        "uid": snapshot.uid,
        "profile": snapshot.spec.profile if snapshot.spec else "",
        "phase": str(status.phase),
        "reason": condition.reason if condition else "",
        "message": condition.message if condition else "",
    }
    data |= {name: wire[name] for name in ("startTime", "finishTime", "inputHash", "adapter") if name in wire}
    outcome = "succeeded" if status.phase == Phase.SUCCEEDED else "failed"
    body = {"type": f"loratrainingjob.{outcome}", "timestamp": wire["finishTime"], "data": data}
    return Delivery(
        key=(snapshot.namespace, snapshot.name),
        id=message_id(snapshot.uid, status),
        body=json.dumps(body, ensure_ascii=False),
        webhook=webhook,
        deadline=deadline,
    )


def parse_secrets(text: str) -> list[Signer]:
    """Parse the secrets that sign a message: base64 with or without the prefix `whsec_`, one a line.

    With several, every message has a signature of each, so that a secret can be replaced without a gap.

    Raises:
        WebhookError: when there is none, or one is not valid.
    """
    lines = text.split()
    if not lines:
        raise WebhookError("the secret is empty")
    signers = []
    for line in lines:
        encoded = line.removeprefix("whsec_")
        try:
            # the library would skip characters that are not base64, and sign with an unexpected key
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            key = b""
        if len(key) < MIN_SECRET_BYTES:
            raise WebhookError(
                f"the secret must be base64 of at least {MIN_SECRET_BYTES} bytes, for example from: "
                "openssl rand -base64 32"
            )
        register_secret(line)
        signers.append(Signer(key))
    return signers


def read_secrets(folder: Path) -> list[Signer]:
    """Read the secrets from the mounted Secret.

    Raises:
        WebhookError: when there is none. It may be created later.
    """
    try:
        return parse_secrets((folder / SECRET_FILE).read_text())
    except (OSError, UnicodeDecodeError):
        raise WebhookError(
            f"the Secret {folder.name!r} in the operator's namespace has no key {SECRET_FILE!r}, or is not mounted"
        ) from None


async def post(delivery: Delivery, signers: list[Signer], ca_file: Path | None = None) -> None:
    """Make one attempt. The answer's body is not read.

    Args:
        delivery: the message.
        signers: one for each secret.
        ca_file: the certificate authority of the receiver; None for those of the system.

    Raises:
        WebhookError: when the receiver does not accept the message.
    """
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"lora-training-operator/{__version__}",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(delivery.id, now, delivery.body) for signer in signers),
    }
    webhook = delivery.webhook
    receiver = urlsplit(webhook.url).netloc
    timeout = aiohttp.ClientTimeout(total=webhook.timeout_seconds)
    try:
        trust = ssl.create_default_context(cafile=ca_file) if ca_file else True
        async with (
            # the body, which is not read, must not be decompressed either
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.post(
                webhook.url, data=delivery.body.encode(), headers=headers, allow_redirects=False, ssl=trust
            ) as answer,
        ):
            status = answer.status
    except TimeoutError:
        raise WebhookError(f"{receiver} did not answer within {webhook.timeout_seconds} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # the text of the error may contain the URL, whose query may contain a password
        raise WebhookError(f"{receiver} cannot be reached: {_describe(error)}") from None
    if 300 <= status < 400:
        raise WebhookError(
            f"{receiver} answered {status}; redirects are not followed: name the final address"
        )
    if not 200 <= status < 300:
        raise WebhookError(f"{receiver} answered {status}", final=status == GONE)


async def deliver(
    delivery: Delivery,
    attempt: Callable[[Delivery], Awaitable[None]],
    on_failure: Callable[[str, float], None],
) -> WebhookStatus:
    """Make attempts until one succeeds, the receiver asks for no more, or the deadline has passed.

    Args:
        delivery: the message.
        attempt: a coroutine function like `post`.
        on_failure: called after a failed attempt with the cause and the seconds until the next one.
    """
    count, pause = 0, FIRST_RETRY_SECONDS
    while True:
        count += 1
        try:
            await attempt(delivery)
        except WebhookError as error:
            now = datetime.now(UTC)
            left = (delivery.deadline - now).total_seconds()
            if error.final or left <= 0:
                return WebhookStatus(delivered=False, attempts=count, time=now, message=str(error))
            seconds = min(pause, left)
            on_failure(str(error), seconds)
            await asyncio.sleep(seconds)
            pause = min(2 * pause, LAST_RETRY_SECONDS)
        else:
            return WebhookStatus(delivered=True, attempts=count, time=datetime.now(UTC))


class Webhooks:
    """Delivers messages in the background, and keeps their results until they are in a status."""

    def __init__(self, secrets: Path, on_result: Callable[[Key], None]) -> None:
        """
        Args:
            secrets: a folder with the mounted Secrets, each a folder of files.
            on_result: called with the job when a message was delivered or given up.
        """
        self._secrets = secrets
        self._on_result = on_result
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._results: dict[Key, tuple[str, WebhookStatus]] = {}
        """The ID and the result of the last message about each job."""
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def send(self, delivery: Delivery) -> None:
        """Start to deliver a message, unless it is being delivered or its result is known."""
        if delivery.id not in self._tasks and self.result(delivery.key, delivery.id) is None:
            self._tasks[delivery.id] = asyncio.create_task(self._run(delivery))

    def result(self, key: Key, id_: str) -> WebhookStatus | None:
        """Return the result of a message; None while there is none."""
        last_id, result = self._results.get(key, ("", None))
        return result if last_id == id_ else None

    def forget(self, key: Key) -> None:
        """Drop the result about a job that is gone or has it in its status."""
        self._results.pop(key, None)

    async def stop(self) -> None:
        """Cancel what is being delivered. The next process sends it again."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, delivery: Delivery) -> None:
        def log_failure(cause: str, seconds: float) -> None:
            log.warning("webhook of %s/%s: %s; next attempt in %.0f s", *delivery.key, cause, seconds)

        try:
            result = await deliver(delivery, self._attempt, log_failure)
        finally:
            del self._tasks[delivery.id]
        metrics.WEBHOOKS.labels("delivered" if result.delivered else "failed").inc()
        if not result.delivered:
            log.error("webhook of %s/%s: given up: %s", *delivery.key, result.message)
        self._results[delivery.key] = (delivery.id, result)
        self._on_result(delivery.key)

    async def _attempt(self, delivery: Delivery) -> None:
        folder = self._secrets / delivery.webhook.secret_name
        ca_file = folder / CA_FILE
        async with self._slots:
            await post(delivery, read_secrets(folder), ca_file if ca_file.is_file() else None)


def _describe(error: Exception) -> str:
    """Describe a connection error without the URL."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return str(cause.reason or cause.strerror or "TLS failed")
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(error).__name__
