"""Requests of captions from a language model. Each caption is stored as soon as it is received.

The key of a stored caption is the hash of everything that it depends on. A restarted pod, or the same job created
again, thus requests only the captions that are missing. Failures are not stored, but their cost is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from pydantic import ValidationError

from lora_api.base import Lenient
from lora_api.job import JobSpec
from lora_api.keys import cached_caption
from lora_api.manifest import canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_api.stages import AnnotateConfig, LLMAccess

from ..errors import BadDataError, BadSetupError, InterruptedStageError, StageError
from ..store import Bucket, ObjectMissingError, ObjectTooLargeError
from .budget import Budget, Spend
from .caption_format import DeclinedError, UnusableReplyError, assemble, parse_reply
from .concept_fields import reply_schema
from .intake import DatasetImage
from .prompt import LARGER_LIMITS, MAX_OUTPUT_TOKENS, PROMPT_VERSION, SYSTEM, question
from .providers.protocol import (
    ImageRefusedError,
    MalformedReplyError,
    Provider,
    Question,
    Reply,
    TokenUsage,
    TransientError,
)
from .service import Outage, Slots

log = logging.getLogger(__name__)

TRIES = 2
"""Maximum number of requests for one caption. Retries while the service is unavailable do not count."""

GRACE_SECONDS = 20
"""Seconds after SIGTERM in which requests in flight may finish."""


class StoredCaption(Lenient):
    """The stored form of a caption: its fields."""

    fields: dict[str, str]
    job_uid: str
    """UID of the job that paid for the caption."""


@dataclass(frozen=True)
class Failed:
    """The outcome of an image for which the model or the service refused a caption."""

    reason: str


def caption_digest(spec: JobSpec, access: LLMAccess, image: DatasetImage) -> str:
    """Hash everything that a caption depends on.

    That is the shown part of the image, the provider, the model, the concept, the instructions and the prompt version.
    """
    return sha256_hex(
        canonical_json(
            {
                "image": image.pixels_sha256,
                "shown": image.shown,
                "provider": access.provider,
                "model": access.model,
                "concept": spec.concept.to_wire(),
                "instructions": spec.annotation.instructions,
                "prompt": PROMPT_VERSION,
            }
        )
    )


class Captioner:
    """Requests captions for the images of one job."""

    def __init__(
        self,
        config: AnnotateConfig,
        access: LLMAccess,
        provider: Provider,
        bucket: Bucket,
        stop: asyncio.Event,
    ) -> None:
        """
        Args:
            bucket: holds the captions and the spend of this job.
            stop: when set, no further request is sent.

        Raises:
            BadSetupError: when the job limits the cost and the profile has no price.
        """
        self._config = config
        self._access = access
        self._provider = provider
        self._bucket = bucket
        self._stop = stop
        self._slots = Slots(access.concurrency)
        self._outage = Outage(access.retry_seconds)
        self._usable = 0
        self._max_output_tokens = MAX_OUTPUT_TOKENS
        # Set after a reply without the fields, since many services ignore a schema that they do not support.
        self._spell_out = False
        # A model in this pod has no price per token, so a limit on the cost does not apply.
        limit = None if access.provider == "transformers" else config.spec.annotation.limits.max_cost_usd
        self.budget = Budget(access.price, limit, self._save_spend, self._load_spend())

    async def caption(
        self, images: Sequence[DatasetImage], on_done: Callable[[int], None]
    ) -> list[dict[str, str] | Failed]:
        """Return the fields of each image's caption, in the order of the images.

        Requests run in parallel, up to the profile's limit. After the first error, requests in flight are finished
        and stored, and no more are sent.

        Args:
            on_done: called with the number of images that have an outcome.

        Raises:
            InterruptedStageError: when the stage was stopped before all images had an outcome.
            StageError: the first error of the provider, the budget or the store, or when the replies for an image
                cannot be used.
        """
        keys = [self._key(image) for image in images]
        distinct = dict(zip(keys, images, strict=True))  # identical images are captioned once
        results = await self._load_stored(list(distinct))
        waiting = deque(key for key in distinct if key not in results)
        errors: list[Exception] = []

        def report() -> None:
            on_done(sum(key in results for key in keys))

        async def worker() -> None:
            while waiting and not errors and not self._stop.is_set():
                key = waiting.popleft()
                try:
                    results[key] = await self._caption_one(distinct[key], key)
                except Exception as error:
                    errors.append(error)
                else:
                    report()

        report()
        workers = [asyncio.create_task(worker()) for _ in range(self._access.concurrency)]
        guard = asyncio.create_task(self._cancel_when_stopped(workers))
        await asyncio.gather(*workers, return_exceptions=True)
        guard.cancel()
        if errors:
            raise errors[0]
        if len(results) < len(distinct):
            raise InterruptedStageError("interrupted; the captions so far are stored")
        return [results[key] for key in keys]

    async def _cancel_when_stopped(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Cancel requests that outlast the grace period, before Kubernetes kills the pod."""
        await self._stop.wait()
        await asyncio.sleep(GRACE_SECONDS)
        for worker in workers:
            worker.cancel()

    async def _load_stored(self, keys: Sequence[str]) -> dict[str, dict[str, str] | Failed]:
        """Load the captions that this job or another one has paid for."""
        stored = await asyncio.gather(*(asyncio.to_thread(self._load, key) for key in keys))
        usable: dict[str, dict[str, str] | Failed] = {}
        usable.update({key: caption.fields for key, caption in zip(keys, stored, strict=True) if caption})
        self._usable = len(usable)
        return usable

    def _key(self, image: DatasetImage) -> str:
        return cached_caption(self._config.namespace, caption_digest(self._config.spec, self._access, image))

    async def _caption_one(self, image: DatasetImage, key: str) -> dict[str, str] | Failed:
        """Request a caption up to TRIES times and store it before it is used.

        A reply that is cut off does not count as a try as long as a larger output limit can be used. Returns
        `Failed` when the last reply was a refusal.

        Raises:
            StageError: when the last reply cannot be used. This is a fault of the model, not of the image.
        """
        concept, reason, tries, last = self._config.spec.concept, "", 0, ""
        while tries < TRIES:
            tries += 1
            limit = self._max_output_tokens
            try:
                reply = await self._ask(image)
                fields = parse_reply(reply.text, concept, reply.truncated)
                assemble(fields, concept)
            except ImageRefusedError as error:
                reason, last = str(error), "refused"
                if not error.billed:  # an error response, which would be the same for another request
                    break
            except DeclinedError as error:
                reason, last = str(error), "refused"
            except MalformedReplyError:
                if tries == TRIES:
                    raise
                continue
            except UnusableReplyError as error:
                reason, last = str(error), "unusable"
                if reply.truncated:
                    reason = self._truncated(reply)
                    tries -= self._raise_limit(limit)
                else:
                    self._spell_out = True
            else:
                self._usable += 1
                stored = StoredCaption(fields=fields, job_uid=self._config.uid)
                await asyncio.to_thread(
                    self._bucket.put, key, canonical_json(stored.to_wire()), "application/json"
                )
                return fields
            log.warning("%s: %s", image.source.key, reason)
        if last == "unusable":
            raise self._unusable(image, reason)
        return Failed(reason)

    def _unusable(self, image: DatasetImage, reason: str) -> StageError:
        """Return the error for replies that cannot be used.

        If no reply of the run was usable, the model is unsuitable; otherwise this image is named.
        """
        if not self._usable:
            return BadSetupError(
                f"no reply of the model {self._access.model!r} can be used; choose another one: {reason}",
                Reason.CONFIGURATION_INVALID,
            )
        return BadDataError(
            f"{image.source.key}: no usable reply in {TRIES} requests (the captions so far are stored): {reason}",
            Reason.CAPTION_REFUSED,
        )

    def _truncated(self, reply: Reply) -> str:
        spent = ""
        if reply.usage and reply.usage.reasoning_tokens:
            spent = f", {reply.usage.reasoning_tokens} of them for reasoning"
        written = reply.usage.output_tokens if reply.usage else self._max_output_tokens
        return f"the reply was cut off after {written} tokens{spent}"

    def _raise_limit(self, used: int) -> bool:
        """Set an output limit above `used` for the rest of the run. Returns False when there is no larger one."""
        if self._max_output_tokens > used:
            return True  # another request has raised it meanwhile
        larger = next((limit for limit in LARGER_LIMITS if limit > self._max_output_tokens), None)
        if larger is None:
            return False
        self._max_output_tokens = larger
        return True

    async def _ask(self, image: DatasetImage) -> Reply:
        """Return one reply. The request is repeated while the service is unavailable, within the budget."""
        concept = self._config.spec.concept
        asked = Question(
            system=SYSTEM[concept.type],
            text=question(concept, self._config.spec.annotation.instructions),
            jpeg=image.thumbnail,
            schema=reply_schema(concept.type),
            max_output_tokens=self._max_output_tokens,
            spell_out=self._spell_out,
        )
        while True:
            try:
                async with self._slots.take() as generation:
                    reply = await self._send(asked, image, generation)
            except TransientError as error:
                pause = self._outage.pause(error)
                log.warning("%s; trying again in %.1f s", error, pause)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause)
                if self._stop.is_set():
                    raise InterruptedStageError("interrupted; the captions so far are stored") from error
                asked = replace(asked, max_output_tokens=self._max_output_tokens)
            else:
                self._outage.end()
                return reply

    async def _send(self, asked: Question, image: DatasetImage, generation: int) -> Reply:
        """Send one request and charge its cost.

        A request of unknown cost is charged as reserved. One that failed without being billed is not charged.
        """
        async with self.budget.reserve(estimate_usage(asked, image.thumbnail_size)) as reservation:
            try:
                reply = await self._provider.ask(asked)
            except ImageRefusedError as error:
                if error.billed:
                    reservation.charge(error.usage)
                raise
            except TransientError as error:
                if error.billed:
                    reservation.charge(None)
                if error.timed_out:
                    self._slots.lower(generation)
                raise
            except (MalformedReplyError, asyncio.CancelledError):
                reservation.charge(None)
                raise
            reservation.charge(reply.usage)
            return reply

    def _load(self, key: str) -> StoredCaption | None:
        """Load a stored caption; None when there is none that can be used.

        It is checked like a new reply, since every pod with the store's key can write one.
        """
        concept = self._config.spec.concept
        try:
            stored = StoredCaption.model_validate_json(self._bucket.get(key))
            fields = parse_reply(json.dumps(stored.fields), concept)
            assemble(fields, concept)
        except (
            ObjectMissingError,
            ObjectTooLargeError,
            ValidationError,
            UnusableReplyError,
            DeclinedError,
        ):
            return None
        return stored.model_copy(update={"fields": fields})

    def _load_spend(self) -> Spend:
        try:
            return Spend.model_validate_json(self._bucket.get(self._config.keys.spend))
        except (ObjectMissingError, ObjectTooLargeError, ValidationError):
            return Spend()

    async def _save_spend(self, spend: Spend) -> None:
        data = canonical_json(spend.to_wire())
        await asyncio.to_thread(self._bucket.put, self._config.keys.spend, data, "application/json")


def estimate_usage(asked: Question, size: tuple[int, int]) -> TokenUsage:
    """Estimate the tokens of a request.

    The image counts one token per 14 x 14 pixels, the text one per two characters, and the output its whole limit.

    Args:
        size: width and height of the image, in pixels.
    """
    width, height = size
    image = math.ceil(width / 14) * math.ceil(height / 14) + 77
    text = (len(asked.system) + len(asked.text) + (1200 if asked.spell_out else 400)) // 2
    return TokenUsage(input_tokens=image + text, output_tokens=asked.max_output_tokens)
