"""Prometheus metrics of the operator.

Times, tokens and costs of a job are counted once, when the status that contains them has been written.
"""

from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram

from lora_api.stages import StageName
from lora_api.status import ConditionType, JobStatus, Usage

from .snapshot import Snapshot

RECONCILE_SECONDS = Histogram(
    "lora_operator_reconcile_seconds",
    "Time to observe, decide and apply one job once",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
API_WRITES = Counter("lora_operator_api_writes", "Writes to the API server", ["object", "verb"])
JOBS_BY_PHASE = Gauge("lora_operator_jobs", "Jobs by phase", ["phase"])
QUEUE_DEPTH = Gauge("lora_operator_queue_depth", "Jobs waiting to be reconciled")
LAST_RESYNC = Gauge(
    "lora_operator_last_resync_timestamp_seconds", "When all unfinished jobs were last listed"
)
LEADER = Gauge("lora_operator_leader", "1 on the replica that leads, 0 on one that stands by")
RECONCILE_ERRORS = Counter("lora_operator_reconcile_errors", "Reconciles that failed and are retried")
FINISHED = Counter("lora_operator_finished", "Jobs that have ended", ["outcome", "reason"])
STAGE_SECONDS = Histogram(
    "lora_operator_stage_seconds",
    "Time from the creation of a stage's Job to its end",
    ["stage"],
    buckets=(10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200),
)
WEBHOOKS = Counter("lora_operator_webhooks", "Webhooks that were delivered or given up", ["outcome"])
GPU_SECONDS = Counter("lora_operator_gpu_seconds", "GPUs times the seconds that trainings held them")
TOKENS = Counter("lora_operator_tokens", "Tokens that captions used", ["direction"])
COST_USD = Counter("lora_operator_cost_usd", "Cost of captions in USD at the profile's prices")


def count(snapshot: Snapshot, after: JobStatus) -> None:
    """Count the changes from the previous status to one that has just been written."""
    before = snapshot.status
    if after.phase.terminal and not before.phase.terminal:
        condition = after.condition(ConditionType.SUCCEEDED)
        FINISHED.labels(after.phase, condition.reason if condition else "").inc()
    for stage in _ended_stages(before, after):
        child = snapshot.child(stage)
        ends = [pod.finished_at for pod in child.pods if pod.finished_at] if child else []
        if child and ends:
            STAGE_SECONDS.labels(stage).observe((max(ends) - child.created_at).total_seconds())
    used, usage = _usage(before), _usage(after)
    TOKENS.labels("input").inc(max(0, usage.input_tokens - used.input_tokens))
    TOKENS.labels("output").inc(max(0, usage.output_tokens - used.output_tokens))
    COST_USD.inc(max(0.0, float(usage.cost_usd or 0) - float(used.cost_usd or 0)))
    GPU_SECONDS.inc(max(0, _gpu_seconds(after) - _gpu_seconds(before)))


def _ended_stages(before: JobStatus, after: JobStatus) -> Iterator[StageName]:
    """List the stages that ended between two statuses, whatever their outcome."""
    captioned = bool(after.captions and after.captions.sha256)
    finished = after.phase.terminal and not before.phase.terminal
    if (captioned and not (before.captions and before.captions.sha256)) or (finished and not captioned):
        yield StageName.ANNOTATE
    if finished and captioned:
        yield StageName.TRAIN


def _usage(status: JobStatus) -> Usage:
    return (status.captions and status.captions.usage) or Usage()


def _gpu_seconds(status: JobStatus) -> int:
    return (status.training and status.training.gpu_seconds) or 0
