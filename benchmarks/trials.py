"""Training of concepts with the real training stage, in this process and with a local store."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import yaml
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from lora_api.job import ConceptType, parse_spec
from lora_api.keys import JobKeys
from lora_api.manifest import canonical_json, sha256_hex
from lora_api.profile import StoreModel
from lora_api.stages import StoreAccess, TrainConfig
from lora_cli.local.seaweed import Seaweed
from lora_trainer.progress import Reporter
from lora_trainer.store import Store
from lora_trainer.train.export.embeddings_file import FILE_NAME as EMBEDDINGS
from lora_trainer.train.stage import work
from tests.support.quickstart import QUICKSTART
from tools.shapes.concepts import TOKEN

MODEL_KEY = "models/shapes-sdxl/"
SETTINGS = yaml.safe_load((QUICKSTART / "job.yaml").read_text())["spec"]["training"] | {
    "checkpoint": {"everySteps": 1000000},
    "preview": {"numInferenceSteps": 1},
}

"""The quickstart's settings, which were chosen for the small base model."""
WORLD = {
    "resolution": 64,
    "learningRate": "5e-4",
    "optimizer": "AdamW",
    "mixedPrecision": "fp32",
    "checkpoint": {"everySteps": 1000000},
    "preview": {"numInferenceSteps": 1},
}
"""What the small base model and a CPU need. All else has the defaults of a job, or the values of its recipe."""


@dataclass(frozen=True)
class Trained:
    """Result of a trial."""

    adapter: Path
    learned: dict[str, Tensor]
    """The trained parameters by name: with DreamBoothExtract the UNet's layers before extraction, and the text encoders' adapters."""
    embeddings: Path | None = None
    """The embeddings of new tokens; None where none were trained."""


@dataclass(frozen=True)
class Workbench:
    """A store that holds the base model, and a work folder."""

    folder: Path
    access: StoreAccess

    @classmethod
    def open(cls, folder: Path, seaweed: Seaweed, model: Path) -> Self:
        """Upload the base model to a store."""
        secrets = folder / "secrets"
        secrets.mkdir(parents=True)
        (secrets / "accessKey").write_text(seaweed.credentials.access_key)
        (secrets / "secretKey").write_text(seaweed.credentials.secret_key)
        access = StoreAccess(
            endpoint=seaweed.endpoint,
            secure=False,
            credentials_dir=str(secrets),
            input_bucket="datasets",
            output_bucket="loras",
        )
        bucket = Store(access).input
        for path in model.rglob("*"):
            if path.is_file():
                bucket.put_file(f"{MODEL_KEY}{path.relative_to(model)}", path)
        return cls(folder, access)

    def train(self, config: TrainConfig) -> Trained:
        """Run the training stage of a configuration from `prepare` in this process."""
        reporter = Reporter("127.0.0.1", 0)
        try:
            work(config, reporter)
        finally:
            reporter.close()
        training = config.spec.training
        step = training.max_steps - training.extraction.factor_steps
        bucket = Store(self.access).output
        weights = load(bucket.get(config.keys.checkpoint(step) + "weights.safetensors"))
        folder = Path(config.work_dir) / "attempt-1"
        embeddings = folder / EMBEDDINGS if training.token_embeddings.train else None
        return Trained(folder / "adapter.safetensors", weights, embeddings)

    def prepare(
        self,
        class_name: str,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        *,
        base: Mapping[str, Any] = SETTINGS,
        kind: ConceptType = ConceptType.SUBJECT,
        **settings: Any,
    ) -> TrainConfig:
        """Upload the images and captions of a job, and return the configuration of its training stage.

        Args:
            base: fields of `training` by their wire names.
            kind: the kind of concept.
            settings: fields of `training` by their wire names; they override `base`. A recipe is applied.
        """
        uid = str(uuid4())
        keys = JobKeys("bench", "concept", uid)
        bucket = Store(self.access).output
        lines = []
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            out = io.BytesIO()
            image.save(out, "png")
            bucket.put(keys.image(index), out.getvalue())
            name = keys.image(index).rpartition("/")[2]
            lines.append(canonical_json({"file_name": name, "text": caption}) + b"\n")
        bucket.put(keys.captions, b"".join(lines))
        spec = {
            "dataset": {"prefix": "drawn/"},
            "concept": {"token": TOKEN, "className": class_name, "type": str(kind)},
            "training": {**base, **settings},
            "resources": {"train": {"gpus": 0}},
        }
        folder = self.folder / uid
        folder.mkdir()
        return TrainConfig(
            namespace="bench",
            name="concept",
            uid=uid,
            spec=parse_spec(spec).with_recipe(len(images)),
            base_model=StoreModel(source="store", key=MODEL_KEY),
            store=self.access,
            work_dir=str(folder),
            termination_log=str(folder / "termination-log"),
            progress_host="127.0.0.1",
            progress_port=0,
            attempt=1,
            captions_sha256=sha256_hex(b"".join(lines)),
            input_hash=f"sha256:{sha256_hex(uid.encode())}",
            cache_dir=str(self.folder / "cache"),
        )
