"""Decoding of an uploaded file to one clean RGB image.

The content of a file decides, never its name. Where possible, a file is refused by its header, before any pixel is
decoded.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from .foreign import what_it_is
from .loading import SUFFIXES, BadImageError, load
from .raw import has_raw_magic

MAX_FILE_BYTES = 64 * 1024 * 1024
MIN_SIDE = 256
"""Smallest side of an image that is accepted, in pixels."""
CLEAN_SIDE = 2048
"""Maximum of a clean image's long side, in pixels. It is longer if the short side needs it for the resolution."""

NEARLY_CLEAN_SIDE = CLEAN_SIDE - 64
"""Shortest long side to which a JPEG may be decoded at a fraction of its size, in pixels: 4032 become 2016."""

THUMBNAIL_SIDE = 768
"""Long side of the image that the language model is shown, in pixels."""


@dataclass(frozen=True)
class CleanImage:
    """An image ready to be stored: RGB, upright, sRGB, without metadata."""

    image: Image.Image
    source_width: int
    """Width after orientation and before the reduction, in pixels."""
    source_height: int
    source_format: str
    warnings: list[str] = field(default_factory=list)

    def png(self) -> bytes:
        """Encode the image as a PNG."""
        return encode_png(self.image)

    def thumbnail_jpeg(self, box: tuple[float, float, float, float]) -> tuple[bytes, int, int]:
        """Return a part of the image as a JPEG for a language model, with its width and height in pixels.

        Args:
            box: left, top, right, bottom as fractions of the image.
        """
        width, height = self.image.size
        left, top, right, bottom = box
        small = self.image.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        out = BytesIO()
        small.save(out, "JPEG", quality=88)
        return out.getvalue(), small.width, small.height

    def pixels_sha256(self) -> str:
        """Return the sha256 of size and pixels. Unlike that of the PNG it does not depend on the encoder's version."""
        header = f"RGB {self.image.width} {self.image.height}\n".encode()
        return hashlib.sha256(header + self.image.tobytes()).hexdigest()


def decode(data: bytes, resolution: int = 1024) -> CleanImage:
    """Decode, orient and clean one image.

    Args:
        resolution: side of the training images, in pixels. The short side is not reduced below it.

    Raises:
        BadImageError: saying what is wrong with it.
    """
    if not data:
        raise BadImageError("the file is empty")
    if has_raw_magic(data):
        raise BadImageError("a RAW file of a camera: export it as JPEG, PNG or TIFF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, which is dropped anyway
            return _decode(data, resolution)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        known = what_it_is(data)
        raise BadImageError(
            known or f"not an image in a format that can be read ({readable_formats()})"
        ) from None
    except Image.DecompressionBombError:
        raise BadImageError("too many megapixels") from None
    except MemoryError:
        raise BadImageError(
            "it needs more memory to decode than there is: raise resources.annotate.memory"
        ) from None
    except Exception as error:
        # Decoders raise almost any exception for damaged files: OSError, ValueError, struct.error, IndexError ...
        words = " ".join(str(error).split())
        if "MAX_TEXT" in words:  # of Pillow's PNG decoder
            raise BadImageError(
                "its metadata is larger than 1 MB: export it again without metadata"
            ) from None
        raise BadImageError(f"damaged or cut off: {words[:200]}") from None


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as a PNG, fast rather than small."""
    out = BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def readable_formats() -> str:
    return ", ".join(name for name in SUFFIXES if name != "MPO")


def target_size(width: int, height: int, resolution: int, longest: int = CLEAN_SIDE) -> tuple[int, int]:
    """Return the size of a clean image, in pixels.

    The long side has at most `longest` pixels, or more if the short side would fall below the resolution. Images
    are never enlarged.
    """
    scale = min(1.0, max(longest / max(width, height), resolution / min(width, height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _decode(data: bytes, resolution: int) -> CleanImage:
    loaded = load(
        data,
        target=lambda size: target_size(*size, resolution),
        least=lambda size: target_size(*size, resolution, NEARLY_CLEAN_SIDE),
        min_side=MIN_SIDE,
    )
    image = loaded.image
    # `load` may return an image that is a little smaller (NEARLY_CLEAN_SIDE). thumbnail() does not enlarge it.
    image.thumbnail(target_size(loaded.width, loaded.height, resolution), Image.Resampling.LANCZOS)
    image.info.clear()
    return CleanImage(image, loaded.width, loaded.height, loaded.source_format, loaded.warnings)
