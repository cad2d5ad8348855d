"""Masks beside images."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from lora_api.caption_rows import read_rows
from lora_api.job import Masks, Training, parse_spec
from lora_api.keys import JobKeys
from lora_trainer.annotate import grabcut
from lora_trainer.annotate.captions import Caption, Captioned
from lora_trainer.annotate.crop import WHOLE, smart_square
from lora_trainer.annotate.decode import CleanImage
from lora_trainer.annotate.grabcut import subject_mask
from lora_trainer.annotate.inspection import inspect_folder, read_captions
from lora_trainer.annotate.intake import clean_dataset
from lora_trainer.annotate.listing import list_dataset
from lora_trainer.annotate.loading import BadImageError
from lora_trainer.annotate.masks import fit_mask, make_mask, mask_notes, mask_warnings, split_masks
from lora_trainer.annotate.publish import metadata_lines
from lora_trainer.store import StoredObject
from tests.conftest import DATA, RunningStore, draw_photograph, make_spec


def stored(key: str) -> StoredObject:
    return StoredObject(key=key, bytes=1, etag="e")


def clean(image: Image.Image, size: tuple[int, int] | None = None) -> CleanImage:
    return CleanImage(image, *(size or image.size), source_format="PNG")


def test_masks_are_paired_with_their_images_and_are_no_images() -> None:
    objects = [stored(key) for key in ("d/A.jpg", "d/a-mask.png", "d/b.png", "d/c-mask.png", "d/d-mask.jpg")]
    images, masks, orphans = split_masks(objects)
    assert [item.key for item in images] == ["d/A.jpg", "d/b.png", "d/d-mask.jpg"]
    assert {owner: mask.key for owner, mask in masks.items()} == {"d/A.jpg": "d/a-mask.png"}
    assert [(item.key, item.reason) for item in orphans] == [
        ("d/c-mask.png", "a mask without its image; ignored")
    ]


@pytest.mark.parametrize(
    "mask",
    [
        "d/a-masklabel.png",
        "d/a_mask.PNG",
        "d/A.mask.png",
        "d/masks/a.png",
        "d/Mask/a.png",
        "d/masks/a_mask.png",
    ],
)
def test_masks_of_other_programs_are_no_images(mask: str) -> None:
    images, masks, orphans = split_masks([stored("d/a.jpg"), stored(mask)])
    assert ([item.key for item in images], orphans) == (["d/a.jpg"], [])
    assert masks["d/a.jpg"].key == mask
    assert "is used as its mask" in mask_notes(masks["d/a.jpg"])[0]


def test_masks_in_a_folder_beside_the_images() -> None:
    images, masks, _ = split_masks(
        [stored(key) for key in ("images/a.jpg", "masks/a.png", "b.jpg", "masks/b.png")]
    )
    assert [item.key for item in images] == ["images/a.jpg", "b.jpg"]
    assert set(masks) == {"images/a.jpg", "b.jpg"}


def test_photographs_of_masks_are_images() -> None:
    keys = ["d/venetian_mask.png", "masks/b.png", "d/c.mask.png", "d/masks/e.jpg", "d/e.png"]
    images, masks, orphans = split_masks([*map(stored, keys), stored("d/x-masklabel.png")])
    assert [item.key for item in images] == keys
    assert masks == {}
    assert [item.key for item in orphans] == ["d/x-masklabel.png"]


def test_a_mask_must_have_the_size_of_its_image() -> None:
    image = clean(Image.new("RGB", (50, 40)), (100, 80))
    mask = clean(Image.new("RGB", (50, 40), "white"), (100, 80))
    assert fit_mask(mask, image).size == (50, 40)
    with pytest.raises(BadImageError, match="its mask is 99x80 pixels and the image 100x80"):
        fit_mask(clean(Image.new("RGB", (50, 40)), (99, 80)), image)


def test_masks_reach_the_rows_of_their_images(running_store: RunningStore, uid: str) -> None:
    prefix, bucket = f"masks/{uid}/", running_store.store.input
    for index in range(2):
        out = io.BytesIO()
        Image.effect_noise((320 + 8 * index, 300), 80).convert("RGB").save(out, "png")
        bucket.put(f"{prefix}{index}.png", out.getvalue())
    out = io.BytesIO()
    white = Image.new("L", (320, 300))
    white.paste(255, (0, 0, 160, 300))
    white.save(out, "png")
    bucket.put(f"{prefix}0-mask.png", out.getvalue())
    spec = parse_spec(make_spec(dataset={"prefix": prefix, "minImages": 1}, training={"resolution": 64}))
    keys = JobKeys("studio", "masks", uid)
    intake = clean_dataset(running_store.store, keys, spec, list_dataset(bucket, prefix))
    assert [image.source.key for image in intake.images] == [f"{prefix}0.png", f"{prefix}1.png"]
    captions = {image.file_name: Caption("text", "template", []) for image in intake.images}
    captioned = Captioned(captions, skipped=[], usage=None, warnings=[])
    first, second = read_rows(metadata_lines(intake.images, captioned))
    assert (first.mask, second.mask) == ("000-mask.png", None)
    stored_mask = Image.open(io.BytesIO(running_store.store.output.get(keys.image_named("000-mask.png"))))
    assert stored_mask.size == (first.width, first.height)
    assert stored_mask.getpixel((5, 5)) == 255
    assert stored_mask.getpixel((stored_mask.width - 5, 5)) == 0


def test_an_inspection_and_its_captions_leave_masks_out(tmp_path: Path) -> None:
    noise = Image.effect_noise((300, 300), 90)
    for name, size in (
        ("a.png", 300),
        ("a-mask.png", 300),
        ("b.png", 300),
        ("b-mask.png", 280),
        ("c-mask.png", 300),
    ):
        noise.resize((size, size)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a photo of CUS dog")
    inspection = inspect_folder(tmp_path, Training())
    assert [image.key for image in inspection.images] == ["a.png"]
    assert [item.key for item in inspection.bad] == ["b.png"]
    assert [item.key for item in inspection.ignored] == ["c-mask.png"]
    assert read_captions(tmp_path)[0] == {"a.png": "a photo of CUS dog", "b.png": ""}


def place(index: int, size: int = 512) -> Image.Image:
    """The true mask of `draw_photograph`."""
    x, y = ((1, 1), (0, 2), (2, 0), (2, 2), (0, 0))[index % 5]
    left, top = x * size // 4, y * size // 4
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse((left, top, left + size // 2, top + size // 2), fill=255)
    return mask


def overlap(mask: Image.Image, expected: Image.Image) -> float:
    """Return the intersection of two masks over their union."""
    one, other = (np.asarray(each) > 127 for each in (mask, expected))
    return float((one & other).sum() / (one | other).sum())


def textured(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A striped ellipse on a ground of coarse green noise."""
    noise = Image.effect_noise((size[0] // 8, size[1] // 8), 60).resize(size)
    ground = Image.merge("RGB", (Image.new("L", size, 40), noise, Image.new("L", size, 60)))
    stripes = Image.new("RGB", size, (210, 60, 40))
    draw = ImageDraw.Draw(stripes)
    for x in range(0, size[0], 24):
        draw.rectangle((x, 0, x + 10, size[1]), fill=(240, 190, 60))
    ground.paste(stripes, mask=ellipse(size, box))
    return ground


def ellipse(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


@pytest.mark.parametrize("index", range(5))
def test_a_mask_is_made_of_a_drawn_photograph(tmp_path: Path, index: int) -> None:
    with Image.open(draw_photograph(tmp_path / "a.jpg", index)) as file:
        image = file.convert("RGB")
    mask = subject_mask(image, WHOLE)
    assert (mask.size, mask.mode) == (image.size, "L")
    assert overlap(mask, place(index)) >= 0.8


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((900, 600), (240, 130, 620, 480)),
        ((600, 900), (120, 420, 480, 780)),
        ((1600, 1200), (500, 300, 1000, 900)),
        ((400, 300), (120, 60, 290, 250)),
    ],
)
def test_a_mask_is_made_of_an_object_on_a_textured_ground(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    image = textured(size, box)
    assert overlap(subject_mask(image, smart_square(image)), ellipse(size, box)) >= 0.8


def test_the_same_image_gets_the_same_mask() -> None:
    image = textured((700, 500), (200, 100, 500, 400))
    first = subject_mask(image, WHOLE).tobytes()
    cv2.setRNGSeed(99)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    assert subject_mask(image, WHOLE).tobytes() == first
    cv2.setNumThreads(before)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (400, 300), "grey"),
        Image.effect_noise((400, 400), 80).convert("RGB"),
        textured((800, 800), (390, 390, 410, 410)),
    ],
    ids=["one colour", "noise", "a small subject"],
)
def test_an_image_without_a_clear_subject_gets_no_mask(image: Image.Image) -> None:
    warnings: list[str] = []
    assert make_mask(image, WHOLE, warnings) is None
    assert warnings[0].startswith("no mask was made: ")
    assert "put NAME-mask.png beside it" in warnings[0]


