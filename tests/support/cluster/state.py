"""Description of what a failed test left behind: without it, a failure on another machine cannot be explained."""

from __future__ import annotations

from typing import Any

from lora_api import GROUP, PLURAL, VERSION
from tests.support.cluster.harness import NamespaceClient, OperatorProcess

LOG_LINES = 60


def describe_cluster(cluster: NamespaceClient) -> str:
    """List the jobs, child Jobs and pods of a test's namespace, one to a line."""
    found = cluster.custom.list_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL)
    lines = [f"{item['metadata']['name']}: {item.get('status')}" for item in found["items"]]
    for kind, items in (("Job", cluster.jobs()), ("Pod", cluster.pods())):
        lines += [f"{kind} {_describe(item)}" for item in items]
    return "\n".join(lines)


def _describe(item: Any) -> str:
    metadata = item.metadata
    owners = [owner.uid for owner in metadata.owner_references or ()]
    state = item.status.phase if hasattr(item.status, "phase") else f"suspended={item.spec.suspend}"
    return (
        f"{metadata.name} uid={metadata.uid} owners={owners} {state} deleted={metadata.deletion_timestamp} "
        f"finalizers={metadata.finalizers}"
    )


def describe_operator(operator: OperatorProcess) -> str:
    """Return whether the operator runs, and the end of its log."""
    process = operator.process
    state = "stopped" if process is None else f"exit code {process.poll()}"
    return "\n".join([state, *operator.log.splitlines()[-LOG_LINES:]])
