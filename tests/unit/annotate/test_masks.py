"""Masks beside images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from lora_api.caption_rows import read_rows
from lora_api.job import Training, parse_spec
from lora_api.keys import JobKeys
from lora_trainer.annotate.captions import Caption, Captioned
from lora_trainer.annotate.decode import CleanImage
from lora_trainer.annotate.inspection import inspect_folder, read_captions
from lora_trainer.annotate.intake import clean_dataset
from lora_trainer.annotate.listing import list_dataset
from lora_trainer.annotate.loading import BadImageError
from lora_trainer.annotate.masks import fit_mask, mask_notes, split_masks
from lora_trainer.annotate.publish import metadata_lines
from lora_trainer.store import StoredObject
from tests.conftest import RunningStore, make_spec


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
