"""The profile's webhook at the end of a local run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ..console import label, warn

if TYPE_CHECKING:
    from standardwebhooks import Webhook as Signer

    from .runner import LocalRun

MAX_RETRY_SECONDS = 60
"""Longest time for further attempts, because a person waits for the command. The profile may set a shorter one."""


def announce_end(local: LocalRun, signers: list[Signer]) -> None:
    """Announce the end of a job at its profile's webhook, and record the result in its status.

    Nothing is sent for a job that has not ended or was announced before. After Ctrl-C the next `lora run` of the job sends
    the message.

    Args:
        local: the run.
        signers: one for each secret; empty if the profile has no webhook.
    """
    webhook = local.profile.webhook
    if webhook is None or not local.status.phase.terminal or local.status.webhook is not None:
        return
    from lora_operator.webhooks import Delivery, build_delivery, deliver, post

    async def attempt(delivery: Delivery) -> None:
        await post(delivery, signers)

    def report_failure(cause: str, seconds: float) -> None:
        warn(f"webhook: {cause}; next attempt in {seconds:.0f} s, Ctrl-C skips it")

    seconds = min(webhook.retry_seconds, MAX_RETRY_SECONDS)
    delivery = build_delivery(local.observe(), webhook, datetime.now(UTC) + timedelta(seconds=seconds))
    try:
        result = asyncio.run(deliver(delivery, attempt, report_failure))
    except KeyboardInterrupt:
        warn("webhook: not delivered")
        return
    local.status = local.status.model_copy(update={"webhook": result})
    local.save()
    if result.delivered:
        label("Webhook", "delivered")
    else:
        warn(f"webhook: not delivered: {result.message}")
