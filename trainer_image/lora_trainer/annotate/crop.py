"""The choice of the part of an image to train on, so that it contains the subject.

The method follows AUTOMATIC1111's autocrop (`modules/textual_inversion/autocrop.py`): several detectors each name a
point, and the crop is centred on the weighted mean of the points. The corners and the entropy that autocrop uses favour
busy backgrounds: on 215 crops of the DreamBooth photographs of a dog, a teapot and a vase, corners kept 91% of the
subject's extent, less than a crop of the centre (93%). Here colour contrast and the spectral residual, which detect
salient regions, have most of the weight.

Two rules take precedence over the mean. A face with its head is kept whole wherever it fits. Where the detectors
disagree, the crop moves towards the centre, where most photographs have their subject.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_api.caption_rows import Box
from lora_api.job import Crop, Training

from .decode import CleanImage

CONTRAST, RESIDUAL, CORNERS = 0.5, 0.5, 0.1
"""Weights of the detectors."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The region of a whole image."""
WORK_SIDE = 512
"""Maximum long side of the reduced image that the detectors read, in pixels."""

AGREEMENT, DISAGREEMENT = 0.10, 0.30
"""Distances between the detectors' points, as a fraction of the image. Up to the first the crop is centred on their
mean, from the second on the image's centre, and between them on a mixture of both."""

HEAD = (0.25, 0.55, 0.25, 0.30)
"""Margins of a head around a detected face: left, above, right, below, as fractions of the face's width and height."""

MAX_ASPECT = 4
"""Maximum ratio of a clean image's long side to its short side. The rest of a longer image is cut off."""

Pixels = NDArray[np.uint8]
Weights = NDArray[np.floating[Any]]


def frame_image(clean: CleanImage, training: Training) -> tuple[CleanImage, Box]:
    """Return the clean image to store and the part of it to train on.

    An image longer than MAX_ASPECT allows is cut around that part. With aspect buckets the whole image is kept: the
    trainer crops it to its bucket.
    """
    if training.crop is Crop.BUCKETS:
        return clean, WHOLE
    image = clean.image
    region = smart_square(image) if training.crop is Crop.SMART else centre_square(*image.size)
    short, long = min(image.size), max(image.size)
    if long <= MAX_ASPECT * short:
        return clean, region
    wide = image.width > image.height
    low, high = (region[0], region[2]) if wide else (region[1], region[3])
    length = MAX_ASPECT * short
    start = round(min(max((low + high) / 2 * long - length / 2, 0), long - length))
    window = (start, 0, start + length, short) if wide else (0, start, short, start + length)
    inside = round((low * long - start) / length, 4), round((high * long - start) / length, 4)
    kept = (inside[0], 0.0, inside[1], 1.0) if wide else (0.0, inside[0], 1.0, inside[1])
    return replace(clean, image=image.crop(window)), kept


def smart_square(image: Image.Image) -> Box:
    """Return the largest square of an image (RGB, upright), placed where the subject is."""
    width, height = image.size
    wide = width > height
    share = min(width, height) / max(width, height)
    start = 0.0
    if share < 1.0:
        small = np.asarray(image.reduce(math.ceil(max(image.size) / WORK_SIDE)))
        start = crop_start(small, share, 0 if wide else 1)
    low, high = round(start, 4), round(start + share, 4)
    return (low, 0.0, high, 1.0) if wide else (0.0, low, 1.0, high)


def crop_start(rgb: Pixels, share: float, axis: int) -> float:
    """Return the start of a crop along an axis, as a fraction of the image.

    Args:
        rgb: pixels (height, width, 3).
        share: the crop's length, as a fraction of the image.
        axis: 0 for a crop along the width, 1 along the height.
    """
    last = 1.0 - share
    grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    heads = [(box[axis], box[axis + 2]) for box in find_heads(grey)]
    centre = subject_centre(rgb, grey)[axis]
    if not heads:
        return min(max(centre - share / 2, 0.0), last)
    # The largest head decides; smaller ones are added while all of them fit.
    low, high = heads[0]
    for other in heads[1:]:
        if max(high, other[1]) - min(low, other[0]) <= share:
            low, high = min(low, other[0]), max(high, other[1])
    if high - low >= share:
        return min(max((low + high) / 2 - share / 2, 0.0), last)
    # The crop is centred between the heads and the subject, then moved as little as needed to contain the heads.
    start = (low + high + 2 * centre) / 4 - share / 2
    return min(max(start, high - share, 0.0), low, last)


def centre_square(width: int, height: int) -> Box:
    """Return the square in the centre, which the trainer cuts if the captions name no crop."""
    side = min(width, height)
    x, y = (1 - side / width) / 2, (1 - side / height) / 2
    return x, y, 1 - x, 1 - y


