"""Files of people and answers of services: each is read or refused by a named error.

`make fuzz` runs this for an hour together with `test_fuzz`.
"""

from __future__ import annotations

import io
import json
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from lora_api import API_VERSION, KIND
from lora_api.job import Concept
from lora_api.profile import Profiles
from lora_api.status import JobStatus
from lora_cli.cluster.describe import _summary
from lora_cli.cluster.table import job_table
from lora_cli.console import JOINERS, UNSAFE_CATEGORIES, clean
from lora_cli.errors import UsageError
from lora_cli.job_file import parse_job
from lora_cli.references import JobReference
from lora_cli.store_access import read_store_address
from lora_trainer.annotate.caption_format import DeclinedError, UnusableReplyError, assemble, parse_reply
from lora_trainer.annotate.decode import decode
from lora_trainer.annotate.existing import read_existing
from lora_trainer.annotate.jpeg import read_structure
from lora_trainer.annotate.lint import check_captions
from lora_trainer.annotate.loading import BadImageError
from lora_trainer.annotate.providers.error_body import read_error
from lora_trainer.annotate.providers.errors import explain, explain_inside, pause_of
from lora_trainer.demo.approval import awaits_approval, read_resource
from lora_trainer.demo.markup import escape_markdown, sandboxed_page
from lora_trainer.store import StoredObject
from tests.fuzz.hostile import JSON, TEXTS, changed, of_model
from tests.fuzz.test_fuzz import SPEC, hostile

CONCEPT = Concept(token="CUS", class_name="statue")
DOCUMENT = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "statue"}, "spec": SPEC}
PROFILES = {
    "profiles": {
        "default": {
            "store": {"endpoint": "minio:9000"},
            "llm": {"models": ["m"], "prices": {"m": {"input": "1", "output": "2"}}},
            "models": {"sdxl": {"source": "hub", "repo": "a/b"}, "own": {"source": "store", "key": "m/"}},
        }
    }
}


