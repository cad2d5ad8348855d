"""Measure the time in which the annotation stage captions 20 images, relative to the ideal time, and its memory.

A local Messages API answers after 500 ms and accepts 10 requests per second (further ones get 429). The ideal time is
images / concurrency * latency. The wall time is that from the first request to the last answer, so that it shows the
overhead of captioning alone. The store is a real one. `intake_ratio` is the CPU time of the intake of 12-megapixel
images on one core, relative to decoding, rotating, resizing and saving the same files with Pillow alone. The last
line of the output is `RESULT wall_ratio=... requests=... rss_mb=... intake_ratio=...`.

    python -m benchmarks.bench_annotation
"""

from __future__ import annotations

import json
import os
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
from PIL import ExifTags, Image, ImageOps

from lora_api.job import ConceptType, Training
from lora_api.manifest import FileEntry, sha256_hex
from lora_api.stages import AnnotateConfig, StoreAccess, decode_result
from lora_cli.local.seaweed import Seaweed
from lora_trainer.annotate.concept_fields import FIELDS
from lora_trainer.annotate.crop import frame_image
from lora_trainer.annotate.decode import CLEAN_SIDE
from lora_trainer.annotate.intake import fetch_image, store_image
from lora_trainer.store import Store, StoredObject

IMAGES = 20
CONCURRENCY = 4
LATENCY = 0.5
"""Seconds until the service answers."""
REQUESTS_PER_SECOND = 10


class Service:
    """The state of the service: its rate limit and its counts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.recent: deque[float] = deque()
        self.first = self.last = 0.0
        self.answered = self.limited = 0

    def admit(self) -> bool:
        """Count a request. Returns False when it exceeds the rate limit."""
        now = time.monotonic()
        with self.lock:
            self.first = self.first or now
            while self.recent and now - self.recent[0] > 1:
                self.recent.popleft()
            if len(self.recent) >= REQUESTS_PER_SECOND:
                self.limited += 1
                return False
            self.recent.append(now)
            return True

    def count_reply(self) -> None:
        with self.lock:
            self.answered += 1
            self.last = time.monotonic()


def serve(service: Service) -> ThreadingHTTPServer:
    """Start a Messages API on a free port."""
    fields = dict.fromkeys(FIELDS[ConceptType.SUBJECT], "") | {
        "framing": "close-up",
        "setting": "on a green lawn",
    }
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
                service.count_reply()
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


def make_jpeg(index: int) -> bytes:
    """Return a smooth JPEG of 12 megapixels, the size of a phone's photo."""
    noise = np.random.default_rng(index).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    rotation = Image.Exif()
    rotation[ExifTags.Base.Orientation] = 6 if index % 2 else 1
    out = BytesIO()
    Image.fromarray(noise).resize((4032, 3024), Image.Resampling.BICUBIC).save(
        out, "JPEG", quality=90, exif=rotation
    )
    return out.getvalue()


def write_stage_config(folder: Path, seaweed: Seaweed, port: int) -> tuple[Path, StoreAccess]:
    """Write the configuration of the annotation stage and return its path and the store's."""
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
    config = AnnotateConfig.model_validate(
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
    path = folder / "stage.json"
    path.write_text(config.model_dump_json(by_alias=True))
    return path, access


def run_stage(path: Path) -> tuple[int, float, int]:
    """Return the exit code, the seconds, and the peak of resident memory in MB."""
    started, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "lora_trainer", "annotate", "--config", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        if match := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(match[1]) // 1024)
        time.sleep(0.02)
    return process.wait(), time.monotonic() - started, peak


class MemoryBucket:
    """A bucket in memory that discards what is written, so that the intake is measured without the network."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def get(self, key: str) -> bytes:
        return self.files[key]

    def put(self, key: str, data: bytes, content_type: str = "") -> FileEntry:
        return FileEntry(key=key, bytes=len(data), sha256=sha256_hex(data))


def run_pillow(data: bytes) -> None:
    """Do the least work that any intake needs: decode, rotate, resize, save."""
    with Image.open(BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((CLEAN_SIDE, CLEAN_SIDE), Image.Resampling.LANCZOS)
        upright.save(BytesIO(), "PNG", compress_level=1)


def measure_intake() -> float:
    """Return the intake's CPU time on one core, divided by that of `run_pillow` on the same files. Both alternate."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    files = {f"{index:02d}.jpg": make_jpeg(index) for index in range(IMAGES)}
    memory, training = MemoryBucket(files), Training()
    stage_seconds = pillow_seconds = 0.0
    for key, data in files.items():
        item = StoredObject(key, len(data), "")
        started = time.process_time()
        framed, shown = frame_image(fetch_image(memory, item, training), training)  # type: ignore[arg-type]
        store_image(memory, f"{key}.png", item, framed, shown=shown, training=training)  # type: ignore[arg-type]
        middle = time.process_time()
        run_pillow(data)
        pillow_seconds += time.process_time() - middle
        stage_seconds += middle - started
    os.sched_setaffinity(0, cores)
    print(
        f"intake {stage_seconds / IMAGES * 1000:.0f} ms an image, plain Pillow {pillow_seconds / IMAGES * 1000:.0f} ms"
    )
    return stage_seconds / pillow_seconds


def main() -> int:
    service = Service()
    server = serve(service)
    with tempfile.TemporaryDirectory() as name, Seaweed(Path(name) / "s3", ["datasets", "loras"]) as seaweed:
        folder = Path(name)
        path, access = write_stage_config(folder, seaweed, server.server_address[1])
        store = Store(access)
        for index in range(IMAGES):
            store.input.put(f"bench/{index:02d}.jpg", make_jpeg(index))
        code, seconds, peak = run_stage(path)
        result = decode_result((folder / "termination-log").read_text())
    server.shutdown()
    if code or result is None or result.captions is None or result.captions.usage is None:
        print(f"the stage exited with {code}: {result}")
        return 1
    ideal = IMAGES / CONCURRENCY * LATENCY
    wall, usage = service.last - service.first, result.captions.usage
    print(f"captions {wall:.2f} s, ideal {ideal:.2f} s, the whole stage {seconds:.2f} s")
    print(f"answered {service.answered}, rate-limited {service.limited}")
    print(f"tokens {usage.input_tokens} in, {usage.output_tokens} out, {usage.cost_usd} USD")
    intake = measure_intake()
    print(
        f"RESULT wall_ratio={wall / ideal:.3f} requests={service.answered + service.limited} rss_mb={peak} "
        f"intake_ratio={intake:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
