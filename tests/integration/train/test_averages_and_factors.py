"""`emaDecay` and `factorSteps`, compared with their definitions and resumed."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load

from tests.integration.train.conftest import AdapterMaker, Job, JobMaker
from tests.integration.train.test_resuming import SimulatedCrash, checkpoint_steps, crash, stop_after
from tests.integration.train.test_training import instance_samples
from tests.support.reference_trainer import Reference, generator_for

AVERAGED = {
    "maxSteps": 5,
    "learningRate": "1e-2",
    "emaDecay": "0.3",
    "validation": {"everySteps": 1, "samples": 2},
    "preview": {"everySteps": 3, "numInferenceSteps": 2, "guidanceScale": "2.5"},
    "checkpoint": {"everySteps": 2, "keepLast": 2},
}
TUNED = {
    "method": "DreamBoothExtract",
    "rank": 6,
    "alpha": 12,
    "maxSteps": 6,
    "checkpoint": {"everySteps": 2, "keepLast": 2},
}
FACTORS = {**TUNED, "extraction": {"factorSteps": 3}}
TEXT = {"textEncoder": {"train": True, "learningRate": "5e-3"}}


def crash_at(job: Job, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step, crash)
        with pytest.raises(SimulatedCrash):
            job.run()


def test_the_average_is_validated_previewed_and_published(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(**AVERAGED)
    crash_at(job, 5, monkeypatch)
    assert checkpoint_steps(job) == [2, 4]
    job.run()
    reference = Reference(tiny_sdxl, instance_samples(clean_images), job.config.spec.training)
    average = EMAModel(reference.parameters, decay=0.3)
    for number, record in enumerate(job.records()):
        assert record["loss"] == pytest.approx(reference.step(number), abs=1e-4)
        average.step(reference.parameters)
        average.store(reference.parameters)
        average.copy_to(reference.parameters)
        measured = reference.held_out_loss(reference.samples, 2)
        if number + 1 == 3:
            np.testing.assert_allclose(preview(job, 3), generate_preview(tiny_sdxl, reference), atol=2)
        average.restore(reference.parameters)
        assert record["held_out_loss"] == pytest.approx(measured, abs=1e-4)
    published = load(job.attempt_file("adapter.safetensors"))
    learning = {name: last for name, last in reference.unet.named_parameters() if last.requires_grad}
    assert len(published) == len(learning)
    # All weights together: in a single matrix, rounding can change the sign of gradients that are almost 0, and the
    # first steps of Adam move a weight by the learning rate whatever the size of its gradient.
    means = dict(zip(learning, average.shadow_params, strict=True))
    found = {name: published[f"unet.{name.replace('.default', '')}"] for name in learning}
    error = norm_of(found[name] - mean for name, mean in means.items())
    assert error < 0.1 * norm_of(learning[name].detach() - mean for name, mean in means.items())


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def preview(job: Job, step: int) -> np.ndarray:
    image = Image.open(BytesIO(job.attempt_file(f"preview-{step:06d}-00.png")))
    return np.asarray(image, dtype=float)


def generate_preview(folder: Path, reference: Reference) -> np.ndarray:
    """Generate an image with the reference's model, from the noise of previews."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, unet=reference.unet)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a photo of CUS statue",
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=generator_for(0, "preview"),
    ).images[0]
    return np.asarray(image, dtype=float)


class FactorReference(Reference):
    """A reference that continues to train an existing adapter."""

    def take_up(self, folder: Path, adapter: Path) -> None:
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
        pipeline.load_lora_weights(adapter)
        self.unet = pipeline.unet
        self.factors = {name: p for name, p in self.unet.named_parameters() if "lora_" in name}
        self.parameters = [parameter.requires_grad_() for parameter in self.factors.values()]
        rate = float(self.training.learning_rate)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=1e-4)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)


def test_factors_are_trained_on_the_base_model_from_what_was_extracted(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes]
) -> None:
    tuned, job = make_job(**{**TUNED, "maxSteps": 3}), make_job(**FACTORS)
    tuned.run()
    job.run()
    losses = [record["loss"] for record in job.records()]
    assert losses[:3] == [record["loss"] for record in tuned.records()]
    assert job.attempt_file("layers.json") == tuned.attempt_file("layers.json")

    reference = FactorReference(tiny_sdxl, instance_samples(clean_images), job.config.spec.training)
    reference.take_up(tiny_sdxl, tuned.folder / "work" / "attempt-1" / "adapter.safetensors")
    before = {name: parameter.detach().clone() for name, parameter in reference.factors.items()}
    np.testing.assert_allclose(losses[3:], [reference.step(number) for number in (3, 4, 5)], atol=1e-4)
    published = load(job.attempt_file("adapter.safetensors"))
    assert len(published) == len(reference.factors)
    for name, parameter in reference.factors.items():
        found = published[f"unet.{name.replace('.default_0', '')}"]
        torch.testing.assert_close(found, parameter.data, rtol=1e-3, atol=1e-5)
        assert (found - before[name]).abs().max() > 1e-4


