"""Training of a job's variants, one after another on the same base model, and the choice of the one to publish.

A variant is complete when its newest checkpoint is: no other record of it is kept. So a pod that takes over skips the
complete variants, resumes the next one, and loads the best one from its checkpoint to publish it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from accelerate import PartialState

from lora_api.job import Training, Variant
from lora_api.json_bounds import JsonBoundsError, load_json
from lora_api.manifest import VariantResult, canonical_json
from lora_api.stages import TrainConfig

from ..errors import BadConfigurationError
from ..progress import Reporter
from ..store import ObjectMissingError, Store
from .finite import DivergedError
from .hooks import ReportProgress
from .interruption import Interruption
from .loop import Hook
from .model.base_model import SharedBaseModel
from .records import Record, best_step, is_complete, mean_loss
from .trainer import Trainer

log = logging.getLogger(__name__)


class VariantTrainer(Trainer):
    """Trains all variants of a job, and publishes the best one."""

    def __init__(
        self, config: TrainConfig, store: Store, distributed: PartialState, dtype: torch.dtype
    ) -> None:
        super().__init__(config, store, distributed, dtype)
        self._results: list[VariantResult] = []
        """Results of the variants that are complete or have failed, in the order of the spec."""

    @property
    def _next(self) -> Variant | None:
        """The first variant that is neither complete nor failed."""
        variants = self._config.spec.training.variants
        return variants[len(self._results)] if len(self._results) < len(variants) else None

    def setup(self) -> None:
        """Fetch the model, encode images and texts, and plan the memory, for all variants.

        Raises:
            StageError: as in `Trainer.setup`; for a setting of a variant, the message has its name.
        """
        self._load()
        self._model = SharedBaseModel.of(self._model)
        self._check_variants()

    def resume(self) -> int | None:
        """Skip the variants that are complete, and begin or resume the next one; the best one if all are complete.

        Returns:
            The step of the checkpoint that was loaded, within its variant; None where a variant starts anew.

        Raises:
            DivergedError: if every variant has failed.
        """
        while variant := self._next:
            self._select_variant(variant)
            checkpoint = self._checkpoints.newest()
            records = [Record(**record) for record in checkpoint.state["records"]] if checkpoint else []
            if error := self._read_failure(variant):
                self._results.append(VariantResult(variant=variant, error=error))
            elif is_complete(records, self._context.training):
                self._results.append(describe(variant, records, self._context.training))
            else:
                log.info("variant %s: %d steps", variant.name, self._context.training.max_steps)
                return self._begin(checkpoint)
        self._select_variant(self._results[self._best()].variant)
        return self._begin(self._checkpoints.newest())

    def run_phases(self, interruption: Interruption, reporter: Reporter) -> bool:
        """Train the remaining variants, or until the process is asked to stop. Load the best one in the end.

        Returns:
            Whether all variants are complete.

        Raises:
            DivergedError: if every variant has failed.
        """
        while variant := self._next:
            try:
                if not super().run_phases(interruption, reporter):
                    return False
                result = describe(variant, self._context.state.records, self._context.training)
            except DivergedError as error:
                log.warning("variant %s failed: %s", variant.name, error)
                result = VariantResult(variant=variant, error=str(error))
                self._write_failure(variant, result.error)
            stopped = self._context.state.stopped
            self._results.append(result)
            self._context.discard()
            if stopped and self._next:
                return False
            self.resume()
        return True

    def _check_variants(self) -> None:
        """Refuse a variant whose adapter or memory plan is impossible, before the steps of an earlier one are lost with it."""
        for name, training in self._config.spec.training.trainings().items():
            try:
                self._make_plan(training)  # traces a step with the variant's adapter; kept for `_select`
            except BadConfigurationError as error:
                raise BadConfigurationError(
                    f"training.variants: with {name}, {error}", error.reason
                ) from error

    def _select_variant(self, variant: Variant) -> None:
        training = self._config.spec.training.trainings()[variant.name]
        spec = self._config.spec.model_copy(update={"training": training})
        self._select(self._config.model_copy(update={"spec": spec}), variant.name)

    def _best(self) -> int:
        """Return the index of the result with the highest score or, without scores, the lowest held-out loss."""
        candidates = [number for number, result in enumerate(self._results) if not result.error]
        if not candidates:
            raise DivergedError("every variant failed: " + "; ".join(each.error for each in self._results))
        return max(candidates, key=lambda number: _rank(self._results[number]))

    def _variant_results(self) -> Sequence[VariantResult]:
        best = self._best()
        return [
            result.model_copy(update={"published": number == best})
            for number, result in enumerate(self._results)
        ]

    def _report_progress(self, reporter: Reporter) -> Hook:
        trainings = list(self._config.spec.training.trainings().values())
        done = sum(training.max_steps for training in trainings[: len(self._results)])
        return ReportProgress(reporter, self._config.spec.training.total_steps, done)

    def _failure_key(self, variant: Variant) -> str:
        return f"{self._config.keys.checkpoints}variants/{variant.name}/failed.json"

    def _write_failure(self, variant: Variant, error: str) -> None:
        """Store why a variant failed, so that a later pod does not train it again."""
        if self._distributed.is_main_process:
            data = canonical_json({"inputHash": self._config.input_hash, "error": error})
            self._store.output.put(self._failure_key(variant), data, "application/json")

    def _read_failure(self, variant: Variant) -> str:
        """Return why a variant failed in an earlier pod; empty if it did not."""
        try:
            data = load_json(self._store.output.get(self._failure_key(variant)))
        except (ObjectMissingError, JsonBoundsError):
            return ""
        if not isinstance(data, dict) or data.get("inputHash") != self._config.input_hash:
            return ""
        return str(data.get("error", ""))


def describe(variant: Variant, records: Sequence[Record], training: Training) -> VariantResult:
    """Describe the result of a variant whose training is complete."""
    step = best_step(records, training) or len(records)
    return VariantResult(
        variant=variant,
        steps=len(records),
        step=step,
        final_loss=mean_loss(records[-math.ceil(len(records) / 10) :]),
        held_out_loss=records[step - 1].held_out_loss,
        score=records[step - 1].score,
    )


def _rank(result: VariantResult) -> tuple[float, float]:
    """Return what is compared between variants: larger is better."""
    score = -math.inf if result.score is None else result.score
    return score, -math.inf if result.held_out_loss is None else -result.held_out_loss
