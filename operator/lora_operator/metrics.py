"""Prometheus metrics of the operator."""

from prometheus_client import Counter, Gauge, Histogram

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
