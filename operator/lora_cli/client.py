"""A Python client for LoraTrainingJobs: submit, watch, wait and fetch, asynchronous and synchronous.

docs/how-to/python-client.md shows its use. Every error is a `CommandError` of `lora_cli.errors` or a `StageError` of
`lora_trainer.errors`, with a message that says what to change.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lora_api.job import JobSpec, parse_spec
from lora_api.manifest import Manifest
from lora_api.status import ConditionType, JobStatus, Phase

from .cluster.client import LoraTrainingJobClient, WatchExpiredError, api_errors, open_connection
from .cluster.table import status_of
from .errors import ClusterError, ClusterUnavailableError, CommandError, UsageError
from .exits import Exit
from .job_file import parse_job
from .manifests.writer import dump_yaml
from .references import require_name, require_namespace
from .store_access import StoreAddress, read_store_address
from .transfer import download_adapter

RECONNECT_SECONDS = 1.0
"""Pause after a watch lost its connection."""


class JobFailedError(CommandError):
    """The awaited job has failed. The message has the reason and the message of its condition."""

    exit_code = Exit.FAILED


@dataclass(frozen=True)
class Job:
    """A job, as the API server returned it."""

    namespace: str
    name: str
    uid: str
    spec: JobSpec
    status: JobStatus
    resource: Mapping[str, Any] = field(repr=False)
    """The whole resource, as JSON data."""

    @property
    def phase(self) -> Phase:
        return self.status.phase

    @property
    def ended(self) -> bool:
        return self.status.phase.terminal

    @property
    def message(self) -> str:
        """The reason and the message of the Succeeded condition: what the job waits for, or why it failed."""
        condition = self.status.condition(ConditionType.SUCCEEDED)
        return f"{condition.reason}: {condition.message}" if condition else ""


class AsyncLoraClient:
    """Client for the jobs of one namespace. It is connected within its `async with` block only."""

    def __init__(self, *, context: str = "", namespace: str = "") -> None:
        """
        Args:
            context: of the kubeconfig; empty: the current one.
            namespace: of all jobs; empty: the context's.
        """
        self._context, self._namespace = context, require_namespace(namespace)
        self._stack = AsyncExitStack()
        self._connected: LoraTrainingJobClient | None = None

    async def __aenter__(self) -> Self:
        self._connected = await self._stack.enter_async_context(
            open_connection(self._context, self._namespace)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connected = None
        await self._stack.aclose()

    async def submit(self, manifest: Mapping[str, Any] | str | Path, *, dry_run: bool = False) -> Job:
        """Create a job.

        Args:
            manifest: the resource, its YAML or JSON text, or the path of a file with one job.
            dry_run: let the API server check the job without creating it.

        Raises:
            UsageError: when the manifest holds more than one job, or a job of another namespace.
            InvalidManifestError: when the manifest is invalid; the message has a line for each problem.
            ClusterError: when the API server refuses the job.
        """
        if isinstance(manifest, Path):
            text, source = manifest.read_text(), str(manifest)
        elif isinstance(manifest, str):
            text, source = manifest, "manifest"
        else:
            text, source = dump_yaml(dict(manifest)), "manifest"
        jobs = parse_job(text, source)
        if len(jobs) != 1:
            raise UsageError(f"{source} holds {len(jobs)} jobs; submit takes one")
        client = self._client
        if jobs[0].namespace not in ("", client.namespace):
            raise UsageError(
                f"{source} is for namespace {jobs[0].namespace!r}, and this client for {client.namespace!r}"
            )
        with api_errors(client):
            return _job(await client.submit(jobs[0].document, dry_run))

    async def get(self, name: str) -> Job:
        """Read a job.

        Raises:
            ClusterError: when no job has this name.
        """
        client = self._client
        with api_errors(client):
            return _job(await client.get(require_name(name)))

    async def list_jobs(self) -> list[Job]:
        """List the jobs of the namespace."""
        client = self._client
        with api_errors(client):
            return [_job(item) for item in (await client.list_all())[0]]

    async def suspend(self, name: str) -> Job:
        """Suspend a job, after its training has saved a checkpoint."""
        return await self._patch(name, {"runPolicy": {"suspend": True}})

    async def resume(self, name: str) -> Job:
        """Resume a suspended job."""
        return await self._patch(name, {"runPolicy": {"suspend": False}})

    async def delete(self, job: Job) -> None:
        """Delete a job and its pods. Published files stay in the store."""
        client = self._client
        with api_errors(client):
            await client.delete_job(job.name, job.uid)

    async def watch(self, name: str) -> AsyncGenerator[Job, None]:
        """Yield a job now and after each change, until it has ended. Reconnect when the connection is lost.

        Raises:
            ClusterError: when the job does not exist, or is deleted while it is watched.
        """
        client, uid, seen = self._client, "", ""
        while True:
            # Each round reads the job, yields it if it has changed, and watches until the watch ends.
            try:
                job = await self.get(name)
            except ClusterUnavailableError:
                if not uid:  # the first connection failed: not an interruption
                    raise
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            if uid and job.uid != uid:
                raise ClusterError(f"{name} was deleted, and created again as another job")
            uid, version = job.uid, str(job.resource["metadata"]["resourceVersion"])
            if version != seen:
                seen = version
                yield job
            if job.ended:
                return
            async with aclosing(self._changes(client, job)) as changes:
                async for changed in changes:
                    seen = str(changed.resource["metadata"]["resourceVersion"])
                    yield changed
                    if changed.ended:
                        return

    async def wait(self, name: str, *, timeout: float | None = None) -> Job:
        """Wait until a job has succeeded.

        Args:
            timeout: in seconds; None for no limit.

        Raises:
            JobFailedError: when the job fails.
            TimeoutError: when the job has not ended after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            states = [job async for job in self.watch(name) if job.ended]
        job = states[-1]  # a watch ends with the job, or with an error
        if job.phase == Phase.FAILED:
            raise JobFailedError(f"{name}: {job.message}")
        return job

    async def fetch(self, name: str, folder: Path, *, store: StoreAddress | None = None) -> Manifest:
        """Download the adapter, previews and report of a finished job, and verify each file's sha256.

        Args:
            store: address and keys of the store; None to read them from the environment (LORA_STORE_ENDPOINT and the
                variables of `store_access`).

        Raises:
            ClusterError: when the job has no adapter yet.
            DownloadError: when a file is missing or differs from its manifest.
            StageError: when the store refuses a request or does not answer.
        """
        job = await self.get(name)
        if job.status.adapter is None:
            raise ClusterError(f"{name} has no adapter yet: it is {job.phase}")
        address = store or read_store_address(os.environ.get("LORA_STORE_ENDPOINT", ""))
        bucket, _ = job.status.adapter.location
        key = job.status.adapter.manifest_key
        return await asyncio.to_thread(download_adapter, address.bucket(bucket), key, folder)

    async def _patch(self, name: str, spec: Mapping[str, Any]) -> Job:
        client = self._client
        with api_errors(client):
            return _job(await client.patch_spec(require_name(name), spec))

    @staticmethod
    async def _changes(client: LoraTrainingJobClient, job: Job) -> AsyncGenerator[Job, None]:
        """Yield the changes of one job until the API server ends the watch or the connection breaks."""
        try:
            version = int(job.resource["metadata"]["resourceVersion"])
            with api_errors(client):
                async with aclosing(client.changes(version)) as changes:
                    async for kind, resource in changes:
                        if resource["metadata"]["uid"] != job.uid:
                            continue
                        if kind == "DELETED":
                            raise ClusterError(f"{job.name} was deleted")
                        yield _job(resource)
        except WatchExpiredError:
            return
        except ClusterUnavailableError:
            await asyncio.sleep(RECONNECT_SECONDS)

    @property
    def _client(self) -> LoraTrainingJobClient:
        if self._connected is None:
            raise UsageError("use the client in a `with` block: it is not connected outside of it")
        return self._connected


