"""Prometheus metrics of the operator.

What jobs took is counted once each, when the status that says so is written.
"""

from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram

from lora_api.status import ConditionType, JobStatus, Usage
from lora_api.steps import StepName

from .snapshot import Snapshot

RECONCILE_SECONDS = Histogram(
    "lora_operator_reconcile_seconds",
    "Time to observe, decide and apply one job once",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
API_WRITES = Counter("lora_operator_api_writes", "Writes to the API server", ["object", "verb"])
JOBS = Gauge("lora_operator_jobs", "Jobs by phase", ["phase"])
QUEUE_DEPTH = Gauge("lora_operator_queue_depth", "Jobs waiting to be looked at")
LAST_RESYNC = Gauge(
    "lora_operator_last_resync_timestamp_seconds", "When all unfinished jobs were last looked at"
)
LEADER = Gauge("lora_operator_leader", "1 on the operator that works, 0 on one that stands by")
RECONCILE_ERRORS = Counter("lora_operator_reconcile_errors", "Reconciles that failed and are tried again")
FINISHED = Counter("lora_operator_finished", "Jobs that have ended", ["outcome", "reason"])
STEP_SECONDS = Histogram(
    "lora_operator_step_seconds",
    "Time from the creation of a step's Job to its end",
    ["step"],
    buckets=(10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200),
)
GPU_SECONDS = Counter("lora_operator_gpu_seconds", "GPUs times the seconds that trainings ran")
TOKENS = Counter("lora_operator_tokens", "Tokens that captions took", ["direction"])
COST_USD = Counter("lora_operator_cost_usd", "What captions cost by the profile's prices")


def count(snapshot: Snapshot, after: JobStatus) -> None:
    """Count what a status that has just been written says and the one before it did not."""
    before = snapshot.status
    if after.phase.terminal and not before.phase.terminal:
        said = after.condition(ConditionType.SUCCEEDED)
        FINISHED.labels(after.phase, said.reason if said else "").inc()
    for step in _ended(before, after):
        child = snapshot.child(step)
        ends = [pod.finished_at for pod in child.pods if pod.finished_at] if child else []
        if child and ends:
            STEP_SECONDS.labels(step).observe((max(ends) - child.created_at).total_seconds())
    used, usage = _usage(before), _usage(after)
    TOKENS.labels("input").inc(max(0, usage.input_tokens - used.input_tokens))
    TOKENS.labels("output").inc(max(0, usage.output_tokens - used.output_tokens))
    COST_USD.inc(max(0.0, float(usage.cost_usd or 0) - float(used.cost_usd or 0)))
    GPU_SECONDS.inc(max(0, _gpu_seconds(after) - _gpu_seconds(before)))


def _ended(before: JobStatus, after: JobStatus) -> Iterator[StepName]:
    """The steps that have ended between two statuses, well or badly."""
    captioned = bool(after.captions and after.captions.sha256)
    finished = after.phase.terminal and not before.phase.terminal
    if (captioned and not (before.captions and before.captions.sha256)) or (finished and not captioned):
        yield StepName.ANNOTATE
    if finished and captioned:
        yield StepName.TRAIN


def _usage(status: JobStatus) -> Usage:
    return (status.captions and status.captions.usage) or Usage()


def _gpu_seconds(status: JobStatus) -> int:
    return (status.training and status.training.gpu_seconds) or 0
