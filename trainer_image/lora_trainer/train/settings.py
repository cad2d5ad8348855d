"""What this trainer does with a job's settings, decided before anything is loaded."""

from __future__ import annotations

import torch

from lora_api.job import (
    Adapter,
    AdapterType,
    Extraction,
    Method,
    MixedPrecision,
    Optimizer,
    QuantizeBase,
    Training,
)
from lora_api.steps import TrainStep

from ..errors import BadConfigurationError, BadSetupError

DTYPES = {
    MixedPrecision.FP16: torch.float16,
    MixedPrecision.BF16: torch.bfloat16,
    MixedPrecision.FP32: torch.float32,
}


def choose_dtype(training: Training, device: torch.device) -> torch.dtype:
    """The base model's number format.

    Raises:
        BadConfigurationError: for fp16 on a CPU, which PyTorch would silently run in float32.
    """
    if device.type == "cpu" and training.mixed_precision == MixedPrecision.FP16:
        raise BadConfigurationError(
            "training.mixedPrecision: fp16 does not run on a CPU; set it to fp32 or bf16, or give the job a GPU"
        )
    return DTYPES[training.mixed_precision]


def choose_cpu(config: TrainStep) -> bool:
    """Whether to train on the CPU.

    Raises:
        BadSetupError: when the job has GPUs and this machine shows none.
    """
    gpus = config.spec.resources.train.gpus
    if gpus and torch.cuda.device_count() < gpus:
        raise BadSetupError(
            f"the job asks for {gpus} GPU(s) and PyTorch sees {torch.cuda.device_count()}: "
            "check the node's driver, or set resources.train.gpus to 0 to train on the CPU"
        )
    return gpus == 0


def refuse_unsupported(training: Training) -> None:
    """Nothing that a job asks for is silently left out.

    Raises:
        BadConfigurationError: naming every setting that this version does not have.
    """
    absent = {
        "lrScheduler": training.lr_scheduler == "piecewise_constant",
    }
    wire = training.to_wire()
    named = [f"training.{name}: {_value(wire, name)}" for name, unsupported in absent.items() if unsupported]
    if training.method == Method.DREAMBOOTH_EXTRACT:
        if training.text_encoder.train:
            named.append("training.textEncoder.train with method DreamBoothExtract")
        if training.quantize_base != QuantizeBase.NONE:
            named.append("training.quantizeBase with method DreamBoothExtract, which fine-tunes the base")
        if training.adapter != Adapter():
            named.append("training.adapter with method DreamBoothExtract, which extracts plain LoRA")
    elif training.extraction != Extraction():
        named.append(f"training.extraction with method {training.method}, which extracts nothing")
    kind = training.adapter
    if training.quantize_base != QuantizeBase.NONE and (kind.use_dora or kind.type != AdapterType.LORA):
        named.append("training.quantizeBase with DoRA, LoKr or LoHa, which need the base's own weights")
    if training.method == Method.LORA and training.prior_preservation.enabled:
        named.append("training.priorPreservation.enabled with training.method: LoRA, which knows no class")
    rates = {training.learning_rate, training.text_encoder.learning_rate}
    if training.optimizer == Optimizer.PRODIGY and training.text_encoder.train and len(rates) > 1:
        named.append("training.textEncoder.learningRate other than training.learningRate with Prodigy")
    if named:
        raise BadConfigurationError(f"this version does not have {'; '.join(named)}")


def _value(wire: dict[str, object], path: str) -> object:
    value: object = wire
    for part in path.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value