@pytest.mark.parametrize(("rows", "covered"), [(95, "95%"), (0, "0%"), (50, None)])
def test_a_mask_of_almost_nothing_or_everything_is_dropped(
    monkeypatch: pytest.MonkeyPatch, rows: int, covered: str | None
) -> None:
    covered_rows = np.zeros((100, 100), bool)
    covered_rows[:rows] = True
    monkeypatch.setattr(grabcut, "_separate", lambda rgb, window: covered_rows)
    warnings: list[str] = []
    mask = make_mask(Image.new("RGB", (100, 100)), WHOLE, warnings)
    if covered is None:
        assert (mask is not None, warnings) == (True, [])
        return
    assert mask is None
    assert f"GrabCut's mask covers {covered} of it" in warnings[0]


@pytest.mark.skipif(not DATA.is_dir(), reason="the photographs are not here")
def test_masks_of_real_photographs() -> None:
    for path in sorted((DATA / "dog").glob("*.jpg")):
        with Image.open(path) as file:
            image = file.convert("RGB")
        mask = np.asarray(subject_mask(image, WHOLE)) > 127
        assert mask.shape == (image.height, image.width)
        assert 0.05 < mask.mean() < 0.9
        # The dog is in the middle of each photograph.
        middle = mask[image.height // 3 : -image.height // 3, image.width // 3 : -image.width // 3]
        assert middle.mean() > mask.mean()


def test_masks_are_made_for_images_without_one_of_their_own(running_store: RunningStore, uid: str) -> None:
    prefix, bucket = f"made/{uid}/", running_store.store.input
    box = (200, 150, 500, 450)
    for name, image in (
        ("0.png", textured((700, 600), box)),
        ("0-mask.png", ellipse((700, 600), (0, 0, 100, 100))),
        ("1.png", textured((700, 600), box)),
        ("2.png", Image.new("RGB", (700, 600), "grey")),
    ):
        out = io.BytesIO()
        image.save(out, "PNG")
        bucket.put(prefix + name, out.getvalue())
    fields = {"dataset": {"prefix": prefix, "minImages": 1}, "training": {"resolution": 64}}
    spec = parse_spec(make_spec(**fields, annotation={"masks": "GrabCut"}))
    keys = JobKeys("studio", "made", uid)
    listing = list_dataset(bucket, prefix)
    intake = clean_dataset(running_store.store, keys, spec, listing)
    assert [image.mask_origin for image in intake.images] == ["Own", "GrabCut", "None"]
    assert [file.key.removeprefix(prefix) for file in intake.images[0].sources] == ["0.png", "0-mask.png"]
    assert [len(image.sources) for image in intake.images] == [2, 1, 1]
    own, made = (
        Image.open(io.BytesIO(running_store.store.output.get(keys.image_named(f"00{index}-mask.png"))))
        for index in (0, 1)
    )
    assert overlap(own, ellipse((700, 600), (0, 0, 100, 100))) > 0.9
    assert overlap(made, ellipse((700, 600), box)) >= 0.8
    assert [warning for warning in intake.images[2].warnings if "no mask was made" in warning]
    assert mask_warnings(spec, intake.images) == []
    assert "every image has a mask of its own" in mask_warnings(spec, intake.images[:1])[0]
    plain = clean_dataset(running_store.store, keys, parse_spec(make_spec(**fields)), listing)
    assert [image.mask_origin for image in plain.images] == ["Own", "None", "None"]


@pytest.mark.parametrize(
    ("box", "used"), [(None, False), ((0, 0, 9, 9), False), ((300, 300, 320, 320), True)]
)
def test_a_mask_without_a_subject_is_not_used(
    running_store: RunningStore, uid: str, tmp_path: Path, box: tuple[int, int, int, int] | None, used: bool
) -> None:
    prefix, bucket = f"black/{uid}/", running_store.store.input
    textured((700, 600), (200, 150, 500, 450)).save(tmp_path / "a.png")
    mask = ellipse((700, 600), box) if box else Image.new("L", (700, 600))
    mask.save(tmp_path / "a-mask.png")
    for path in tmp_path.glob("*.png"):
        bucket.put(prefix + path.name, path.read_bytes())
    for masks in (Masks.OWN, Masks.GRAB_CUT):
        fields = {"dataset": {"prefix": prefix, "minImages": 1}, "annotation": {"masks": str(masks)}}
        spec = parse_spec(make_spec(**fields, training={"resolution": 64}))
        keys = JobKeys("studio", "black", uid)
        [image] = clean_dataset(running_store.store, keys, spec, list_dataset(bucket, prefix)).images
        [inspected] = inspect_folder(tmp_path, spec.training, masks).images
        assert image.mask_origin == ("Own" if used else "GrabCut" if masks is Masks.GRAB_CUT else "None")
        assert (image.mask_source is not None) == used
        for warnings in (image.warnings, inspected.warnings):
            assert (
                any("its mask a-mask.png is not used: it is black" in warning for warning in warnings) != used
            )


def test_a_mask_of_an_image_that_was_cut_is_not_used(tmp_path: Path) -> None:
    Image.effect_noise((3000, 300), 80).convert("RGB").save(tmp_path / "a.png")
    Image.new("L", (3000, 300), "white").save(tmp_path / "a-mask.png")
    [image] = inspect_folder(tmp_path, Training(resolution=64)).images
    assert "its mask a-mask.png is not used: the image is too long and was cut" in image.warnings


def test_an_inspection_shows_masks(tmp_path: Path) -> None:
    textured((700, 600), (200, 150, 500, 450)).save(tmp_path / "a.png")
    Image.new("RGB", (700, 600), "grey").save(tmp_path / "b.png")
    plain = inspect_folder(tmp_path, Training()).images
    with_mask, without = inspect_folder(tmp_path, Training(), Masks.GRAB_CUT).images
    assert with_mask.tile.tobytes() != plain[0].tile.tobytes()
    assert without.tile.tobytes() == plain[1].tile.tobytes()
    assert with_mask.warnings == plain[0].warnings
    assert any("no mask was made" in warning for warning in without.warnings)
