"""The provider for a vision-language model in this process, for clusters that must not send images to a service.

It needs torch and transformers, which the training image contains and the annotation image does not. Small models do not
follow a JSON schema, so each field is requested separately and the JSON is assembled here.
"""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from typing import Any

from PIL import Image

from lora_api.reasons import Reason

from ...errors import BadConfigurationError, BadSetupError
from .protocol import Question, Reply, TokenUsage

FIELD_TOKENS = 32
"""Maximum number of tokens that are generated for a field. The output limit of a question is not used."""


class LocalProvider:
    """A provider that runs a model with transformers, on the GPU if there is one."""

    def __init__(self, model: str) -> None:
        """
        Args:
            model: a folder, or a repository of the hub, that `AutoModelForImageTextToText` loads.

        Raises:
            BadSetupError: ModelUnavailable, when the libraries, the model or its chat template are missing, or the model is damaged.
        """
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor

            from ...pretrained import load, loading
        except ImportError as error:
            raise BadSetupError(
                f"a local model needs the training image, which has {error.name}", Reason.MODEL_UNAVAILABLE
            ) from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        what = f"the local model {model!r}"
        try:
            with loading(what):
                self._processor: Any = AutoProcessor.from_pretrained(model)
            self._model: Any = load(AutoModelForImageTextToText, model, what, dtype=dtype).to(device).eval()
        except (BadConfigurationError, ImportError) as error:
            raise BadSetupError(str(error), Reason.MODEL_UNAVAILABLE) from error
        tokenizer = getattr(self._processor, "tokenizer", None)
        if not (getattr(self._processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
            raise BadSetupError(
                f"the local model {model!r} has no chat template: use an instruction-tuned model",
                Reason.MODEL_UNAVAILABLE,
            )
        self._lock = asyncio.Lock()

    async def ask(self, question: Question) -> Reply:
        # Parallel generations would only slow each other down.
        async with self._lock:
            return await asyncio.to_thread(self._fill, question)

    async def close(self) -> None:
        pass

    def _fill(self, question: Question) -> Reply:
        """Generate the fields one after the other and return them as JSON."""
        with Image.open(BytesIO(question.jpeg)) as file:
            image = file.convert("RGB")
        fields, read, written = {}, 0, 0
        for name, schema in question.schema["properties"].items():
            request = f"Answer with the {name} only, or with nothing. {schema['description']}"
            text, tokens_in, tokens_out = self._generate(
                image, f"{question.system}\n{question.text}\n{request}"
            )
            fields[name] = text.strip().split("\n")[0]
            read, written = read + tokens_in, written + tokens_out
        return Reply(text=json.dumps(fields), usage=TokenUsage(input_tokens=read, output_tokens=written))

    def _generate(self, image: Image.Image, text: str) -> tuple[str, int, int]:
        """Generate text by greedy decoding. Returns it with the numbers of tokens read and written."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device, dtype=self._model.dtype)
        read = inputs["input_ids"].shape[1]
        output = self._model.generate(**inputs, max_new_tokens=FIELD_TOKENS, do_sample=False)[0, read:]
        return self._processor.decode(output, skip_special_tokens=True), read, len(output)
