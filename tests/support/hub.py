"""A Hugging Face hub on loopback: the endpoints for the list and the files of a repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class FakeHub:
    """Repositories with one commit each; `.safetensors` files are stored in LFS."""

    server: HTTPServer
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    """Contents sent instead of a file, by name: a faulty hub or proxy."""
    gated: set[str] = field(default_factory=set)
    down: bool = False
    requests: list[str] = field(default_factory=list)
    hold: threading.Event | None = None
    """If not None: half of each weights file is sent, and the rest once the event is set."""
    holding: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.server.expect_request(re.compile(".*")).respond_with_handler(self._answer)

    @property
    def endpoint(self) -> str:
        return f"http://{self.server.host}:{self.server.port}"

    def add(self, repo: str, folder: Path, variant: str = "") -> dict[str, bytes]:
        """Add a repository from a pipeline's folder; its weights are renamed for the variant."""
        files = {}
        for path in folder.rglob("*"):
            if path.is_file():
                name = str(path.relative_to(folder))
                if variant:
                    name = name.replace(".safetensors", f".{variant}.safetensors")
                files[name] = path.read_bytes()
        self.repos[repo] = files
        return files

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Direct the client in this process to this hub; other processes use HF_ENDPOINT."""
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def downloads(self) -> list[str]:
        """Return the names of the files requested by GET, in order."""
        return [
            path.split(f"/resolve/{COMMIT}/")[1] for path in self.requests if path.startswith("GET /resolve ")
        ]

    def _answer(self, request: Request) -> Response:
        if self.down:
            return Response("busy", 503)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", request.path):
            return self._listing(*match.groups())
        match = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", request.path)
        if not match or match[1] not in self.repos or match[2] not in self.repos[match[1]]:
            return Response("", 404, headers={"X-Error-Code": "EntryNotFound"})
        self.requests.append(f"{request.method} /resolve {request.path}")
        return self._file(request, match[2], self.repos[match[1]][match[2]])

    def _listing(self, repo: str, revision: str | None) -> Response:
        if repo not in self.repos:
            return Response("", 401, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in (None, "main", COMMIT):
            return Response("", 404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name, data) for name, data in self.repos[repo].items()]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings})
        return Response(body, content_type="application/json")

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(data).hexdigest()
            sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 135}
        return sibling

    def _file(self, request: Request, name: str, data: bytes) -> Response:
        repo = request.path.split("/resolve/")[0].strip("/")
        if repo in self.gated:
            return Response("", 403, headers={"X-Error-Code": "GatedRepo"})
        etag = hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_hash(data)
        data = self.served.get(name, data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Content-Length": str(len(data))}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
            headers["Content-Length"] = str(len(data))
        if self.hold is not None and request.method == "GET" and name.endswith(".safetensors"):
            return Response(self._slowly(data), status, headers=headers)
        return Response(data, status, headers=headers)

    def _slowly(self, data: bytes) -> Any:
        assert self.hold is not None
        yield data[: len(data) // 2]
        self.holding.set()
        self.hold.wait(20)
        yield data[len(data) // 2 :]
