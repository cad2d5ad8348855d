"""Training options in short runs: each changes the adapter and resumes exactly, and its adapter can be read."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from tests.integration.train.conftest import AdapterMaker, JobMaker

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"adapter": {"targets": "Full", "convolutionRank": 2, "rankDropout": "0.3"}},
    "feed-forward, text encoders": {
        "adapter": {"targets": "AttentionAndFeedForward"},
        "textEncoder": {"train": True, "learningRate": "1e-3"},
        "loraPlusRatio": "4",
    },
    "blocks": {
        "adapter": {"blocks": [{"block": "mid_block", "rank": 2, "learningRateScale": "0.5"}]},
        "loss": {"type": "Huber"},
        "timesteps": {"distribution": "LogitNormal"},
    },
    "schedule-free": {
        "optimizer": "ProdigyScheduleFree",
        "learningRate": "1",
        "loss": {"weighting": "Debiased"},
        "timesteps": {"min": "0.1", "max": "0.9"},
    },
    "variants": {
        "augmentation": {"flip": True, "cropJitter": "0.2", "cropVariants": 2, "extraResolutions": [32]},
        "batchSize": 3,
    },
    "CAME": {"optimizer": "CAME", "adapter": {"rankDropout": "0.2"}, "batchSize": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_trains_resumes_and_is_published(
    make_job: JobMaker, uninterrupted: AdapterMaker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS[name]
    whole = load(uninterrupted(**options))
    plain = load(uninterrupted())
    assert whole.keys() != plain.keys() or not all(torch.equal(whole[key], plain[key]) for key in plain)
    job = make_job(checkpoint={"everySteps": 1}, **options)
    interrupt_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    monkeypatch.undo()
    job.run()
    resumed = load(job.attempt_file("adapter.safetensors"))
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert (resumed[key] == value).all(), key


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """End the run at once after a step was saved, as a lost node does."""
    from lora_trainer.train.hooks import SaveCheckpoints

    save = SaveCheckpoints.after_step

    def after_step(self: Any, state: Any) -> None:
        save(self, state)
        if state.step == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(SaveCheckpoints, "after_step", after_step)


def test_masks_captions_and_repeats_of_the_rows_reach_training(make_job: JobMaker) -> None:
    lines: list[dict[str, Any]] = [
        {"file_name": f"{index:03d}.png", "text": f"a photo of CUS statue, view {index}"}
        for index in range(5)
    ]
    plain = make_job(lines)
    plain.run()
    expected = load(plain.attempt_file("adapter.safetensors"))
    rows: list[dict[str, Any]] = [
        {"mask": "000-mask.png"},
        {"captions": ["CUS statue"]},
        {"repeats": 2},
    ]
    for change in rows:
        job = make_job([{**line, **change} for line in lines])
        size = Image.open(io.BytesIO(job.store.output.get(job.config.keys.image(0)))).size
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        out = io.BytesIO()
        mask.save(out, "png")
        job.store.output.put(job.config.keys.image_named("000-mask.png"), out.getvalue())
        job.run()
        weights = load(job.attempt_file("adapter.safetensors"))
        assert any((weights[key] - expected[key]).abs().max() > 0 for key in expected), change
