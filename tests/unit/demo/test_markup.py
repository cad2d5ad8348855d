"""Texts and objects of the store in the page, without a browser: `tests/integration/demo/test_hostile.py` has one."""

from __future__ import annotations

import string
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt

from lora_api.dataset import Concept
from lora_api.keys import JobKeys
from lora_api.manifest import EmbeddingsEntry, FileEntry, Manifest, sha256_hex
from lora_api.profile import HubModel
from lora_api.status import AdapterStatus
from lora_trainer.demo import jobs
from lora_trainer.demo.catalog import read_catalog, shared_token
from lora_trainer.demo.markup import escape_markdown, sandboxed_page
from lora_trainer.demo.settings import read_settings
from lora_trainer.errors import BadDataError
from lora_trainer.store import StoredObject

from .test_start import environment

KEYS = JobKeys("studio", "statue", "uid")


def manifest_of(keys: JobKeys) -> Manifest:
    file = FileEntry(key=f"{keys.attempt(1)}adapter.safetensors", bytes=1, sha256=sha256_hex(b"x"))
    adapter = AdapterStatus(
        uri=f"s3://loras/{file.key}",
        sha256=file.sha256,
        bytes=1,
        format="diffusers",
        manifest_key=keys.manifest(1),
    )
    return Manifest(
        namespace=keys.namespace, name=keys.name, uid=keys.uid, attempt=1, input_hash="", adapter=adapter,
        files=[file], steps=1, seed=0, first_loss=1, final_loss=1, versions={},
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "![x](http://evil.example/a)",
        "[x](http://evil.example)",
        "<img src=//evil.example>",
        "# x",
        "`x`",
        "**x**",
        string.punctuation,
    ],
)
def test_markdown_stays_text(text: str) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).parse(escape_markdown(text))
    [inline] = [token for token in tokens if token.type == "inline"]
    assert inline.content
    shown = "".join(child.content for child in inline.children or [])
    assert {child.type for child in inline.children or []} <= {"text", "text_special"}
    assert shown == text


def test_lines_are_joined() -> None:
    assert escape_markdown("a\n\n# b") == r"a \# b"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_report_is_in_a_frame_without_rights() -> None:
    report = "</iframe><script>x</script>\"'>"
    tags = Tags()
    tags.feed(sandboxed_page(report, '"><script>'))
    assert [tag for tag, _ in tags.found] == ["meta", "meta", "style", "iframe"]
    policy, frame = tags.found[1][1], tags.found[3][1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert (policy["content"] or "").startswith("default-src 'none';")
    assert (frame["sandbox"], frame["srcdoc"], frame["title"]) == ("", report, '"><script>')


def test_only_models_of_the_profile_are_loaded(tmp_path: Path) -> None:
    settings = read_settings(environment(tmp_path))
    assert not settings.allows(HubModel(source="hub", repo="someone/model"))
    assert not settings.allows(None)


@pytest.mark.parametrize("read_only", [False, True])
def test_the_variable_makes_the_page_read_only(tmp_path: Path, read_only: bool) -> None:
    assert read_settings(environment(tmp_path, LORA_READ_ONLY=str(read_only).lower())).read_only == read_only


def test_a_manifest_under_the_key_of_another_job_is_not_shown() -> None:
    stored = {
        KEYS.manifest(1): manifest_of(KEYS),
        JobKeys("studio", "other", "o").manifest(1): manifest_of(KEYS),
    }
    listed = SimpleNamespace(list=lambda *_: [StoredObject(key, 9, "") for key in stored])
    found = read_catalog(listed, lambda key: stored[key].model_dump_json(by_alias=True).encode())  # type: ignore[arg-type]
    assert found.adapters == [manifest_of(KEYS)]


def test_tokens_that_differ_only_in_case_are_shared() -> None:
    plain, tuned = (
        manifest_of(KEYS).model_copy(update={"concept": Concept(token=token, class_name="statue")})
        for token in ("cus", "CUS")
    )
    embeddings = EmbeddingsEntry(key=f"{KEYS.attempt(1)}embeddings.safetensors", tokens=["<s0>"])
    tuned = tuned.model_copy(update={"embeddings": embeddings})
    assert shared_token([plain, tuned]) == "CUS"
    assert shared_token([tuned]) == shared_token([plain, plain.model_copy()]) == ""


def test_a_file_that_was_changed_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    [entry] = manifest_of(KEYS).files
    content = b"x"
    bucket = SimpleNamespace(get=lambda *_: content)
    monkeypatch.setattr(jobs, "store", lambda: SimpleNamespace(output=bucket))
    assert jobs._download(entry) == b"x"
    content = b"y"
    with pytest.raises(BadDataError, match="was changed"):
        jobs._download(entry)