def subject_centre(rgb: Pixels, grey: Pixels) -> tuple[float, float]:
    """Estimate the centre of an image's subject, as fractions of width and height."""
    maps = [
        (CONTRAST, _suppress_background(colour_contrast(rgb))),
        (RESIDUAL, _suppress_background(_residual(grey))),
        (CORNERS, _corners(grey)),
    ]
    points = [(weight, _centroid(weights)) for weight, weights in maps if weights.sum() > 0]
    x, y = (_combine([(weight, point[axis]) for weight, point in points]) for axis in (0, 1))
    return x, y


def _combine(points: list[tuple[float, float]]) -> float:
    """Return the weighted mean of (weight, position) pairs, moved to the middle, 0.5, the more they disagree."""
    total = sum(weight for weight, _ in points)
    if not total:
        return 0.5
    mean = sum(weight * point for weight, point in points) / total
    spread = max(point for _, point in points) - min(point for _, point in points)
    doubt = min(max((spread - AGREEMENT) / (DISAGREEMENT - AGREEMENT), 0.0), 1.0)
    return mean * (1 - doubt) + 0.5 * doubt


def _centroid(weights: Weights) -> tuple[float, float]:
    """Return the centroid of a map, (height, width), as fractions of width and height."""
    height, width = weights.shape
    total = weights.sum()
    x = (weights.sum(axis=0) * (np.arange(width) + 0.5)).sum() / total / width
    y = (weights.sum(axis=1) * (np.arange(height) + 0.5)).sum() / total / height
    return float(x), float(y)


def _suppress_background(weights: Weights) -> Weights:
    """Subtract half the mean and clip at 0.

    The low values of an even background would otherwise add up and move the centroid.
    """
    return np.asarray(np.maximum(weights - weights.mean() / 2, 0))


def colour_contrast(rgb: Pixels) -> Weights:
    """Return each pixel's distance from the image's mean colour.

    The method is that of Achanta et al. 2009, 'Frequency-tuned salient region detection'.
    """
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    blurred = cv2.GaussianBlur(lab, (5, 5), 0)
    return np.asarray(np.linalg.norm(blurred - lab.mean(axis=(0, 1)), axis=2))


def _residual(grey: Pixels) -> Weights:
    """Return a map of the parts that deviate from the image's smoothed spectrum, (64, 64).

    The method is that of Hou and Zhang 2007, 'Saliency detection: a spectral residual approach'.
    """
    spectrum = np.fft.fft2(cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))
    logarithm = np.log1p(np.abs(spectrum))
    residual = logarithm - cv2.blur(logarithm, (3, 3))
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return np.asarray(cv2.GaussianBlur(energy, (0, 0), 2.5)) if grey.std() > 1 else np.zeros((1, 1))


def _corners(grey: Pixels) -> Weights:
    """Return a map with 1 at each corner, found as in autocrop.

    There are at most 100 corners, and none in the lowest tenth of the image, where watermarks are.
    """
    mask = np.full_like(grey, 255)
    mask[int(grey.shape[0] * 0.9) :] = 0
    matches = cv2.goodFeaturesToTrack(
        grey, maxCorners=100, qualityLevel=0.04, minDistance=min(grey.shape) * 0.06, mask=mask
    )
    weights = np.zeros(grey.shape)
    if matches is not None:
        columns, rows = matches[:, 0].astype(int).T
        weights[rows, columns] = 1
    return weights


def find_heads(grey: Pixels) -> list[Box]:
    """Return the regions of heads, the largest first.

    OpenCV's Haar cascades detect frontal faces, or faces in profile if there is no frontal one.
    """
    height, width = grey.shape
    smallest = max(24, min(grey.shape) // 10)

    def detect(name: str, image: Pixels) -> list[tuple[int, int, int, int]]:
        matches = _cascade(name).detectMultiScale(
            image, scaleFactor=1.2, minNeighbors=6, minSize=(smallest, smallest)
        )
        return [tuple(int(value) for value in box) for box in matches]  # type: ignore[misc]

    faces = detect("haarcascade_frontalface_alt2.xml", grey)
    if not faces:
        # The cascade detects faces that look to the left. Those that look to the right are found in the mirrored image.
        name = "haarcascade_profileface.xml"
        mirrored = detect(name, np.ascontiguousarray(grey[:, ::-1]))
        faces = detect(name, grey) + [(width - x - w, y, w, h) for x, y, w, h in mirrored]
    faces.sort(key=lambda box: box[2] * box[3], reverse=True)
    left, above, right, below = HEAD
    return [
        (
            max(0.0, (x - left * w) / width),
            max(0.0, (y - above * h) / height),
            min(1.0, (x + w + right * w) / width),
            min(1.0, (y + h + below * h) / height),
        )
        for x, y, w, h in faces
    ]


@cache
def _cascade(name: str) -> cv2.CascadeClassifier:
    # The wheels of OpenCV 5 contain neither the cascades nor another face detector, so pyproject.toml requires OpenCV 4.
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / name))
