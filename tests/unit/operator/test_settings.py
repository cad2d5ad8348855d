"""Settings: what is missing is named, and an edited profiles file takes effect without a restart."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lora_operator.settings import ProfilesFile, SettingsError, read_profiles, read_settings

IMAGES = {"LORA_ANNOTATE_IMAGE": "a:1", "LORA_TRAIN_IMAGE": "t:1"}
PROFILES = "profiles:\n  {name}:\n    store: {{endpoint: 'minio:9000'}}\n    models: {{}}\n"


def test_settings_from_the_environment() -> None:
    settings = read_settings(IMAGES | {"LORA_WATCH_NAMESPACES": "a, b", "LORA_IMAGE_PULL_SECRETS": "pull"})
    assert settings.namespaces == ("a", "b")
    assert settings.images.pull_secrets == ("pull",)
    assert settings.port == 8080


@pytest.mark.parametrize(
    ("environment", "words"), [({}, "LORA_ANNOTATE_IMAGE"), (IMAGES | {"LORA_PORT": "http"}, "LORA_PORT")]
)
def test_a_setting_that_is_missing_or_wrong_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_settings(environment)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profiles: {a: {store: {endpoint: x}, models: {}, secret: y}}", r"profiles\.a\.secret"),
        ("profiles: [", "not valid YAML"),
        ("", "profiles file"),
    ],
)
def test_a_profiles_file_that_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words):
        read_profiles(path)
    with pytest.raises(SettingsError, match="cannot read"):
        read_profiles(tmp_path / "nowhere.yaml")


def exchange(path: Path, text: str) -> None:
    """The kubelet does the same: it replaces the old file by a new one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def test_an_edited_profiles_file_is_read_again_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(PROFILES.format(name="one"))
    file = ProfilesFile(path)
    assert list(file.current()) == ["one"]
    exchange(path, PROFILES.format(name="two"))
    assert list(file.current()) == ["two"]
    with caplog.at_level(logging.ERROR):
        exchange(path, "profiles: 7")
        assert list(file.current()) == ["two"]
        assert list(file.current()) == ["two"]
    assert len(caplog.records) == 1
    exchange(path, PROFILES.format(name="three"))
    assert list(file.current()) == ["three"]
