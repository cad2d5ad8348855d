"""A caption: fields that a model fills, a sentence that code writes.

The model never writes the trigger or the class: it fills the fields of `Fields`, and `assemble` puts
`a photo of TOKEN CLASS` before them. So a preamble, a forgotten trigger or an order that was written in a
picture cannot end up in a caption as anything but a few capped words of description.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_api.job import Concept

from .tokens import TEXT_TOKENS, count_tokens, cut_to_tokens

FIELD_WORDS = 14
CAPTION_WORDS = 45
REPLY_CHARACTERS = 20_000
"""A longer reply is not looked at."""

REFUSAL = re.compile(
    r"\b(?:i|we)(?:['’]m| am| are| was)? (?:cannot|can['’]t|can not|won['’]t|will not|unable|not able|sorry)\b"
    r"|\bas an? (?:ai|language model)\b|\bi apologi[sz]e\b",
    re.IGNORECASE,
)
"""How language models decline."""

PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay)[,.!:]|(?:caption|description):|here(?:['’]s| is| are)\b)"
    r"|\b(?:this|the) (?:image|picture|photo|photograph) (?:shows|depicts|features|is of)\b",
    re.IGNORECASE,
)
"""How language models begin when they talk instead of captioning."""


class InvalidCaptionError(ValueError):
    """A reply that no caption can be made of; the message says why."""


class Fields(BaseModel):
    """What varies from image to image. The order is that of the sentence; the last ones are dropped first."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    framing: str
    """How near and from where, for example: close-up from above."""
    pose: str
    """What the subject does or how it is placed."""
    clothing: str
    """What it wears or holds; empty for most things."""
    setting: str
    """Where it is and what is around it."""
    lighting: str
    """The light."""
    other: str
    """Anything else that is not part of the subject itself."""


def reply_schema() -> dict[str, Any]:
    """The JSON schema that a reply must follow: every field a string, all present, no others.

    Lengths are not in it, since not every service enforces them: `parse_reply` does.
    """
    return {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": field.description}
            for name, field in Fields.model_fields.items()
        },
        "required": list(Fields.model_fields),
        "additionalProperties": False,
    }


def parse_reply(text: str, concept: Concept) -> Fields:
    """The fields of a reply, cleaned.

    Raises:
        InvalidCaptionError: when it is no JSON of the schema, says nothing, or declines.
    """
    if not text.strip():
        raise InvalidCaptionError("the reply is empty")
    if len(text) > REPLY_CHARACTERS:
        raise InvalidCaptionError(f"the reply is longer than {REPLY_CHARACTERS} characters")
    try:
        raw = Fields.model_validate_json(text)
    except ValidationError as error:
        raise InvalidCaptionError(
            f"the reply does not follow the schema: {error.errors()[0]['msg']}"
        ) from None
    if any(REFUSAL.search(value) for value in raw.model_dump().values()):
        raise InvalidCaptionError("the model declined to describe the image")
    fields = Fields(**{name: clean_phrase(value, concept) for name, value in raw.model_dump().items()})
    if not any(fields.model_dump().values()):
        raise InvalidCaptionError("the reply describes nothing")
    return fields


def clean_phrase(text: str, concept: Concept) -> str:
    """A field as a plain phrase of at most 14 words, without the trigger, controls or markup."""
    text = plain_text(text)
    text = re.sub(rf"(?<!\w){re.escape(concept.token)}(?!\w)", "", text, flags=re.IGNORECASE)
    text = PREAMBLE.sub("", text)
    text = " ".join(" ".join(text.split()).split()[:FIELD_WORDS])
    return text.strip(" .,;:")


def plain_text(text: str) -> str:
    """One line of text without control, format and unassigned characters and without CLIP's own marks."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        " " if unicodedata.category(c)[0] in "CZ" or c == "\N{REPLACEMENT CHARACTER}" else c for c in text
    )
    text = re.sub(r"<\|?[^<>]{0,40}\|?>", " ", text)
    return " ".join(text.split())


def template(concept: Concept) -> str:
    """The caption that says only what the subject is."""
    return f"a photo of {concept.token} {concept.class_name}"


def assemble(fields: Fields, concept: Concept) -> str:
    """`a photo of TOKEN CLASS, framing, pose, ...` in at most 75 CLIP tokens and 45 words.

    Fields are dropped from the end until it fits; where even the first does not, it is cut between words.
    """
    parts = [template(concept)]
    for phrase in fields.model_dump().values():
        if not phrase:
            continue
        longer = ", ".join([*parts, phrase])
        if count_tokens(longer) > TEXT_TOKENS or len(longer.split()) > CAPTION_WORDS:
            if len(parts) == 1:
                parts = [cut_to_tokens(longer)]
            break
        parts.append(phrase)
    return ", ".join(parts)
