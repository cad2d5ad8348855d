"""Fixtures for annotation jobs, which run in this process with a real S3 server and a local Messages API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from lora_api.job import ConceptType
from lora_api.keys import JobKeys
from lora_api.stages import AnnotateConfig, StageResult, decode_result
from lora_trainer.annotate.concept_fields import FIELDS as FIELDS_BY_TYPE
from lora_trainer.annotate.stage import main
from tests.conftest import RunningStore, make_spec

FIELDS = dict.fromkeys(FIELDS_BY_TYPE[ConceptType.SUBJECT], "") | {
    "framing": "close-up at eye level",
    "setting": "on a green lawn",
    "lighting": "soft daylight",
}


def message(text: str, **replaced: Any) -> dict[str, Any]:
    """Return a reply of the Messages API."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [
            {"type": "thinking", "thinking": "a dog", "signature": "s"},
            {"type": "text", "text": text},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 80},
        **replaced,
    }


@dataclass
class MessagesAPI:
    """A local Messages API. It returns `answers` in their order, and then good captions."""

    server: HTTPServer
    good: Callable[[], dict[str, Any]] = lambda: message(json.dumps(FIELDS))
    answers: list[Response | dict[str, Any] | Callable[[Request], Response]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    latency: float = 0.0
    hold_after: int | None = None
    """Number of answers after which further requests wait."""
    running: int = 0
    max_running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return self.server.url_for("").rstrip("/")

    def handle(self, request: Request) -> Response:
        with self._lock:
            self.requests.append(request.get_json())
            self.headers.append(dict(request.headers))
            answer = self.answers.pop(0) if self.answers else self.good()
            self.running += 1
            self.max_running = max(self.max_running, self.running)
            held = self.hold_after is not None and len(self.requests) > self.hold_after
        while held and self.hold_after is not None:
            time.sleep(0.02)
        time.sleep(self.latency)
        with self._lock:
            self.running -= 1
        if callable(answer) and not isinstance(answer, Response):
            return answer(request)
        if isinstance(answer, Response):
            return answer
        return Response(json.dumps(answer), content_type="application/json")


def api_error(status: int, kind: str, *, headers: dict[str, str] | None = None, **details: Any) -> Response:
    body = {"type": "error", "error": {"type": kind, "message": f"the words of {kind}", **details}}
    return Response(
        json.dumps(body),
        status=status,
        content_type="application/json",
        headers={"retry-after-ms": "10"} | (headers or {}),
    )


def completion(text: str | None, **replaced: Any) -> dict[str, Any]:
    """Return a reply of OpenAI's chat completions."""
    message = {"role": "assistant", "content": text, "refusal": replaced.pop("refusal", None)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": replaced.pop("finish_reason", "stop")}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 80, "total_tokens": 1080},
        **replaced,
    }


@pytest.fixture(scope="session")
def http_server() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def messages_api(http_server: HTTPServer) -> MessagesAPI:
    api = MessagesAPI(http_server)
    http_server.clear()
    http_server.expect_request("/v1/messages", method="POST").respond_with_handler(api.handle)
    return api


@pytest.fixture
def chat_api(http_server: HTTPServer) -> MessagesAPI:
    api = MessagesAPI(http_server, good=lambda: completion(json.dumps(FIELDS)))
    http_server.clear()
    http_server.expect_request("/v1/chat/completions", method="POST").respond_with_handler(api.handle)
    return api


@dataclass
class Job:
    """An annotation job: its objects in the store, its stage configuration and its result."""

    running: RunningStore
    folder: Path
    prefix: str
    namespace: str
    uid: str = field(default_factory=lambda: str(uuid4()))
    spec: dict[str, Any] = field(default_factory=dict)
    llm: dict[str, Any] | None = None
    segmentation: str = ""
    """Key of the segmentation model in the input bucket; empty if the profile has none."""

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.namespace, "statue", self.uid)

    def upload(self, name: str, data: bytes) -> str:
        # Not by `Store`, which refuses some keys that users can create by other clients.
        bucket = self.running.store.input
        bucket._client.put_object(bucket.name, self.prefix + name, BytesIO(data), len(data))
        return self.prefix + name

    def config(self) -> AnnotateConfig:
        spec = make_spec(**({"dataset": {"prefix": self.prefix}} | self.spec))
        return AnnotateConfig.model_validate(
            {
                "stage": "annotate",
                "namespace": self.namespace,
                "name": "statue",
                "uid": self.uid,
                "spec": spec,
                "baseModel": {"source": "store", "key": "models/tiny/"},
                "store": self.running.access.to_wire(),
                "workDir": str(self.folder),
                "terminationLog": str(self.folder / "termination-log"),
                "progressHost": "127.0.0.1",
                "progressPort": 0,
                "llm": self.llm,
                "segmentation": {"source": "store", "key": self.segmentation} if self.segmentation else None,
                "cacheDir": str(self.folder / "cache"),
            }
        )

    def run(self) -> tuple[int, StageResult]:
        path = self.folder / "stage.json"
        path.write_text(self.config().model_dump_json(by_alias=True))
        code = main(path)
        result = decode_result((self.folder / "termination-log").read_text())
        assert result is not None
        return code, result

    def recreate(self) -> Job:
        """Return the same job as if it was deleted and created again."""
        return Job(
            self.running,
            self.folder,
            self.prefix,
            self.namespace,
            spec=self.spec,
            llm=self.llm,
            segmentation=self.segmentation,
        )

    def captions(self) -> list[dict[str, Any]]:
        lines = self.running.store.output.get(self.keys.captions).decode().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def small_photographs(photographs: list[Path]) -> list[bytes]:
    """Return the photographs in a small size, so that tests are fast."""
    return [shrink(path) for path in photographs]


def shrink(path: Path) -> bytes:
    out = BytesIO()
    with Image.open(path) as image:
        image.thumbnail((384, 384))
        image.convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture
def make_job(
    running_store: RunningStore, small_photographs: list[bytes], tmp_path: Path
) -> Callable[..., Job]:
    def make(images: int = 5, llm: MessagesAPI | None = None, **spec: Any) -> Job:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        unique = uuid4().hex[:8]
        job = Job(running_store, folder, f"customers/{unique}/", f"studio-{unique}", spec=spec)
        for index, data in enumerate(small_photographs[:images]):
            job.upload(f"IMG_{index}.jpg", data)
        if llm is not None:
            secret = tmp_path / "llm-secret"
            secret.mkdir(exist_ok=True)
            (secret / "apiKey").write_text("sk-test\n")
            job.llm = {
                "provider": "anthropic",
                "baseURL": llm.url,
                "credentialsDir": str(secret),
                "model": "claude-haiku-5-5",
                "price": {"input": "0.10", "output": "0.50"},
                "timeoutSeconds": 20,
                "retrySeconds": 5,
            }
        return job

    return make
