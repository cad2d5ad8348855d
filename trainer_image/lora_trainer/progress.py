"""HTTP server for the progress of a running stage: /progress (JSON), /metrics (Prometheus), /healthz."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from lora_api.status import Progress


class Reporter:
    """Serves the latest progress from a thread. `update` is cheap enough to be called at every step."""

    def __init__(self, host: str, port: int) -> None:
        """
        Args:
            port: port to listen on; 0 to choose a free one.

        Raises:
            OSError: when the port cannot be used.
        """
        self._progress = Progress()
        registry = CollectorRegistry()
        self._step = Gauge("lora_step", "Steps completed", registry=registry)
        self._total = Gauge("lora_steps_total", "Total number of steps", registry=registry)
        self._rate = Gauge("lora_steps_per_second", "Steps per second", registry=registry)
        self._loss = Gauge("lora_loss", "Training loss, smoothed", registry=registry)
        self._likeness = Gauge("lora_likeness", "Similarity to the training images", registry=registry)
        self._fidelity = Gauge("lora_fidelity", "Similarity to the prompts, base model 1", registry=registry)
        self._server = ThreadingHTTPServer((host, port), _handler(self, registry))
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="progress", daemon=True
        ).start()

    def update(
        self,
        step: int,
        total: int,
        *,
        loss: float | None = None,
        steps_per_second: float | None = None,
        likeness: float | None = None,
        fidelity: float | None = None,
    ) -> None:
        """Publish the progress after a step.

        Args:
            step: number of completed steps.
            total: total number of steps.
            loss: smoothed training loss.
            steps_per_second: rate over the last few steps.
            likeness: similarity of generated images to the training images.
            fidelity: similarity of generated images to their prompts, relative to the base model's.
        """
        eta = int((total - step) / steps_per_second) if steps_per_second else None
        self._progress = Progress(
            step=step,
            total_steps=total,
            percent=100 * step // total if total else 0,
            loss="" if loss is None else f"{loss:.4f}",
            steps_per_second="" if steps_per_second is None else f"{steps_per_second:.2f}",
            eta_seconds=eta,
            display=f"{step}/{total}",
            reported_at=datetime.now(UTC),
        )
        self._step.set(step)
        self._total.set(total)
        if steps_per_second is not None:
            self._rate.set(steps_per_second)
        if loss is not None:
            self._loss.set(loss)
        if likeness is not None:
            self._likeness.set(likeness)
        if fidelity is not None:
            self._fidelity.set(fidelity)

    def snapshot(self) -> dict[str, Any]:
        """Return the latest progress as JSON data, as /progress serves it."""
        return self._progress.model_dump(mode="json", by_alias=True, exclude_none=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(reporter: Reporter, registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/progress":
                self._reply("application/json", json.dumps(reporter.snapshot()).encode())
            elif self.path == "/metrics":
                self._reply("text/plain; version=0.0.4", generate_latest(registry))
            elif self.path == "/healthz":
                self._reply("text/plain", b"ok\n")
            else:
                self.send_error(404)

        def _reply(self, content_type: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