class LoraClient:
    """Synchronous client with the methods of `AsyncLoraClient`. It is connected within its `with` block only."""

    def __init__(self, *, context: str = "", namespace: str = "") -> None:
        """
        Args:
            context: of the kubeconfig; empty: the current one.
            namespace: of all jobs; empty: the context's.
        """
        self._client = AsyncLoraClient(context=context, namespace=namespace)
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._client.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._client.__aexit__(kind, error, trace))
        finally:
            if self._runner:
                self._runner.close()
            self._runner = None

    def submit(self, manifest: Mapping[str, Any] | str | Path, *, dry_run: bool = False) -> Job:
        """See `AsyncLoraClient.submit`."""
        return self._run(self._client.submit(manifest, dry_run=dry_run))  # type: ignore[no-any-return]

    def get(self, name: str) -> Job:
        """See `AsyncLoraClient.get`."""
        return self._run(self._client.get(name))  # type: ignore[no-any-return]

    def list_jobs(self) -> list[Job]:
        """See `AsyncLoraClient.list_jobs`."""
        return self._run(self._client.list_jobs())  # type: ignore[no-any-return]

    def suspend(self, name: str) -> Job:
        """See `AsyncLoraClient.suspend`."""
        return self._run(self._client.suspend(name))  # type: ignore[no-any-return]

    def resume(self, name: str) -> Job:
        """See `AsyncLoraClient.resume`."""
        return self._run(self._client.resume(name))  # type: ignore[no-any-return]

    def delete(self, job: Job) -> None:
        """See `AsyncLoraClient.delete`."""
        self._run(self._client.delete(job))

    def watch(self, name: str) -> Iterator[Job]:
        """See `AsyncLoraClient.watch`."""
        changes = self._client.watch(name)
        try:
            while (job := self._run(_next(changes))) is not None:
                yield job
        finally:
            if self._runner:
                self._run(changes.aclose())

    def wait(self, name: str, *, timeout: float | None = None) -> Job:
        """See `AsyncLoraClient.wait`."""
        return self._run(self._client.wait(name, timeout=timeout))  # type: ignore[no-any-return]

    def fetch(self, name: str, folder: Path, *, store: StoreAddress | None = None) -> Manifest:
        """See `AsyncLoraClient.fetch`."""
        return self._run(self._client.fetch(name, folder, store=store))  # type: ignore[no-any-return]

    def _run(self, work: Any) -> Any:
        if self._runner is None:
            work.close()
            raise UsageError("use the client in a `with` block: it is not connected outside of it")
        return self._runner.run(work)


async def _next(changes: AsyncIterator[Job]) -> Job | None:
    return await anext(changes, None)


def _job(resource: Mapping[str, Any]) -> Job:
    metadata = resource["metadata"]
    return Job(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        spec=parse_spec(resource["spec"], stored=True),
        status=status_of(resource),
        resource=resource,
    )
