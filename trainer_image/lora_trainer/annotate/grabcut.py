"""Masks of subjects by GrabCut (Rother et al. 2004, doi:10.1145/1015706.1015720), for images without a mask of their own.

GrabCut separates the colours of a subject from those of its background, from a first guess. The first guess is that
the outer tenth of the region that is trained on is background. The second guess is the salient part of the region: it
counts where the first one gives a mask whose colours are those of the rest of the image, because the subject is at the
edge.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_api.caption_rows import Box

from .crop import Pixels, colour_contrast

WORK_SIDE = 320
"""Maximum long side of the reduced image that GrabCut reads, in pixels. More detail is lost in training: a position of
the latents is 8 pixels wide."""
MARGIN = 0.1
"""Share of the region at each side that is background in the first guess."""
ITERATIONS = 3
MAX_OVERLAP = 0.55
"""Largest overlap of the colours of subject and background. On 16 photographs, masks of the subject had up to 0.5; on
drawn images whose subject is at the edge, masks of the background had 0.6."""
AGREEMENT = 0.75
"""Intersection over union from which two masks show the same object."""
MIN_SHARE, MAX_SHARE = 0.01, 0.9
"""Bounds of the share of the region that a mask may cover."""
SMALL_PART = 0.2
"""Parts of a mask are dropped that are smaller than this share of the largest one."""
FRAME_COLOURS = 5
"""Number of colours of a region's frame. Those of less than MIN_COLOUR of the frame may be the subject's."""
MIN_COLOUR = 0.12

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]


class NoSubjectError(ValueError):
    """No mask could be made. The message says why, as a part of a warning."""


def subject_mask(image: Image.Image, region: Box) -> Image.Image:
    """Make the mask of an image's subject. The same image always gets the same mask.

    Args:
        image: RGB, upright.
        region: the part of the image that is trained on.

    Returns:
        a greyscale image of the same size, white where the subject is.

    Raises:
        NoSubjectError: when the subject cannot be told from the background by its colours.
    """
    small = image.copy()
    small.thumbnail((WORK_SIDE, WORK_SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small)
    window = pixel_window(region, small.size)
    mask = _separate(rgb, window)
    check_share(mask[window], "GrabCut")
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return grey.resize(image.size, Image.Resampling.BILINEAR)


def _separate(rgb: Pixels, window: tuple[slice, slice]) -> Mask:
    """Return the mask of the first guess that tells the subject from the background.

    Where both show the same object, the second one counts if its colours differ much more from those of the rest.
    """
    inner, salient = (
        _main_parts(_grab_cut(rgb, guess(rgb, window))) for guess in (_inner_part, _salient_part)
    )
    inner_overlap, salient_overlap = (_colour_overlap(rgb, mask) for mask in (inner, salient))
    agreement = (inner & salient).sum() / max(1, (inner | salient).sum())
    is_better = agreement >= AGREEMENT and salient_overlap < inner_overlap / 2
    if inner_overlap <= MAX_OVERLAP and not is_better:
        return inner
    if salient_overlap <= MAX_OVERLAP:
        return salient
    raise NoSubjectError("subject and background have the same colours")


def check_share(part: Mask, method: str) -> None:
    """Check how much of the region that is trained on a mask covers.

    Args:
        part: the mask within the region.
        method: what made the mask, for the message.

    Raises:
        NoSubjectError: when it is almost nothing or almost everything.
    """
    covered = float(part.mean())
    if not MIN_SHARE <= covered <= MAX_SHARE:
        raise NoSubjectError(f"{method}'s mask covers {covered:.0%} of it")


def pixel_window(region: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a region of an image. `size` is its width and height, in pixels."""
    left, top, right, bottom = (round(value * side) for value, side in zip(region, size * 2, strict=True))
    return slice(top, bottom), slice(left, right)


def _inner_part(rgb: Pixels, window: tuple[slice, slice]) -> Labels:
    """Guess that the subject is within a region, without its margin."""
    labels = np.full(rgb.shape[:2], cv2.GC_BGD, np.uint8)
    inside = labels[window]
    y, x = (max(1, round(side * MARGIN)) for side in inside.shape)
    inside[y:-y, x:-x] = cv2.GC_PR_FGD
    return labels


def _salient_part(rgb: Pixels, window: tuple[slice, slice]) -> Labels:
    """Guess that the subject is the part of a region that has other colours than the image's mean and the region's frame."""
    part = np.ascontiguousarray(rgb[window])
    maps = [colour_contrast(part), _distance_from_frame(part)]
    weights = sum(each / max(float(each.max()), 1e-6) for each in maps) / len(maps)
    scaled = np.asarray(weights * 255, dtype=np.uint8)
    threshold, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_OTSU)
    labels = np.full(rgb.shape[:2], cv2.GC_BGD, np.uint8)
    labels[window] = np.where(scaled > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    return labels


def _distance_from_frame(rgb: Pixels) -> NDArray[np.float32]:
    """Return each pixel's distance in Lab from the nearest of the usual colours of an image's frame."""
    lab = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32), (5, 5), 0)
    width = max(2, min(lab.shape[:2]) // 16)
    is_frame = np.ones(lab.shape[:2], bool)
    is_frame[width:-width, width:-width] = False
    pixels = lab[is_frame]
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    _, members, colours = cv2.kmeans(pixels, FRAME_COLOURS, None, criteria, 2, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    usual = colours[np.bincount(members.ravel(), minlength=FRAME_COLOURS) > MIN_COLOUR * len(pixels)]
    return np.asarray(np.linalg.norm(lab[:, :, None] - usual, axis=3).min(axis=2), dtype=np.float32)


def _grab_cut(rgb: Pixels, labels: Labels) -> Mask:
    """Run GrabCut from a first guess. The mask is empty if the guess has no subject or no background."""
    guessed = labels == cv2.GC_PR_FGD
    if guessed.all() or not guessed.any():
        return np.zeros(labels.shape, bool)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    background, subject = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # of the k-means by which the colour models start
    cv2.grabCut(bgr, labels, None, background, subject, ITERATIONS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    # The margin was a guess: subjects that are cut by the edge, such as a portrait, continue there.
    labels[labels == cv2.GC_BGD] = cv2.GC_PR_BGD
    cv2.grabCut(bgr, labels, None, background, subject, 1, cv2.GC_EVAL_FREEZE_MODEL)  # type: ignore[call-overload]
    return np.asarray(labels == cv2.GC_PR_FGD)


def _main_parts(mask: Mask) -> Mask:
    """Remove small parts and thin connections of a mask, and fill its holes."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    large = [line for line, area in zip(outlines, areas, strict=True) if area >= SMALL_PART * max(areas)]
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, large, -1, (1,), cv2.FILLED)
    return filled.astype(bool)


def _colour_overlap(rgb: Pixels, mask: Mask) -> float:
    """Return the intersection of the colour histograms inside and outside of a mask, from 0 to 1; 1 if it is empty."""
    if not mask.any():
        return 1.0
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    bins, ranges = [8, 16, 16], [0, 256] * 3
    inside, outside = (
        cv2.calcHist([lab], [0, 1, 2], part.astype(np.uint8), bins, ranges) / max(1, int(part.sum()))
        for part in (mask, ~mask)
    )
    return float(np.minimum(inside, outside).sum())
