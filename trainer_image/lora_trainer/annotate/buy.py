"""Captions from a language model, each bought once: what is paid for is stored before anything else happens.

A bought caption's key is the hash of all that it depends on, so a restarted pod, and the same job made
again, find it and buy only what is missing. What failed is never stored.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from lora_api.base import Lenient
from lora_api.job import JobSpec
from lora_api.keys import bought_caption
from lora_api.manifest import canonical_json, sha256_hex
from lora_api.status import Usage
from lora_api.steps import AnnotateStep, LLMAccess

from ..errors import InterruptedStepError
from ..store import Bucket, ObjectMissingError
from .caption import Fields, InvalidCaptionError, parse_reply, reply_schema
from .intake import Picture
from .ledger import Ledger, add_usage
from .prompt import MAX_OUTPUT_TOKENS, PROMPT_VERSION, SYSTEM, question
from .providers import Provider, Question

log = logging.getLogger(__name__)

TRIES = 2
"""A reply that cannot be used is asked for once more."""

GRACE_SECONDS = 20
"""For calls in flight, once the step is told to stop."""


class BoughtCaption(Lenient):
    """What lies in the store under a caption's hash."""

    fields: Fields
    job_uid: str
    """The job that paid."""
    usage: Usage
    """What it took, unusable replies before it included."""


@dataclass(frozen=True)
class Failed:
    """No caption could be had for a picture."""

    reason: str


def caption_digest(spec: JobSpec, access: LLMAccess, picture: Picture) -> str:
    """The identity of a bought caption: what is shown, provider, model, concept, instructions, prompt version."""
    return sha256_hex(
        canonical_json(
            {
                "picture": picture.pixels_sha256,
                "shown": picture.shown,
                "provider": access.provider,
                "model": access.model,
                "concept": spec.concept.to_wire(),
                "instructions": spec.annotation.instructions,
                "prompt": PROMPT_VERSION,
            }
        )
    )


class Buyer:
    """Buys captions for the pictures of one job."""

    def __init__(
        self, config: AnnotateStep, access: LLMAccess, provider: Provider, bucket: Bucket, stop: asyncio.Event
    ) -> None:
        """
        Args:
            bucket: where bought captions lie.
            stop: when set, no further call is made.
        """
        self._config = config
        self._access = access
        self._provider = provider
        self._bucket = bucket
        self._stop = stop
        self.ledger = Ledger(access.price, config.spec.annotation.limits.max_cost_usd)

    async def buy(self, pictures: Sequence[Picture], on_done: Callable[[int], None]) -> list[Fields | Failed]:
        """The fields of each picture's caption, in order, a few at a time.

        The first error lets the calls in flight finish, so that nothing paid for is lost, and is raised then.

        Args:
            on_done: called with the number of pictures that are settled.

        Raises:
            InterruptedStepError: when it was stopped before all were settled.
            StepError: the first one that the provider, the budget or the store raised.
        """
        keys = [self._key(picture) for picture in pictures]
        wanted = dict(zip(keys, pictures, strict=True))  # of pictures that are the same only one
        results = await self._recall(list(wanted))
        waiting = deque(key for key in wanted if key not in results)
        errors: list[Exception] = []

        def report() -> None:
            on_done(sum(key in results for key in keys))

        async def worker() -> None:
            while waiting and not errors and not self._stop.is_set():
                key = waiting.popleft()
                try:
                    results[key] = await self._buy_one(wanted[key], key)
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
        if len(results) < len(wanted):
            raise InterruptedStepError("told to stop; the captions bought so far are kept")
        return [results[key] for key in keys]

    async def _cancel_when_stopped(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """A platform that says stop kills 30 seconds later: calls that take longer are lost."""
        await self._stop.wait()
        await asyncio.sleep(GRACE_SECONDS)
        for worker in workers:
            worker.cancel()

    async def _recall(self, keys: Sequence[str]) -> dict[str, Fields | Failed]:
        """What was bought before; what this job itself paid for counts against its limit."""
        found = await asyncio.gather(*(asyncio.to_thread(self._load, key) for key in keys))
        recalled: dict[str, Fields | Failed] = {}
        for key, bought in zip(keys, found, strict=True):
            if bought is not None:
                recalled[key] = bought.fields
                if bought.job_uid == self._config.uid:
                    self.ledger.add(bought.usage)
        return recalled

    def _key(self, picture: Picture) -> str:
        return bought_caption(
            self._config.namespace, caption_digest(self._config.spec, self._access, picture)
        )

    async def _buy_one(self, picture: Picture, key: str) -> Fields | Failed:
        """Ask until a reply is usable, and store what was bought before it is used."""
        taken, outcome = self.ledger.priced(Usage()), Failed("")
        for _ in range(TRIES):
            usage, fields = await self._ask(picture)
            taken = add_usage(taken, usage)
            if isinstance(fields, Fields):
                bought = BoughtCaption(fields=fields, job_uid=self._config.uid, usage=taken)
                data = canonical_json(bought.to_wire())
                await asyncio.to_thread(self._bucket.put, key, data, "application/json")
                return fields
            outcome = fields
            log.warning("%s: %s", picture.file_name, outcome.reason)
        return outcome

    async def _ask(self, picture: Picture) -> tuple[Usage, Fields | Failed]:
        asked = Question(
            system=SYSTEM,
            text=question(self._config.spec.concept, self._config.spec.annotation.instructions),
            jpeg=picture.look,
            schema=reply_schema(),
            max_output_tokens=MAX_OUTPUT_TOKENS,
        )
        async with self.ledger.reserve(most_usage(asked, picture.look_size)):
            reply = await self._provider.ask(asked)
            usage = self.ledger.priced(
                Usage(requests=1, input_tokens=reply.input_tokens, output_tokens=reply.output_tokens)
            )
            self.ledger.add(usage)
        if reply.problem:
            return usage, Failed(reply.problem)
        try:
            return usage, parse_reply(reply.text, self._config.spec.concept)
        except InvalidCaptionError as error:
            return usage, Failed(str(error))

    def _load(self, key: str) -> BoughtCaption | None:
        try:
            return BoughtCaption.model_validate_json(self._bucket.get(key))
        except (ObjectMissingError, ValidationError):
            return None


def most_usage(asked: Question, size: tuple[int, int]) -> Usage:
    """What a call can take at most: the image's tokens by its size, the text's by two characters a token."""
    width, height = size
    image = math.ceil(width / 28) * math.ceil(height / 28) + 77
    text = (len(asked.system) + len(asked.text) + 400) // 2
    return Usage(requests=1, input_tokens=image + text, output_tokens=asked.max_output_tokens)
