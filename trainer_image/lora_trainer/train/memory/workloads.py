"""Traces of a job's workloads on tensors without data: a training step, and encoding and decoding an image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Linear
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_api.job import Adapter, QuantizeBase

from ..data.dataset import LATENT_SCALE
from ..data.encode import encode_tokens
from ..model.adapter import TEXT_ENCODERS, UNET, add_adapter, trainable
from ..model.extract import make_trainable
from ..model.flat_parameters import FlatParameters
from ..model.precision import autocast, compute_dtype
from ..model.quantize import is_quantizable
from ..model.token_embeddings import ExtendedEmbedding
from ..overrides.checkpointing import enable_checkpointing
from ..overrides.fused import fuse
from ..overrides.memory_efficient import make_memory_efficient
from ..overrides.quantized import ImitatedLinear
from .trace import Trace, Tracer, fake_weights

TOKENS = 77
"""Sequence length of CLIP's text encoders."""
TILE = 512
"""Side of the tiles of diffusers' tiled VAE, in pixels."""
CACHE_VERSION = 9
"""Increase it when a change of the code changes traces, or refuses what was traced."""
PLAIN_LORA = Adapter()


@dataclass(frozen=True)
class StepShape:
    """The settings that determine the cost of a training step of a model."""

    rank: int | None
    """Rank of the adapter; None where the UNet itself is fine-tuned (`extract.make_trainable`)."""
    resolution: int
    """Side of the square images, in pixels."""
    batch_size: int
    """Samples in one forward pass, class images included."""
    dtype: torch.dtype
    """Number format of the frozen base model."""
    checkpointing: bool
    """Whether gradient checkpointing is on."""
    adapter: Adapter = PLAIN_LORA
    convolutions: bool = False
    """Whether the convolutions are fine-tuned too, if `rank` is None."""
    quantize_base: QuantizeBase = QuantizeBase.NONE
    new_tokens: int = 0
    """Number of new tokens whose embeddings are trained."""
    text_rank: int = 0
    """Rank of the text encoders' adapters; 0 where they have none."""

    @property
    def runs_text_encoders(self) -> bool:
        """Whether captions are encoded in every step."""
        return bool(self.new_tokens or self.text_rank)


@dataclass(frozen=True)
class Step:
    """The cost of a training step, and the sizes of the model."""

    frozen: int
    """Number of frozen elements of the UNet."""
    trained: int
    """Number of trained elements."""
    trace: Trace
    """Forward and backward pass of one batch."""


def trace_step(folder: Path, shape: StepShape, cache: Path, device: str = "cpu") -> Step:
    """Trace the forward and backward pass of one batch. It takes 10 to 20 seconds for SDXL, if not cached.

    Args:
        folder: folder of the base model's pipeline, of which only `unet/config.json` and, where the text encoders are part
            of the step, theirs are read.
        cache: folder of cached results.
        device: device of the tensors without data. PyTorch without CUDA supports only the CPU. Steps of plain LoRA and
            of fine-tuning run without autocast, so that the peak is the same on both devices.
    """
    parts = (UNET, *TEXT_ENCODERS) if shape.runs_text_encoders else (UNET,)
    config = "".join((folder / part / "config.json").read_text() for part in parts)

    def measure() -> Step:
        unet = empty_unet(folder, shape)
        encoders = empty_text_encoders(folder, shape) if shape.runs_text_encoders else []
        modules: dict[str, Any] = {UNET: unet, **dict(zip(TEXT_ENCODERS, encoders, strict=False))}
        trained = sum(p.numel() for p in trainable(modules).values())
        frozen = sum(p.numel() for p in unet.parameters()) - sum(
            p.numel() for p in trainable({UNET: unet}).values()
        )
        if shape.checkpointing:
            enable_checkpointing(unet)
        with FakeTensorMode(), torch.device(device):
            weights = [weight for each in modules.values() for weight in fake_weights(each, shape.dtype)]
            parameters = trainable(modules)
            dtype = compute_dtype(shape.adapter, shape.dtype)
            flat = FlatParameters(parameters, [list(parameters.values())], dtype)
            uncounted = [
                *weights,
                flat.values,
                flat.gradient,
                *([] if flat.compute_copy is None else [flat.compute_copy]),
            ]
            tracer = Tracer(uncounted)
            with tracer:
                flat.use_compute_copy()
                with autocast(device, shape.adapter, shape.dtype):
                    loss = run_forward(unet, shape, encoders).float().square().mean()
                # In this thread, whose modes also apply to tensors that the recomputation of a checkpoint makes.
                with torch.autograd.set_multithreading_enabled(False):
                    loss.backward()
                flat.collect()
        return Step(frozen, trained, tracer.trace)

    stored = _cached(cache, f"{device} {shape} {config}", lambda: asdict(measure()))
    return Step(stored["frozen"], stored["trained"], Trace(**stored["trace"]))


