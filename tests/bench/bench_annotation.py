"""How fast the annotation step captions 20 images, against the ideal, and what it takes.

A local Messages API answers after 500 ms and allows 10 requests in any second (429 beyond that). The ideal
is images / concurrency * latency; the wall time is that from the first request to the last answer, so that
what captioning adds to the model's own time is seen and nothing else. The store is a real one. The last
line is `RESULT wall_ratio=... requests=... rss_mb=...`.

    python tests/bench/bench_annotation.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from lora_api.steps import AnnotateStep, StoreAccess, decode_result
from lora_operator.local.seaweed import Seaweed
from lora_trainer.annotate.caption import Fields
from lora_trainer.store import Store

IMAGES = 20
CONCURRENCY = 4
LATENCY = 0.5
REQUESTS_A_SECOND = 10


class Service:
    """What the server saw."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.recent: deque[float] = deque()
        self.first = self.last = 0.0
        self.answered = self.limited = 0

    def admit(self) -> bool:
        now = time.monotonic()
        with self.lock:
            self.first = self.first or now
            while self.recent and now - self.recent[0] > 1:
                self.recent.popleft()
            if len(self.recent) >= REQUESTS_A_SECOND:
                self.limited += 1
                return False
            self.recent.append(now)
            return True

    def done(self) -> None:
        with self.lock:
            self.answered += 1
            self.last = time.monotonic()


def serve(service: Service) -> ThreadingHTTPServer:
    fields = dict.fromkeys(Fields.model_fields, "") | {"framing": "close-up", "setting": "on a green lawn"}
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": [{"type": "text", "text": json.dumps(fields)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 900, "output_tokens": 60},
    }
    limited = {"type": "error", "error": {"type": "rate_limit_error", "message": "too many requests"}}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if service.admit():
                time.sleep(LATENCY)
                self.reply(200, body)
                service.done()
            else:
                self.reply(429, limited)

        def reply(self, status: int, content: dict[str, object]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "250")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def photograph(index: int) -> bytes:
    """A smooth picture of 12 megapixels, as a phone takes them, unlike the others."""
    noise = np.random.default_rng(index).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(noise).resize((4032, 3024), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def step_file(folder: Path, seaweed: Seaweed, port: int) -> tuple[Path, StoreAccess]:
    secret = folder / "secret"
    secret.mkdir()
    (secret / "accessKey").write_text(seaweed.credentials.access_key)
    (secret / "secretKey").write_text(seaweed.credentials.secret_key)
    (secret / "apiKey").write_text("sk-bench")
    access = StoreAccess(
        endpoint=seaweed.endpoint,
        secure=False,
        credentials_dir=str(secret),
        input_bucket="datasets",
        output_bucket="loras",
    )
    config = AnnotateStep.model_validate(
        {
            "namespace": "bench",
            "name": "bench",
            "uid": "bench",
            "spec": {"dataset": {"prefix": "bench/"}, "concept": {"token": "CUS", "className": "statue"}},
            "baseModel": {"source": "store", "key": "models/none/"},
            "store": access.to_wire(),
            "workDir": str(folder),
            "terminationLog": str(folder / "termination-log"),
            "progressHost": "127.0.0.1",
            "progressPort": 0,
            "llm": {
                "provider": "anthropic",
                "baseURL": f"http://127.0.0.1:{port}",
                "credentialsDir": str(secret),
                "model": "claude-haiku-5-5",
                "price": {"input": "0.10", "output": "0.50"},
                "concurrency": CONCURRENCY,
            },
        }
    )
    path = folder / "step.json"
    path.write_text(config.model_dump_json(by_alias=True))
    return path, access


def run_step(path: Path) -> tuple[int, float, int]:
    """Exit code, seconds, and the peak of resident memory in MB."""
    began, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "lora_trainer", "annotate", "--config", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) // 1024)
        time.sleep(0.02)
    return process.wait(), time.monotonic() - began, peak


def main() -> int:
    service = Service()
    server = serve(service)
    with tempfile.TemporaryDirectory() as name, Seaweed(Path(name) / "s3", ["datasets", "loras"]) as seaweed:
        folder = Path(name)
        path, access = step_file(folder, seaweed, server.server_address[1])
        store = Store(access)
        for index in range(IMAGES):
            store.input.put(f"bench/{index:02d}.jpg", photograph(index))
        code, seconds, peak = run_step(path)
        result = decode_result((folder / "termination-log").read_text())
    server.shutdown()
    if code or result is None or result.captions is None or result.captions.usage is None:
        print(f"the step ended with {code}: {result}")
        return 1
    ideal = IMAGES / CONCURRENCY * LATENCY
    wall, usage = service.last - service.first, result.captions.usage
    print(f"captions {wall:.2f} s, ideal {ideal:.2f} s, the whole step {seconds:.2f} s")
    print(f"answered {service.answered}, rate-limited {service.limited}")
    print(f"tokens {usage.input_tokens} in, {usage.output_tokens} out, {usage.cost_usd} USD")
    print(f"RESULT wall_ratio={wall / ideal:.3f} requests={service.answered + service.limited} rss_mb={peak}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
