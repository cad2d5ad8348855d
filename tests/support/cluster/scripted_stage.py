"""The program that runs in place of a stage in the tests on a whole node. It is passed to `python -c` with its plan.

The plan is a JSON object: for each stage, what an attempt does. The last entry of a list is for all later attempts.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

# Set before the slow imports: the first process of a container ignores SIGTERM until it has a handler.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))

from lora_api.reasons import Reason
from lora_api.stages import (
    CaptionsResult,
    Outcome,
    StageName,
    StageResult,
    TrainingResult,
    encode_result,
    stage_config_adapter,
)
from lora_api.status import AdapterStatus

MEBIBYTE = 1 << 20


def main() -> int:
    config = stage_config_adapter.validate_json(Path("/etc/lora/stage.json").read_bytes())
    attempts = json.loads(sys.argv[1]).get(config.stage, [{}])
    plan = attempts[min(config.attempt, len(attempts)) - 1]
    if fill := plan.get("fill"):
        path, size = fill
        with Path(path, "filled").open("wb") as file:
            for _ in range(size):
                file.write(b"\1" * MEBIBYTE)
    time.sleep(plan.get("seconds", 0))
    keys = config.keys
    if reason := plan.get("fails"):
        result = StageResult(outcome=Outcome.FAILED, reason=Reason(reason), message="as the plan says")
    elif config.stage == StageName.ANNOTATE:
        captions = CaptionsResult(key=keys.captions, sha256="c" * 64, dataset_sha256="d" * 64, total=6)
        result = StageResult(
            outcome=Outcome.CAPTIONED,
            reason=Reason.CAPTIONED,
            captions=captions,
            input_hash="sha256:" + "a" * 64,
        )
    else:
        adapter = AdapterStatus(
            uri=f"s3://{config.store.output_bucket}/{keys.attempt(config.attempt)}adapter.safetensors",
            sha256="b" * 64,
            bytes=1000,
            format="diffusers",
            manifest_key=keys.manifest(config.attempt),
        )
        result = StageResult(
            outcome=Outcome.TRAINED,
            reason=Reason.TRAINED,
            message="m" * 400,
            input_hash=config.input_hash,
            adapter=adapter,
            training=TrainingResult(final_step=300, final_loss="0.1"),
        )
    Path(config.termination_log).write_bytes(encode_result(result))
    return int(plan.get("exit", 0))


if __name__ == "__main__":
    sys.exit(main())
