"""Requests to running pods for their progress. The responses are not trusted.

The pods run in the namespaces of tenants, so a response may be endless, compressed, a redirect, not HTTP at
all, or never arrive. A request is therefore a single bounded read of plain HTTP/1.0 without redirects and encodings
(an HTTP client library would follow redirects, decompress bodies and buffer headers first), and a round ends after a fixed time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from time import monotonic

from lora_api.stages import PROGRESS_PORT
from lora_api.status import Progress

from .observe import StagePod

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""Pause between two rounds."""
ROUND_SECONDS = 20.0
"""Time limit of a round. Pods that it did not reach come first in the next one."""
REQUEST_SECONDS = 3.0
"""Time limit of one request."""
CONCURRENCY = 32
MAX_HEADER_BYTES = 4 << 10
MAX_BODY_BYTES = 16 << 10
METADATA_SERVICES = tuple(
    map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"))
)
"""Addresses of clouds' metadata services that are not link-local: of Azure, Alibaba, AWS and Google."""
BROADCAST = ipaddress.ip_address("255.255.255.255")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
IPV4_COMPATIBLE = ipaddress.ip_network("::/96")
"""IPv6 addresses whose last 32 bits are an IPv4 address (RFC 6052, RFC 4291)."""


class BadResponseError(Exception):
    """A response that is not the progress of a stage."""


class Poller:
    """Polls the running pods in rounds.

    Args:
        pods: the running pods of child Jobs, each time it is called.
        report: takes the progress of a pod; called only when it has changed.
        port: the port that pods serve their progress on.
    """

    def __init__(
        self,
        pods: Callable[[], Iterable[StagePod]],
        report: Callable[[StagePod, Progress], None],
        port: int = PROGRESS_PORT,
    ) -> None:
        self._pods = pods
        self._report = report
        self._port = port
        self._requested_at: dict[str, float] = {}
        """Time of the last request to each running pod, on the monotonic clock, by its UID."""
        self._last: dict[str, Progress] = {}
        """The last response of each running pod, by its UID."""
        self.last_heartbeat = monotonic()
        """When the loop last ran, on the monotonic clock."""

    async def run_forever(self) -> None:
        """Poll all running pods in rounds, with a pause in between. No response can end the loop."""
        while True:
            self.last_heartbeat = monotonic()
            try:
                await self.run_round()
            except Exception:
                log.exception("a round of progress requests failed")
            self.last_heartbeat = monotonic()
            await asyncio.sleep(POLL_SECONDS)

    async def run_round(self) -> None:
        """Poll each running pod once, those that waited longest first, for at most `ROUND_SECONDS`."""
        pods = [item for item in self._pods() if item.pod.running and item.pod.ip]
        uids = {item.pod.uid for item in pods}
        self._requested_at = {uid: when for uid, when in self._requested_at.items() if uid in uids}
        self._last = {uid: progress for uid, progress in self._last.items() if uid in uids}
        waiting = iter(self._order(pods))

        async def work() -> None:
            for item in waiting:
                await self._poll_pod(item)

        workers = [asyncio.create_task(work()) for _ in range(min(CONCURRENCY, len(pods)))]
        if not workers:
            return
        try:
            await asyncio.wait(workers, timeout=ROUND_SECONDS)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def _order(self, pods: list[StagePod]) -> list[StagePod]:
        """Order pods by their last request, one of each namespace in turn, so that no tenant delays the others."""
        namespaces: defaultdict[str, list[StagePod]] = defaultdict(list)
        for item in sorted(pods, key=lambda item: self._requested_at.get(item.pod.uid, 0.0)):
            namespaces[item.namespace].append(item)
        return [item for item in chain.from_iterable(zip_longest(*namespaces.values())) if item is not None]

    async def _poll_pod(self, item: StagePod) -> None:
        self.last_heartbeat = self._requested_at[item.pod.uid] = monotonic()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                progress = await fetch_progress(item.pod.ip, self._port)
            if progress != self._last.get(item.pod.uid):
                self._last[item.pod.uid] = progress
                self._report(item, progress)
        except (BadResponseError, OSError, TimeoutError) as error:
            log.debug("no progress of pod %s/%s: %r", item.namespace, item.pod.name, error)
        except Exception:
            # an unexpected error concerns this pod only and must not end the round
            log.exception("polling pod %s/%s failed", item.namespace, item.pod.name)


async def fetch_progress(ip: str, port: int) -> Progress:
    """Read /progress of one pod.

    Raises:
        BadResponseError: for any response but 200 with a progress of at most 16 KiB, and for an address that is not a
            pod's.
        OSError: when the connection fails.
    """
    host = check_address(ip)
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_BODY_BYTES)
    try:
        name = f"[{host}]" if ":" in host else host
        writer.write(
            f"GET /progress HTTP/1.0\r\nHost: {name}:{port}\r\nAccept: application/json\r\n"
            "Accept-Encoding: identity\r\nConnection: close\r\n\r\n".encode()
        )
        response = await _read_at_most(reader, MAX_HEADER_BYTES + MAX_BODY_BYTES)
    finally:
        # abort, not close: nothing more is sent, and a peer that does not read cannot hold the socket
        writer.transport.abort()
    return parse_response(response)


async def _read_at_most(reader: asyncio.StreamReader, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await reader.read(4096):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise BadResponseError(f"the response has more than {limit} bytes")
    return b"".join(parts)


def parse_response(response: bytes) -> Progress:
    """Parse the progress in an HTTP response.

    Raises:
        BadResponseError: when there is none.
    """
    head, separator, body = response.partition(b"\r\n\r\n")
    if not separator or len(head) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise BadResponseError("the response is not complete, or is too large")
    status, *headers = head.split(b"\r\n")
    fields = status.split(b" ")
    if len(fields) < 2 or not fields[0].startswith(b"HTTP/1.") or fields[1] != b"200":
        raise BadResponseError("the response is not HTTP 200")
    for header in headers:
        name, _, value = header.partition(b":")
        encoding = name.strip().lower() in (b"content-encoding", b"transfer-encoding")
        if encoding and value.strip().lower() != b"identity":
            raise BadResponseError("the response is encoded")
    try:
        return Progress.model_validate_json(body)
    except ValueError as error:
        raise BadResponseError("the response is not a progress report") from error


def check_address(ip: str) -> str:
    """Check the address of a pod and return it in its usual spelling.

    Raises:
        BadResponseError: when no pod can have it: a name, a link-local address such as a cloud's metadata service, a
            multicast or an unspecified address.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        raise BadResponseError("the pod's address is not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address):
        address = _embedded_ipv4(address) or address
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in (BROADCAST, *METADATA_SERVICES)
    ):
        raise BadResponseError("the pod's address is not one that a pod can have")
    return str(address)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to an IPv6 address reach; None if it is an address of its own."""
    for known in (address.ipv4_mapped, address.sixtofour):
        if known is not None:
            return known
    if address in NAT64 or (address in IPV4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
