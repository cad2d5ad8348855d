"""The published folder as a model repository: the card, its snippet and the event file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from lora_api.job import parse_spec
from lora_api.manifest import FileEntry, Manifest
from lora_api.profile import HubModel, HubVae, StoreModel
from lora_api.status import PreviewStatus
from lora_trainer.train.export.events import write_events
from lora_trainer.train.export.model_card import model_card
from lora_trainer.train.records import Record
from lora_trainer.train.report.snippet import usage_snippet
from tests.support.builders import ADAPTER, HASH, UID, wire_spec

SDXL = HubModel(
    source="hub",
    repo="stabilityai/stable-diffusion-xl-base-1.0",
    variant="fp16",
    vae=HubVae(repo="madebyollin/sdxl-vae-fp16-fix"),
)
SPEC = parse_spec(wire_spec())


def manifest(model: HubModel | StoreModel = SDXL) -> Manifest:
    names = ["adapter.safetensors", "adapter-kohya.safetensors"]
    return Manifest(
        namespace="studio",
        name="statue",
        uid=UID,
        attempt=1,
        input_hash=HASH,
        adapter=ADAPTER,
        concept=SPEC.concept,
        base_model=model,
        files=[FileEntry(key=f"a/attempt-1/{name}", bytes=1, sha256="b" * 64) for name in names],
        previews=[
            PreviewStatus(step=step, prompt="a: 'quoted' prompt # 1", key=f"a/attempt-1/preview-{step}.png")
            for step in (50, 100)
        ],
        steps=100,
        seed=3,
        first_loss=0.1,
        final_loss=0.1,
        versions={},
    )


def test_the_hub_reads_the_card() -> None:
    card = ModelCard(model_card(SPEC, manifest(), images=8))
    assert card.data.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert card.data.instance_prompt == "a photo of CUS statue"
    assert card.data.license == "openrail++"
    assert {"lora", "diffusers", "template:sd-lora", "text-to-image"} <= set(card.data.tags)
    assert card.data.widget == [{"text": "a: 'quoted' prompt # 1", "output": {"url": "preview-100.png"}}]
    assert "adapter-kohya.safetensors" in card.text


def test_captions_are_named_only_where_they_are_published() -> None:
    shown = parse_spec(wire_spec(output={"captions": True}))
    assert "captions.jsonl" in model_card(shown, manifest(), images=8)
    assert "captions.jsonl" not in model_card(SPEC, manifest(), images=8)


def test_a_base_model_of_the_store_is_named_by_its_folder() -> None:
    text = model_card(SPEC, manifest(StoreModel(source="store", key="models/house-xl/")), images=8)
    card = ModelCard(text)
    assert card.data.base_model == "house-xl"
    assert card.data.license == "other"
    assert 'from_pretrained("house-xl"' in card.text


@pytest.mark.parametrize("model", [SDXL, StoreModel(source="store", key="models/x/")])
def test_the_snippet_is_python(model: HubModel | StoreModel) -> None:
    code = usage_snippet(model, SPEC.concept, "adapter.safetensors")
    compile(code, "snippet", "exec")
    assert ("vae=vae" in code) == isinstance(model, HubModel)


def read_events(path: Path) -> list[Event]:
    """Read TensorBoard's record format and verify its checksums."""
    data, events, at = path.read_bytes(), [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        assert masked_crc32c(data[at : at + 8]) == int.from_bytes(data[at + 8 : at + 12], "little")
        body = data[at + 12 : at + 12 + length]
        assert masked_crc32c(body) == int.from_bytes(data[at + 12 + length : at + 16 + length], "little")
        events.append(Event.FromString(body))
        at += 16 + length
    return events


def test_events_hold_scalars_by_step_and_previews(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(out, "png")
    records = [Record(1, 0.5, 1e-4, 1.0, 2.0), Record(2, None, 1e-4, None, 2.0, held_out_loss=0.25)]
    path = tmp_path / "events.out.tfevents.training"
    previews = [
        PreviewStatus(step=2, prompt="a ring", key="here.png"),
        PreviewStatus(step=2, prompt="b", key="gone"),
    ]
    write_events(path, records, previews, {"here.png": out.getvalue()}.get)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    events = read_events(path)
    values = {(v.tag, event.step): v for event in events for v in event.summary.value}
    assert values["train/loss", 1].simple_value == 0.5
    assert ("train/loss", 2) not in values
    assert values["validation/loss", 2].simple_value == 0.25
    image = values["previews/a_ring", 2].image.encoded_image_string
    assert Image.open(io.BytesIO(image)).getpixel((0, 0)) == (200, 200, 200)
    assert sum(tag.startswith("previews/") for tag, _ in values) == 1
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 0.5)]
    assert [(event.step, event.value) for event in board.Scalars("validation/loss")] == [(2, 0.25)]
    assert [(event.step, event.width) for event in board.Images("previews/a_ring")] == [(2, 8)]
    times = {event.step: event.wall_time for event in events if event.summary.value}
    assert times[2] - times[1] == pytest.approx(2.0)
