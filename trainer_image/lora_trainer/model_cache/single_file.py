"""Convert a checkpoint in one file, the usual form of fine-tuned models, to a pipeline's folder.

diffusers reads the file with the configurations of SDXL base 1.0, which this package holds, so no network is needed.
The rest of the trainer and the memory estimate read that folder.
"""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
from collections.abc import Collection
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lora_api.manifest import FileEntry
from lora_api.profile import CheckpointFile

from ..errors import BadConfigurationError
from ..store import file_sha256

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionXLPipeline

log = logging.getLogger(__name__)
CONFIGURATIONS = Path(str(files("lora_trainer.train").joinpath("model", "sdxl")))
"""Folder with the config.json of each component of SDXL base 1.0."""
VELOCITY_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
"""Names of empty tensors. Some trainers add them to mark velocity prediction and zero terminal SNR."""
REQUIRED = {
    "the UNet": "model.diffusion_model.input_blocks.0.0.weight",
    "the VAE": "first_stage_model.encoder.conv_in.weight",
    "the first text encoder": "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "the second text encoder": "conditioner.embedders.1.model.positional_embedding",
}
"""One tensor of each component, with the name that it has in Stability AI's checkpoints."""
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}
"""Beginning of the names of each component's tensors. Keys are the component's names in diffusers."""
SCALES = ("scale_weight", "weight_scale")
"""Last parts of the names of scales, which ComfyUI multiplies float8 weights by. diffusers ignores them."""
DOWNLOADS = "download"
"""Folder in an unfinished cache entry. The checkpoint is fetched into it, and removed once it is converted."""


def convert(file: Path, folder: Path, settings: CheckpointFile) -> list[FileEntry]:
    """Convert a checkpoint to a pipeline's folder. Each component keeps its own number format.

    Args:
        folder: folder of the pipeline, to be written.
        settings: the kind of prediction, as the profile gives it.

    Returns:
        The files of the pipeline. Keys are paths relative to the folder's parent.

    Raises:
        BadConfigurationError: if the file is not a complete SDXL checkpoint, or its weights are quantized.
    """
    import torch

    try:
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            _refuse_incomplete(names)
            dtypes = {name: tensors.get_tensor(name).dtype for name in names}
            _refuse_quantized(dtypes)
        formats = {
            component: _widest({each for name, each in dtypes.items() if name.startswith(prefix)})
            for component, prefix in PREFIXES.items()
        }
        scheduler = _scheduler(settings, names)
        with tempfile.TemporaryDirectory() as temporary:
            configuration = Path(temporary)
            _write_configuration(configuration, scheduler)
            log.info("converting %s, %.1f MB", file.name, file.stat().st_size / 1e6)
            pipeline = _load(file, configuration, formats)
    except SafetensorError as error:
        raise BadConfigurationError(f"has a damaged {file.name}: {error}") from error
    except (ValueError, KeyError, RuntimeError) as error:
        # diffusers raises these errors for tensors whose shapes are not those of SDXL.
        raise BadConfigurationError(f"has {file.name}, which is not an SDXL checkpoint: {error}") from error
    with torch.no_grad():
        pipeline.save_pretrained(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        FileEntry(
            key=str(path.relative_to(folder.parent)), bytes=path.stat().st_size, sha256=file_sha256(path)
        )
        for path in paths
    ]


def _load(file: Path, configuration: Path, formats: dict[str, torch.dtype]) -> StableDiffusionXLPipeline:
    """Load a checkpoint, each component in its number format."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

    options: dict[str, Any] = {"config": str(configuration), "local_files_only": True}
    # Not by one call with the widest format: it needs twice the memory if only the VAE is float32.
    parts = {
        name: kind.from_single_file(str(file), subfolder=name, torch_dtype=formats[name], **options)
        for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    }
    encoders = ("text_encoder", "text_encoder_2")
    pipeline: StableDiffusionXLPipeline = StableDiffusionXLPipeline.from_single_file(
        str(file),
        torch_dtype=_widest({formats[name] for name in encoders}),
        add_watermarker=False,
        **parts,
        **options,
    )
    for name in encoders:
        getattr(pipeline, name).to(formats[name])
    return pipeline


def _widest(formats: Collection[torch.dtype]) -> torch.dtype:
    """Return the narrowest number format that holds the numbers of all floating formats without loss."""
    import torch

    floating = {each for each in formats if each.is_floating_point}
    if len(floating) == 1:
        return floating.pop()
    # PyTorch does not promote float8. Every 16-bit format holds float8's numbers.
    wide = {each for each in floating if each.itemsize > 1} or {torch.float16}
    return reduce(torch.promote_types, wide)


def _refuse_quantized(dtypes: dict[str, torch.dtype]) -> None:
    """Refuse weights that are no plain numbers: integers, and numbers with scales.

    Args:
        dtypes: the number format of each tensor in the file.
    """
    quantized = sorted(
        name
        for name, each in dtypes.items()
        if name.startswith(tuple(PREFIXES.values()))
        and (name.rpartition(".")[2] in SCALES or (each.itemsize == 1 and not each.is_floating_point))
    )
    if quantized:
        raise BadConfigurationError(
            f"has quantized weights, which cannot be converted, for example {quantized[0]}: "
            "choose the model's file in fp16, bf16 or fp32"
        )


def _refuse_incomplete(names: Collection[str]) -> None:
    missing = [component for component, name in REQUIRED.items() if name not in names]
    if missing:
        raise BadConfigurationError(
            f"is not a complete SDXL checkpoint: it lacks {', '.join(missing)}; "
            "choose a file with all components, or a folder in diffusers' layout"
        )


def _scheduler(settings: CheckpointFile, names: Collection[str]) -> dict[str, Any]:
    """Return the scheduler's configuration: SDXL's noise schedule with the checkpoint's kind of prediction.

    Args:
        names: names of the checkpoint's tensors, which may contain the marks.

    Raises:
        BadConfigurationError: when the schedule has zero terminal SNR without velocity prediction.
    """
    velocity = settings.prediction == "Velocity" or (settings.prediction == "Auto" and VELOCITY_MARK in names)
    zero_snr = ZERO_SNR_MARK in names if settings.zero_terminal_snr is None else settings.zero_terminal_snr
    if zero_snr and not velocity:
        raise BadConfigurationError(
            "has a noise schedule with zero terminal SNR, which needs velocity prediction: "
            "set checkpoint.prediction to Velocity or checkpoint.zeroTerminalSNR to false"
        )
    return {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if velocity else "epsilon",
        "rescale_betas_zero_snr": zero_snr,
        # With zero terminal SNR the last timestep is pure noise, and sampling must begin there.
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "steps_offset": 0 if zero_snr else 1,
    }


def _write_configuration(folder: Path, scheduler: dict[str, Any]) -> None:
    """Write the folder of configurations and tokenizers that diffusers' single-file loader reads."""
    classes = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    for path in CONFIGURATIONS.glob("*/config.json"):
        target = folder / path.parent.name / path.name
        target.parent.mkdir()
        target.write_bytes(path.read_bytes())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        clip_tokenizer(pad).save_pretrained(folder / name)


def clip_tokenizer(pad: str) -> Any:
    """Build CLIP's tokenizer from its list of merges.

    The vocabulary is: the bytes, the bytes at the end of a word, the merges, and the marks of start and end.

    Args:
        pad: the padding token. SDXL's second tokenizer uses "!".
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    data = files("lora_trainer.annotate").joinpath("clip_merges.txt.gz").read_bytes()
    pairs = [tuple(line.split(" ")) for line in gzip.decompress(data).decode().strip().split("\n")]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77)
