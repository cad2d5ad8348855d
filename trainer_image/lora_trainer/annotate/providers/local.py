"""A vision-language model in this process, for clusters that may not send images out.

It needs torch and transformers, which the training image has and the annotation image does not. Small
models do not keep to a JSON schema, so each field is asked for by itself and the JSON is written here: the
reply is of the schema whatever the model says.
"""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from typing import Any

from PIL import Image

from lora_api.reasons import Reason

from ...errors import BadSetupError
from . import Question, Reply

FIELD_TOKENS = 32


class LocalProvider:
    def __init__(self, model: str) -> None:
        """
        Args:
            model: a folder, or a repository of the hub, that `AutoModelForImageTextToText` loads.

        Raises:
            BadSetupError: ModelUnavailable, when the libraries or the model are not there.
        """
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise BadSetupError(
                f"a local model needs the training image, which has {error.name}", Reason.MODEL_UNAVAILABLE
            ) from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        try:
            self._processor: Any = AutoProcessor.from_pretrained(model)
            self._model: Any = (
                AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).to(device).eval()
            )
        except (OSError, ValueError) as error:
            raise BadSetupError(
                f"the local model {model!r} cannot be loaded: {error}", Reason.MODEL_UNAVAILABLE
            ) from error
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, question: Question) -> Reply:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._fill, question)

    async def close(self) -> None:
        pass

    def _fill(self, question: Question) -> Reply:
        with Image.open(BytesIO(question.jpeg)) as file:
            image = file.convert("RGB")
        fields, taken, given = {}, 0, 0
        for name, schema in question.schema["properties"].items():
            wish = f"Answer with the {name} only, or with nothing. {schema['description']}"
            text, tokens_in, tokens_out = self._generate(image, f"{question.system}\n{question.text}\n{wish}")
            fields[name] = text.strip().split("\n")[0]
            taken, given = taken + tokens_in, given + tokens_out
        return Reply(json.dumps(fields), input_tokens=taken, output_tokens=given)

    def _generate(self, image: Image.Image, text: str) -> tuple[str, int, int]:
        """The model's most likely words, and the tokens read and written."""
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
