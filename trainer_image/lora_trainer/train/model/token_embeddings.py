"""Training of new tokens' embeddings beside an adapter: pivotal tuning, Textual Inversion (Gal et al. 2022, arXiv:2208.01618)
with LoRA.

It follows `TokenEmbeddingsHandler` of diffusers' train_dreambooth_lora_sdxl_advanced.py, but for two things: the other
embeddings are no parameters, so that they need no reset after a step and take no part in the gradient's norm; and
after `stopAfter` the text encoders get no gradient, which the script multiplies by a learning rate of 0.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from torch.nn import Embedding, Module, Parameter
from torch.nn.functional import embedding
from transformers import CLIPTokenizer

from lora_api.job import Training

from ...errors import BadConfigurationError, BadDataError
from ...new_tokens import MATRICES, PREFIX, insert_tokens, tokens_of
from ...whole_words import has_word
from ..data.encode import TextEmbedding, encode_text
from ..data.rng import generator_for
from .base_model import TextEncoderModel

log = logging.getLogger(__name__)
EXPONENT = 0.1
"""Part of the way, on a logarithmic scale, that a step brings the standard deviation back to that of the model."""
FIELD = "training.tokenEmbeddings"


class ExtendedEmbedding(Module):
    """An embedding matrix with further rows, which alone are trained.

    Args:
        base: the model's matrix.
        rows: the further rows: float32, (number, width).
        first: id of the token of the first further row. Tokens with higher ids have the next ones.
    """

    def __init__(self, base: Embedding, rows: Tensor, first: int) -> None:
        super().__init__()
        self.base = base
        self.rows = Parameter(rows)
        self._first = first

    def forward(self, ids: Tensor) -> Tensor:
        """Look up tokens.

        Args:
            ids: int64, any shape.

        Returns:
            Embeddings in the base matrix's number format: (*shape, width).
        """
        known = self.base(ids.clamp(max=self._first - 1))
        new = embedding((ids - self._first).clamp(min=0), self.rows).to(known.dtype)
        return torch.where((ids >= self._first)[..., None], new, known)


@dataclass
class TokenEmbeddings:
    """The new tokens of a job in both text encoders."""

    models: tuple[TextEncoderModel, TextEncoderModel]
    tokens: Sequence[str]
    word: str
    """The concept's token, in whose place prompts get the new tokens."""
    stds: Mapping[str, float]
    """Standard deviation of each text encoder's own embeddings, by the parameter's name."""
    is_active: bool = True
    """Whether prompts get the new tokens."""

    @classmethod
    def add(
        cls, models: tuple[TextEncoderModel, TextEncoderModel], training: Training, word: str
    ) -> TokenEmbeddings:
        """Freeze both text encoders, and add the new tokens to them and to copies of their tokenizers.

        Args:
            word: the concept's token.

        Raises:
            BadConfigurationError: if a tokenizer has tokens of these names, or the initializer does not fit.
        """
        tokens = tokens_of(training)
        extended, stds = [], {}
        for key, model in zip(MATRICES, models, strict=True):
            tokenizer = copy.deepcopy(model.tokenizer)  # the model may be shared by variants
            first = len(tokenizer)
            if tokenizer.add_tokens(tokens) != len(tokens):
                raise BadConfigurationError(
                    f"{FIELD}.train: the base model's tokenizer has a token of the name {' or '.join(tokens)} already; "
                    "choose another baseModel"
                )
            encoder = model.encoder.requires_grad_(False)
            own = encoder.get_input_embeddings()
            # In float32: the squares of embeddings are too small for fp16.
            name, std = f"{PREFIX}.{key}", float(own.weight.float().std())
            rows = _initial_rows(own.weight, model.tokenizer, training, std, key)
            encoder.set_input_embeddings(ExtendedEmbedding(own, rows, first))
            extended.append(TextEncoderModel(tokenizer, encoder))
            stds[name] = std
        return cls((extended[0], extended[1]), tokens, word, stds)

    def parameters(self) -> dict[str, Parameter]:
        """Return the trained parameters by name: float32, (tokens, width of the encoder)."""
        return {
            name: model.encoder.get_input_embeddings().rows
            for name, model in zip(self.stds, self.models, strict=True)
        }

    def encode(self, text: str) -> TextEmbedding:
        """Encode a text, with the new tokens in place of the concept's token."""
        return encode_text(self.models, insert_tokens(self.tokens if self.is_active else [], text, self.word))

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """List the texts that, with the new tokens, have more tokens than the text encoders read. Each is listed once."""
        tokenizer = self.models[0].tokenizer
        return [
            text
            for text in dict.fromkeys(texts)
            if len(tokenizer(insert_tokens(self.tokens, text, self.word)).input_ids)
            > tokenizer.model_max_length
        ]

    @torch.no_grad()
    def renormalize(self, values: Mapping[str, Tensor]) -> None:
        """Bring the standard deviation of the new embeddings closer to that of the model's own, after a step.

        Args:
            values: the parameters of `parameters`, by name; they are changed in place. Others are ignored.
        """
        for name, std in self.stds.items():
            values[name].mul_((std / values[name].std()) ** EXPONENT)

    @contextmanager
    def without(self) -> Iterator[None]:
        """Leave the concept's token in prompts within the block, for images of the base model."""
        self.is_active = False
        try:
            yield
        finally:
            self.is_active = True


def load_into(
    pipeline: StableDiffusionXLPipeline, matrices: Mapping[str, Tensor], tokens: Sequence[str]
) -> None:
    """Add new tokens with their embeddings to a pipeline's text encoders and tokenizers.

    Args:
        matrices: the content of a file of embeddings: clip_l and clip_g, (tokens, width of the encoder).
        tokens: their names, one for each row.
    """
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    for key, encoder, tokenizer in zip(MATRICES, encoders, tokenizers, strict=True):
        pipeline.load_textual_inversion(
            matrices[key], token=list(tokens), text_encoder=encoder, tokenizer=tokenizer
        )


def steps_of(training: Training) -> int:
    """Return the number of steps in which the embeddings are trained; at least one."""
    return math.ceil(training.token_embeddings.stop_after * training.max_steps)


def refuse_unnamed(captions: Sequence[str], word: str) -> None:
    """Check that a caption has the concept's token: otherwise the new tokens would never be trained.

    Raises:
        BadDataError: if none has it.
    """
    if not any(has_word(caption, word) for caption in captions):
        raise BadDataError(
            f"{FIELD}.train: no caption has the token {word!r}, in whose place the new tokens are put; write it into "
            "the captions, or set train to false"
        )


def _initial_rows(
    weight: Tensor, tokenizer: CLIPTokenizer, training: Training, std: float, key: str
) -> Tensor:
    """Return the first values of the new embeddings: float32, (tokens, width)."""
    count, text = training.token_embeddings.tokens, training.token_embeddings.initializer
    if not text:
        generator = generator_for(training.seed, PREFIX, key)
        return torch.randn(count, weight.shape[1], generator=generator) * std
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not 0 < len(ids) <= count:
        raise BadConfigurationError(
            f"{FIELD}.initializer: {text!r} has {len(ids)} tokens, and there are {count} new ones; shorten it, or raise "
            f"{FIELD}.tokens"
            if ids
            else f"{FIELD}.initializer: {text!r} has no token; name a word, or leave it empty"
        )
    return torch.stack([weight[ids[number % len(ids)]].detach().float() for number in range(count)])