def dumped(value: Any) -> str:
    """YAML of a value; JSON where YAML has no form for it."""
    try:
        return yaml.safe_dump(value, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(value)


manifests = st.one_of(
    st.text(max_size=200),
    changed(DOCUMENT).map(dumped),
    changed(DOCUMENT).map(json.dumps),
    st.text(alphabet="&*<{}[]:,-? \n\"'!|>%@`#ab0.e+_~=", max_size=60).map(lambda text: f"a: {text}"),
)


@hostile
@given(manifests, st.lists(TEXTS.map(lambda text: f"training.rank={text}"), max_size=1))
def test_a_manifest_is_a_job_or_refused(text: str, assignments: list[str]) -> None:
    with suppress(UsageError):
        parse_job(text, "job.yaml", assignments)


@hostile
@given(TEXTS, TEXTS)
def test_names_and_addresses_are_taken_or_refused(text: str, namespace: str) -> None:
    with suppress(UsageError):
        JobReference.parse(text, namespace)
    with suppress(UsageError):
        read_store_address(text, environment={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})


@hostile
@given(st.one_of(JSON, changed(PROFILES)))
def test_profiles_are_profiles_or_refused(value: Any) -> None:
    with suppress(ValidationError):
        Profiles.model_validate(value)


fields = st.sampled_from(["framing", "pose", "setting", "lighting", "other", "clothing"])
replies = st.one_of(
    st.text(max_size=300),
    st.dictionaries(fields, JSON, max_size=4).map(json.dumps),
    st.dictionaries(fields, st.text(max_size=80), max_size=4).map(
        lambda v: f"<think>x</think>```{json.dumps(v)}"
    ),
    st.text(alphabet='{}[]":,\\<>/think `', max_size=120),
)


@hostile
@given(replies)
def test_a_reply_is_a_caption_or_refused(text: str) -> None:
    with suppress(DeclinedError, UnusableReplyError):
        caption = assemble(parse_reply(text, CONCEPT), CONCEPT)
        assert caption.startswith("a photo of CUS statue")
        assert all(character.isprintable() for character in caption)


@hostile
@given(
    st.one_of(st.text(max_size=200), JSON.map(json.dumps)),
    st.sampled_from([200, 400, 401, 404, 429, 500]),
    TEXTS,
)
def test_an_error_of_a_service_is_explained(body: str, status: int, header: str) -> None:
    error = read_error(body)
    with suppress(UnicodeEncodeError):
        response = httpx2.Response(
            status, headers={"retry-after": header}, request=httpx2.Request("POST", "http://llm/v1/messages")
        )
        assert isinstance(explain(status, error, response, "m"), Exception)
        assert isinstance(explain_inside(error, response, "m"), Exception)
        pause = pause_of(response)
        assert pause is None or pause >= 0


class Folder:
    """A bucket with one caption file beside two images."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get(self, key: str) -> bytes:
        return self.data


@hostile
@given(
    st.sampled_from(["p/metadata.jsonl", "p/metadata.csv", "p/a.txt", "p/b.caption"]),
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")),
        st.lists(JSON.map(json.dumps), max_size=4).map(lambda lines: "\n".join(lines).encode()),
        st.lists(st.lists(st.sampled_from(["file_name", "text", "a.png", '"', "=1+1", "b"])), max_size=5).map(
            lambda rows: "\n".join(",".join(row) for row in rows).encode()
        ),
    ),
)
def test_caption_files_are_read_or_warned_of(key: str, data: bytes) -> None:
    folder: Any = Folder(data)
    found = read_existing(folder, "p/", [StoredObject(key, len(data), "")], ["p/a.png", "p/b.png"])
    assert set(found.captions) <= {"p/a.png", "p/b.png"}
    for caption in found.captions.values():
        assert all(character.isprintable() for character in caption)
    check_captions(found.captions, "CUS", "statue")


def encoded(image_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((300, 260)).save(out, image_format, **options)
    return out.getvalue()


IMAGES = [
    encoded("JPEG", quality=30),
    encoded("JPEG", quality=30, progressive=True),
    encoded("PNG"),
    encoded("WEBP", quality=30),
    encoded("GIF"),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("BMP"),
    encoded("AVIF", quality=30),
]


@hostile
@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_decoded_or_refused(image: bytes, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(image)
    for place, new in changes:
        # most of a header is in the first bytes
        at = int(place**3 * (len(data) - 1))
        data[at : at + len(new)] = new
    with suppress(BadImageError):
        clean_image = decode(bytes(data))
        assert clean_image.image.mode == "RGB"
    read_structure(bytes(data))


@hostile
@given(st.one_of(of_model(JobStatus), JSON), TEXTS)
def test_a_status_of_any_content_is_printed(status: Any, text: str) -> None:
    metadata = {"namespace": "studio", "name": "statue", "creationTimestamp": "2026-01-01T00:00:00Z"}
    resource = {"metadata": metadata, "spec": {"concept": {"token": text}}, "status": status}
    screen = Console(width=200, force_terminal=False, markup=False, emoji=False, file=io.StringIO())
    with screen.capture() as captured:
        screen.print(job_table([resource], True, datetime.now(UTC)))
    printed = captured.get() + "".join(clean(value) for _, value in _summary(resource))
    assert not {unicodedata.category(c) for c in printed if c != "\n"} & UNSAFE_CATEGORIES - {"Cf"}
    assert {c for c in printed if unicodedata.category(c) == "Cf"} <= set(JOINERS)


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


@hostile
@given(st.text(max_size=100), st.text(alphabet="<>\"'=/& srcdocifame", max_size=60))
def test_a_framed_page_has_no_tags_of_its_own(html: str, title: str) -> None:
    tags = Tags()
    tags.feed(sandboxed_page(f"{html}{title}", title))
    assert tags.found == ["meta", "meta", "style", "iframe"]
    assert "\n" not in escape_markdown(html)


@hostile
@given(st.one_of(st.text(max_size=100), JSON.map(dumped)))
def test_a_status_file_is_a_resource_or_none(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = Path(tmp_path_factory.getbasetemp()) / "status.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    resource = read_resource(file)
    if resource is not None:
        awaits_approval(resource)
