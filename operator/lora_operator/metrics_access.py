"""Authentication and authorization of requests for `/metrics` by the API server, as other controllers do it.

A bearer token is reviewed by a TokenReview, and its user by a SubjectAccessReview for `get` on the path `/metrics`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from time import monotonic
from typing import Any

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from .api import ACCESS_REVIEWS, TOKEN_REVIEWS, Api

log = logging.getLogger(__name__)

OK, UNAUTHORIZED, FORBIDDEN, UNAVAILABLE = 200, 401, 403, 503
CACHE_SECONDS = 60.0
"""How long a review is reused. A token that is revoked is accepted for so long."""
CACHE_ENTRIES = 256
CONCURRENCY = 2
"""Reviews at the same time."""
MAX_WAITING = 32
"""Requests that wait for a review. Further ones are refused, so that they do not reach the API server."""
MAX_TOKEN_BYTES = 8192


class MetricsAccess:
    """Decides who may read `/metrics`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._reviews = asyncio.Semaphore(CONCURRENCY)
        self._waiting = 0
        self._cache: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Time (on the monotonic clock) and status of the last reviews, by the sha256 of the token: tokens are not kept."""

    async def check(self, authorization: str) -> int:
        """Return the HTTP status for a request: 200, 401, 403, or 503 when the token cannot be reviewed now.

        Args:
            authorization: the value of the request's Authorization header.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_BYTES or not token.isascii():
            return UNAUTHORIZED
        digest = hashlib.sha256(token.encode()).hexdigest()
        if (cached := self._cached_status(digest)) is not None:
            return cached
        if self._waiting >= MAX_WAITING:
            return UNAVAILABLE
        self._waiting += 1
        try:
            async with self._reviews:
                # another request may have had the same token reviewed meanwhile
                if (cached := self._cached_status(digest)) is not None:
                    return cached
                status = await self._review(token)
        except (ApiException, aiohttp.ClientError, TimeoutError) as error:
            log.warning("the token of a request for /metrics cannot be reviewed: %r", error)
            return UNAVAILABLE
        finally:
            self._waiting -= 1
        self._cache[digest] = (monotonic(), status)
        while len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)
        return status

    def _cached_status(self, digest: str) -> int | None:
        when, status = self._cache.get(digest, (0.0, 0))
        return status if status and monotonic() - when < CACHE_SECONDS else None

    async def _review(self, token: str) -> int:
        review = await self._api.create(TOKEN_REVIEWS, "", _body("TokenReview", {"token": token}))
        status = review.get("status") or {}
        if status.get("authenticated") is not True:
            return UNAUTHORIZED
        user = status.get("user") or {}
        spec = {
            "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
            "user": user.get("username", ""),
            "uid": user.get("uid", ""),
            "groups": user.get("groups", []),
            "extra": user.get("extra", {}),
        }
        access = await self._api.create(ACCESS_REVIEWS, "", _body("SubjectAccessReview", spec))
        return OK if (access.get("status") or {}).get("allowed") is True else FORBIDDEN


def _body(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    group = "authentication" if kind == "TokenReview" else "authorization"
    return {"apiVersion": f"{group}.k8s.io/v1", "kind": kind, "spec": dict(spec)}