class TunedReference(Reference):
    """A reference that trains the UNet's own weights beside adapters on the text encoders."""

    def adapt(self, module: torch.nn.Module, component: str, targets: list[str]) -> list[torch.nn.Parameter]:
        if component != "unet":
            return super().adapt(module, component, targets)
        module.requires_grad_(False)
        return [
            layer.weight.requires_grad_()
            for name, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear) and ".attentions." in name
        ]

    def text_adapters(self) -> dict[str, torch.Tensor]:
        """Return the adapters' matrices by their names in a file of diffusers."""
        # transformers 5 leaves `text_model` out of the first encoder's names, and files have it.
        return {
            f"{component}.text_model.{name.removeprefix('text_model.').replace('.default', '')}": parameter.detach()
            for component, encoder in zip(("text_encoder", "text_encoder_2"), self.encoders, strict=True)
            for name, parameter in encoder.named_parameters()
            if "lora_" in name
        }


def test_text_encoders_learn_beside_a_fine_tuned_unet(
    make_job: JobMaker, tiny_sdxl: Path, clean_images: list[bytes]
) -> None:
    job = make_job(**{**TUNED, **TEXT, "maxSteps": 3, "learningRate": "1e-4"})
    job.run()
    reference = TunedReference(tiny_sdxl, instance_samples(clean_images), job.config.spec.training)
    losses = [record["loss"] for record in job.records()]
    np.testing.assert_allclose(losses, [reference.step(number) for number in range(3)], atol=1e-4)
    published = load(job.attempt_file("adapter.safetensors"))
    expected = reference.text_adapters()
    assert {name for name in published if name.startswith("text_encoder")} == set(expected)
    assert any(name.startswith("unet.") for name in published)
    for name, matrix in expected.items():
        torch.testing.assert_close(published[name], matrix, rtol=1e-3, atol=1e-4)
    for encoder in ("text_encoder.", "text_encoder_2."):
        learnt = [published[name] for name in expected if name.startswith(encoder) and ".lora_B." in name]
        assert norm_of(learnt) > 1e-2


def test_text_encoders_keep_learning_beside_the_factors(
    make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, job = make_job(**{**TUNED, **TEXT, "maxSteps": 3}), make_job(**FACTORS, **TEXT)
    tuned.run()
    job.run()
    extracted, published = (load(each.attempt_file("adapter.safetensors")) for each in (tuned, job))
    assert set(extracted) == set(published)
    for component in ("unet.", "text_encoder.", "text_encoder_2."):
        changes = [published[name] - extracted[name] for name in published if name.startswith(component)]
        assert norm_of(changes) > 1e-3
    # Gradients of many parameters are collected one by one.
    monkeypatch.setattr("lora_trainer.train.model.flat_parameters.LARGE", 1)
    early = make_job(**FACTORS, **TEXT)
    early.run()
    assert early.attempt_file("adapter.safetensors") == job.attempt_file("adapter.safetensors")


@pytest.mark.parametrize("text", [{}, TEXT], ids=["UNet", "UNet and text encoders"])
def test_an_extraction_that_trains_its_factors_is_resumed_exactly(
    make_job: JobMaker, uninterrupted: AdapterMaker, monkeypatch: pytest.MonkeyPatch, text: dict[str, Any]
) -> None:
    # With loraPlusRatio, the factors have one parameter group more than the UNet's weights.
    settings = {**FACTORS, **text, "lrScheduler": "linear", "emaDecay": "0.5", "loraPlusRatio": "4"}
    job = make_job(**settings)
    for step, saved in (
        (3, [2]),
        (4, [2, 3]),
        (6, [3, 4]),
    ):  # during fine-tuning, at its end, and during the training of factors
        crash_at(job, step, monkeypatch)
        assert checkpoint_steps(job) == saved
    result = job.run()
    assert result.training is not None
    assert result.training.resumed_from_step == 4
    assert job.attempt_file("adapter.safetensors") == uninterrupted(**settings)
    learning_rates = [record["learning_rate"] for record in job.records()]
    assert learning_rates == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