def trace_vae(folder: Path, resolution: int, dtype: torch.dtype, cache: Path) -> tuple[Trace, Trace]:
    """Trace encoding and decoding one square image. Only `vae/config.json` is read.

    Returns:
        The traces of encoding and of decoding.
    """

    def measure() -> dict[str, dict[str, int]]:
        vae = _empty_vae(folder)
        side = resolution // LATENT_SCALE
        vae_dtype = torch.float32 if vae.config.force_upcast else dtype
        with FakeTensorMode(), torch.no_grad():
            weights = fake_weights(vae, vae_dtype)
            encoding, decoding = Tracer(weights), Tracer(weights)
            with encoding:
                vae.encode(torch.empty(1, 3, resolution, resolution, dtype=vae_dtype))
            with decoding:
                vae.decode(torch.empty(1, vae.config.latent_channels, side, side, dtype=vae_dtype))
        return {"encoding": asdict(encoding.trace), "decoding": asdict(decoding.trace)}

    config = (vae_folder(folder) / "config.json").read_text()
    stored = _cached(cache, f"{resolution} {dtype} {config}", measure)
    return Trace(**stored["encoding"]), Trace(**stored["decoding"])


def vae_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the size of the VAE's weights in bytes."""
    vae = _empty_vae(folder)
    bytes_per_weight: int = 4 if vae.config.force_upcast else dtype.itemsize
    return bytes_per_weight * sum(int(weight.numel()) for weight in vae.parameters())


def text_elements(folder: Path) -> int:
    """Return the number of elements of both text encoders."""
    return sum(weight.numel() for encoder in _text_encoders(folder) for weight in encoder.parameters())


def empty_text_encoders(folder: Path, shape: StepShape) -> list[Any]:
    """Build a pipeline's text encoders on the meta device, with new tokens or adapters, and overrides as in training."""
    encoders = _text_encoders(folder)
    for name, encoder in zip(TEXT_ENCODERS, encoders, strict=True):
        own = encoder.requires_grad_(False).get_input_embeddings()
        if shape.new_tokens:
            rows = torch.empty(shape.new_tokens, own.embedding_dim, device="meta")
            encoder.set_input_embeddings(ExtendedEmbedding(own, rows, own.num_embeddings))
        if shape.text_rank:
            with torch.device("meta"):
                add_adapter(encoder, name, shape.text_rank, shape.text_rank, seed=None, kind=shape.adapter)
            fuse(encoder)
        make_memory_efficient(encoder)
    return encoders


def _text_encoders(folder: Path) -> list[Any]:
    classes = (CLIPTextModel, CLIPTextModelWithProjection)
    with torch.device("meta"):
        return [
            kind(CLIPTextConfig.from_pretrained(folder, subfolder=name)).eval()
            for kind, name in zip(classes, TEXT_ENCODERS, strict=True)
        ]


def empty_unet(folder: Path, shape: StepShape) -> UNet2DConditionModel:
    """Build a pipeline's UNet on the meta device, with its adapter and overrides as in training."""
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        if shape.rank is None:
            make_trainable(unet, shape.convolutions)
        else:
            add_adapter(unet, UNET, shape.rank, shape.rank, seed=None, kind=shape.adapter)
            if shape.quantize_base != QuantizeBase.NONE:
                _imitate_quantization(unet)
            fuse(unet)
    make_memory_efficient(unet)
    return unet.train()


def _imitate_quantization(unet: UNet2DConditionModel) -> None:
    """Replace the forward passes of the layers that `quantize` would replace by imitations."""
    layers: list[Any] = [
        layer for name, layer in unet.named_modules() if type(layer) is Linear and is_quantizable(name)
    ]
    for layer in layers:
        layer.forward = ImitatedLinear(layer)


def run_forward(unet: UNet2DConditionModel, shape: StepShape, encoders: Sequence[Any] = ()) -> Tensor:
    """Run the UNet on a batch of tensors without data.

    Args:
        encoders: the text encoders, if they are part of the step.

    Returns:
        The prediction: `shape.dtype`, (batch, channels, height / 8, width / 8).
    """
    side, batch, dtype = shape.resolution // LATENT_SCALE, shape.batch_size, shape.dtype
    text, ids = unet.config.cross_attention_dim, unet.config.addition_time_embed_dim
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * ids
    sequences, summaries = (
        torch.empty(batch, TOKENS, text, dtype=dtype),
        torch.empty(batch, pooled, dtype=dtype),
    )
    if encoders:
        tokens = torch.zeros(1, TOKENS, dtype=torch.long)
        texts = [encode_tokens([(encoder, tokens) for encoder in encoders]) for _ in range(batch)]
        sequences = torch.stack([each.sequence for each in texts])
        summaries = torch.stack([each.pooled for each in texts])
    sample: Tensor = unet(
        torch.empty(batch, unet.config.in_channels, side, side, dtype=dtype),
        torch.zeros(batch, dtype=torch.long),
        sequences,
        added_cond_kwargs={
            "text_embeds": summaries,
            "time_ids": torch.empty(batch, 6),
        },
        return_dict=False,
    )[0]
    return sample


def vae_folder(folder: Path) -> Path:
    """Return the folder of the VAE's configuration; the model cache stores a VAE of its own beside the pipeline."""
    inside = folder / "vae"
    return inside if inside.exists() else folder.with_name("vae")


def _empty_vae(folder: Path) -> AutoencoderKL:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(vae_folder(folder)))
    return vae.eval().requires_grad_(False)


def _cached(cache: Path, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a result from the cache, or compute and store it if it is missing or damaged."""
    versions = f"{CACHE_VERSION} {torch.__version__} {diffusers.__version__} {peft.__version__}"
    path = cache / f"{hashlib.sha256(f'{versions} {key}'.encode()).hexdigest()}.json"
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        stored = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(stored))
        partial.replace(path)
    return stored
