"""The fields that a model fills in for each type of concept.

A caption describes what the adapter should not learn as part of the concept. For a subject these are its surroundings,
for a person also clothing and expression, and for a style the content of each image.
"""

from __future__ import annotations

from typing import Any

from lora_api.job import ConceptType

FIELDS: dict[ConceptType, dict[str, str]] = {
    ConceptType.SUBJECT: {
        "framing": "How near and from where, for example: close-up from above.",
        "pose": "What the subject does or how it is placed.",
        "clothing": "What it wears or holds; empty for most things.",
        "setting": "Where it is and what is around it.",
        "lighting": "The light.",
        "other": "Anything else that is not part of the subject itself.",
    },
    ConceptType.PERSON: {
        "framing": "How near and from where, for example: head and shoulders, from the side.",
        "expression": "The expression and where the person looks, for example: smiling at the camera.",
        "pose": "What the person does.",
        "clothing": "What the person wears and holds, glasses and hats included.",
        "setting": "Where the person is and who or what is around.",
        "lighting": "The light.",
    },
    ConceptType.STYLE: {
        "content": "What is shown, in a few nouns, for example: a fox asleep under a birch.",
        "action": "What happens; empty for still scenes.",
        "setting": "Where it is: place, season, time of day.",
        "framing": "How near and from where, for example: wide view from above.",
        "details": "Further things in the image, in a few nouns.",
    },
}
"""Names and descriptions of the fields, by type of concept. They have the order of the caption; where it is too long,
the last ones are dropped."""


def reply_schema(kind: ConceptType) -> dict[str, Any]:
    """Return the JSON schema of a reply: every field is a string, all are required, and no others are allowed.

    Maximum lengths are not part of it, since not every service supports them. `clean_phrase` enforces them.
    """
    fields = FIELDS[kind]
    return {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": description} for name, description in fields.items()
        },
        "required": list(fields),
        "additionalProperties": False,
    }
