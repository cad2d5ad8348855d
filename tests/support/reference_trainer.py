"""A simple, slow implementation of DreamBooth-LoRA on SDXL, which tests and benchmarks compare the trainer with.

It follows the definition of the method: every step encodes its images and captions. It shares no code with the trainer
except `aspect_bucket`, but derives random numbers from the seed and the sample's number by the same rule.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from PIL import Image
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_api.job import Crop, Training
from lora_trainer.aspect import aspect_bucket


def generator_for(seed: int, *path: object) -> torch.Generator:
    """Return the generator that the trainer uses for a purpose, such as `"instance", "sample", 3`."""
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


class Reference:
    """A base model with a new adapter, which is trained step by step."""

    def __init__(
        self,
        folder: Path,
        samples: list[tuple[bytes, str]],
        training: Training,
        class_samples: list[tuple[bytes, str]] | None = None,
    ) -> None:
        """Load the model and add the adapter.

        Args:
            samples: training images with their captions.
            class_samples: class images with their captions, for prior preservation.
        """
        self.training, self.samples, self.class_samples = training, samples, class_samples
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(folder, subfolder=name) for name in ("tokenizer", "tokenizer_2")
        ]
        self.encoders = [
            CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
            CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2"),
        ]
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        for module in (self.vae, *self.encoders):
            module.requires_grad_(False)
        self.schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        self.parameters = self.adapt(self.unet, "unet", ["to_q", "to_k", "to_v", "to_out.0"])
        groups = [{"params": self.parameters, "lr": float(training.learning_rate)}]
        if training.text_encoder.train:
            text = []
            for name, encoder in zip(("text_encoder", "text_encoder_2"), self.encoders, strict=True):
                text += self.adapt(encoder, name, ["q_proj", "k_proj", "v_proj", "out_proj"])
            groups.append({"params": text, "lr": float(training.text_encoder.learning_rate)})
            self.parameters = [*self.parameters, *text]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        self.lr_scheduler = get_scheduler(
            training.lr_scheduler,
            self.optimizer,
            num_warmup_steps=training.lr_warmup_steps,
            num_training_steps=training.max_steps,
        )

    def adapt(self, module: torch.nn.Module, component: str, targets: list[str]) -> list[torch.nn.Parameter]:
        """Freeze a module, add an adapter to it, and return the adapter's parameters."""
        module.requires_grad_(False)
        rank = self.training.rank
        module.add_adapter(LoraConfig(r=rank, lora_alpha=self.training.alpha, target_modules=targets))
        trained = []
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                trained.append(parameter)
            if ".lora_A." in name:
                generator = generator_for(self.training.seed, "lora_A", f"{component}.{name}")
                parameter.data = torch.randn(parameter.shape, generator=generator) / rank
        return trained

    def step(self, number: int) -> float:
        """Make an optimizer step, numbered from 0, and return its loss."""
        count = self.training.batch_size * self.training.gradient_accumulation_steps
        samples = range(number * count, number * count + count)
        loss = self.mean_loss("instance", self.samples, samples)
        if self.class_samples:
            weight = float(self.training.prior_preservation.weight)
            loss = loss + weight * self.mean_loss("class", self.class_samples, samples)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        return loss.item()

    def mean_loss(self, stream: str, data: list[tuple[bytes, str]], numbers: range) -> torch.Tensor:
        return torch.stack([self.sample_loss(stream, data, number) for number in numbers]).mean()

    def sample_loss(self, stream: str, data: list[tuple[bytes, str]], sample: int) -> torch.Tensor:
        seed, count = self.training.seed, len(data)
        order = torch.randperm(count, generator=generator_for(seed, stream, "order", sample // count))
        image, caption = data[int(order[sample % count])]
        generator = generator_for(seed, stream, "sample", sample)
        timestep = torch.randint(1000, (), generator=generator)[None]

        return self.noised_loss(image, caption, timestep, generator)

    @torch.no_grad()
    def held_out_loss(self, data: list[tuple[bytes, str]], count: int) -> float:
        losses = []
        for sample in range(count):
            generator = generator_for(self.training.seed, "held-out", "sample", sample)
            torch.randint(1000, (), generator=generator)  # advances the generator as for a training sample
            timestep = torch.tensor([int((sample + 0.5) / count * 1000)])
            losses.append(self.noised_loss(*data[sample % len(data)], timestep, generator, is_trained=False))
        return torch.stack(losses).mean().item()

    def noised_loss(
        self,
        image: bytes,
        caption: str,
        timestep: torch.Tensor,
        generator: torch.Generator,
        is_trained: bool = True,
    ) -> torch.Tensor:
        mean, std, time_ids = self.posterior(image)
        shape = mean.shape[1:]
        latent = mean + std * torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)[None]
        if is_trained:
            noise += float(self.training.noise_offset) * torch.randn(1, shape[0], 1, 1, generator=generator)
            if torch.rand((), generator=generator) < float(self.training.caption_dropout):
                caption = ""
        noisy = self.schedule.add_noise(latent, noise, timestep)

        text, pooled = self.encode(caption)
        predicted = self.unet(
            noisy, timestep, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
        ).sample
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latent, noise, timestep) if velocity else noise
        loss = functional.mse_loss(predicted, target)
        gamma = float(self.training.snr_gamma)
        if gamma:
            snr = compute_snr(self.schedule, timestep)[0]
            loss = loss * min(gamma, snr) / (snr + 1 if velocity else snr)
        return loss

    @torch.no_grad()
    def posterior(self, image: bytes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels, time_ids = self.prepare(image)
        posterior = self.vae.encode(pixels).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean * scale, posterior.std * scale, time_ids

    def prepare(self, data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        target_width = target_height = self.training.resolution
        if self.training.crop == Crop.BUCKETS:
            target_width, target_height = aspect_bucket(width, height, self.training.resolution)
        scale = max(target_width / width, target_height / height)
        left, top = (width - target_width / scale) / 2, (height - target_height / scale) / 2
        box = (left, top, min(left + target_width / scale, width), min(top + target_height / scale, height))
        resized = image.resize((target_width, target_height), Image.Resampling.LANCZOS, box=box)
        pixels = torch.from_numpy(np.array(resized, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        ids = [height, width, round(top * scale), round(left * scale), target_height, target_width]
        return pixels, torch.tensor([ids], dtype=torch.float32)

    def encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        layers = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = tokenizer(
                text, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            output = encoder(ids, output_hidden_states=True)
            layers.append(output.hidden_states[-2])
        return torch.cat(layers, -1), output.text_embeds


class PivotalReference(Reference):
    """The same with token embeddings, as diffusers' train_dreambooth_lora_sdxl_advanced.py trains them.

    The whole embedding matrices are trained, and after each step all rows but the new ones are reset. Two things
    differ from the script: the gradients of these rows, and all gradients of the matrices after the pivot, do not count
    in the norm by which gradients are clipped.
    """

    def __init__(
        self, folder: Path, samples: list[tuple[bytes, str]], training: Training, token: str, stop: int
    ) -> None:
        """
        Args:
            token: the concept's token, which the new tokens replace in captions.
            stop: number of steps in which the embeddings are trained.
        """
        super().__init__(folder, samples, training)
        settings = training.token_embeddings
        self.token, self.stop = token, stop
        self.new = [f"<s{number}>" for number in range(settings.tokens)]
        self.matrices, self.originals, self.stds = [], [], []
        for key, tokenizer, encoder in zip(("clip_l", "clip_g"), self.tokenizers, self.encoders, strict=True):
            std = encoder.get_input_embeddings().weight.data.std()
            tokenizer.add_tokens(self.new)
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            weight = encoder.get_input_embeddings().weight
            generator = generator_for(training.seed, "token_embeddings", key)
            weight.data[-settings.tokens :] = (
                torch.randn(settings.tokens, weight.shape[1], generator=generator) * std
            )
            self.matrices.append(weight.requires_grad_(True))
            self.originals.append(weight.data.clone())
            self.stds.append(std)
        self.parameters = [*self.parameters, *self.matrices]
        groups = [
            {"params": self.parameters[: -len(self.matrices)], "lr": float(training.learning_rate)},
            {"params": self.matrices, "lr": float(settings.learning_rate)},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        self.lr_scheduler = get_scheduler("constant", self.optimizer)

    def step(self, number: int) -> float:
        loss = self.mean_loss("instance", self.samples, range(number, number + 1))
        self.optimizer.zero_grad()
        loss.backward()
        for matrix in self.matrices:
            assert matrix.grad is not None
            matrix.grad[: -len(self.new)] = 0
            if number >= self.stop:
                matrix.grad.zero_()
        if number >= self.stop:
            self.optimizer.param_groups[1]["lr"] = 0.0
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.retract()
        return loss.item()

    @torch.no_grad()
    def retract(self) -> None:
        """`TokenEmbeddingsHandler.retract_embeddings`."""
        for matrix, original, std in zip(self.matrices, self.originals, self.stds, strict=True):
            updated = torch.zeros(len(matrix), dtype=torch.bool)
            updated[-len(self.new) :] = True
            matrix.data[~updated] = original[~updated]
            new = matrix.data[updated]
            off_ratio = std / new.std()
            matrix.data[updated] = new * (off_ratio**0.1)

    def encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        return super().encode(text.replace(self.token, "".join(self.new)))
