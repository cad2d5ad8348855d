"""Fields of a spec for the dataset, the concept and the annotation."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from .base import Int, Model, Real
from .fields import LINE, LINES, UNSAFE, Words, server_rules

ClassName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[^\x00-/:-@\[-`{-\x9f][^\x00-\x1f!-,./:-@\[-^`{-\x9f]*$",
        json_schema_extra=server_rules(
            (
                r"self.matches(r'^[\p{L}\p{M}\p{N}\p{P}\p{S} ]*$') && !self.endsWith(' ')",
                "must be printable, without spaces at its ends",
            )
        ),
    ),
]
"""Letters of any script, digits, spaces, hyphens and underscores.

The pattern excludes ASCII punctuation instead of naming letters: `\\p{L}` is not known to every JSON schema validator.
"""


class OnBadImage(StrEnum):
    FAIL = "Fail"
    SKIP = "Skip"


class AnnotationMode(StrEnum):
    LLM = "LLM"
    EXISTING = "Existing"
    TEMPLATE = "Template"


class ExistingCaptions(StrEnum):
    KEEP = "Keep"
    OVERWRITE = "Overwrite"


class ConceptType(StrEnum):
    SUBJECT = "Subject"
    PERSON = "Person"
    STYLE = "Style"


class OnCaptionFailure(StrEnum):
    FAIL = "Fail"
    SKIP = "Skip"
    TEMPLATE = "Template"


class Masks(StrEnum):
    OWN = "Own"
    GRAB_CUT = "GrabCut"
    MODEL = "Model"


class Approval(StrEnum):
    NONE = "None"
    REQUIRED = "Required"


MAX_PREFIX = 512


def _folder(prefix: str) -> str:
    """Check a prefix and end it with a slash."""
    if any(part in (".", "..") for part in prefix.split("/")):
        raise ValueError("must not contain '.' or '..' as a part")
    # a prefix without a slash would also take the keys of every folder whose name begins with it
    folder = prefix if prefix.endswith("/") else prefix + "/"
    if len(folder) > MAX_PREFIX:
        raise ValueError(f"must have at most {MAX_PREFIX} characters with a slash at its end")
    return folder


class Dataset(Model):
    """The images to train on."""

    prefix: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_PREFIX,
            pattern=f"^[^/{UNSAFE}][^{UNSAFE}]*$",
            json_schema_extra=server_rules(
                (r"!self.matches(r'(^|/)\.\.?(/|$)')", "must not contain '.' or '..' as a part"),
                (
                    f"self.size() < {MAX_PREFIX} || self.endsWith('/')",
                    f"must have at most {MAX_PREFIX} characters with a slash at its end",
                ),
            ),
        ),
        AfterValidator(_folder),
    ]
    """Folder of the images in the profile's input bucket, for example customers/acme/statue/. A missing slash at its end is added."""
    min_images: Annotated[Int, Field(ge=1, le=1000)] = 5
    """Smallest number of usable images. With fewer, the job fails before a GPU is requested."""
    max_images: Annotated[Int, Field(ge=1, le=1000)] = 20
    """Largest number of images. With more, the job fails: narrow the prefix or raise this number."""
    on_bad_image: OnBadImage = OnBadImage.FAIL
    """Policy for an image that cannot be used. Fail: fail the job. Skip: train without it and list it in status."""


class Concept(Model):
    """The concept: the thing, person or style that the images show."""

    token: Words
    """Word that will call up the concept in a prompt, for example CUS. Choose a rare word of one to three CLIP tokens."""
    class_name: ClassName
    """Class that the concept belongs to, for example statue. Of a style, the medium, for example watercolor painting."""
    type: ConceptType = ConceptType.SUBJECT
    """Kind of the concept, which determines what captions describe. Subject: everything but the subject itself. Person: also clothing and expression, never the face. Style: the content of each image, never the style."""

    @property
    def opening(self) -> str:
        """The beginning of every caption. A template caption consists of nothing else."""
        if self.type is ConceptType.STYLE:
            return f"an image in {self.token} {self._style_noun}"
        return f"a photo of {self.token} {self.class_name}"

    @property
    def class_prompt(self) -> str:
        """The opening without the token, for images of the class: those of a style show its medium."""
        if self.type is not ConceptType.STYLE:
            return f"a photo of {self.class_name}"
        # A class that is only 'style' names no medium.
        return f"an image in {self._style_noun}" if self._style_noun.lower() != "style" else "an image"

    @property
    def _style_noun(self) -> str:
        return self.class_name if self.class_name.lower().endswith("style") else f"{self.class_name} style"

    @field_validator("class_name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip():
            raise ValueError("must be printable, without spaces at its ends")
        return value


class AnnotationLimits(Model):
    """Limits of the annotation stage."""

    max_cost_usd: Annotated[
        Annotated[Decimal, Real(ge="0", le="10000")] | None, Field(alias="maxCostUSD")
    ] = None
    """Largest amount to spend on captions, in USD at the profile's prices. Unset: 1.00 where the profile has a price for the model. A limit without a price is refused."""


class Annotation(Model):
    """Source of the captions, and their review."""

    mode: AnnotationMode = AnnotationMode.LLM
    """Source of the captions. LLM: a language model describes each image. Existing: captions are stored beside the images. Template: 'a photo of TOKEN CLASS', for a style 'an image in TOKEN CLASS style'."""
    model: Annotated[str, Field(max_length=128, pattern=LINE)] = ""
    """Language model, one that the profile allows. Empty: the profile's default."""
    instructions: Annotated[str, Field(max_length=2000, pattern=LINES)] = ""
    """Additional instructions for the language model."""
    existing_captions: ExistingCaptions = ExistingCaptions.KEEP
    """Whether captions stored beside the images are kept or written anew."""
    on_caption_failure: OnCaptionFailure = OnCaptionFailure.FAIL
    """Policy for an image for which no caption could be obtained. Fail: fail the job. Skip: train without the image. Template: use the caption of mode Template."""
    masks: Masks = Masks.OWN
    """Masks of the subject, outside of which training.masking lowers the loss. Own: those stored beside the images. GrabCut: also one made for each image without, from its colours (Rother et al. 2004, doi:10.1145/1015706.1015720). Model: the same by the profile's segmentation model, which looks for the concept's className."""
    approval: Approval = Approval.NONE
    """Required: stop after the annotation stage until approvedCaptions names the captions."""
    approved_captions: Annotated[str, Field(max_length=71, pattern=r"^((sha256:)?[0-9a-f]{64})?$")] = ""
    """SHA-256 digest of the captions that a reviewer approved. Can be set while the job waits for approval."""
    limits: AnnotationLimits = AnnotationLimits()
