"""A profiles file on the command line: each wrong field is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_cli.errors import UsageError
from lora_cli.profiles import read_profile, read_profiles
from tests.support.quickstart import QUICKSTART

STORE = "    store: {endpoint: 'minio:9000'}\n"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["1: holds no profiles"]),
        ("profiles: [", ["1: is not valid YAML"]),
        ("profiles: {}\n---\nprofiles: {}\n", ["3: a profiles file has one document"]),
        ("profile: {}\n", ["1: profiles: is missing", "1: profile: is not a field; did you mean profiles?"]),
        (
            "profiles:\n  default:\n    storage: {endpoint: x}\n    lm: null\n",
            [
                "2: profiles.default.store: is missing",
                "2: profiles.default.models: is missing",
                "3: profiles.default.storage: is not a field; did you mean store?",
                "4: profiles.default.lm: is not a field; did you mean llm?",
            ],
        ),
        (
            f"profiles:\n  a:\n{STORE}    models:\n      one: {{source: hub, rpo: x/y}}\n      two: {{source: hb}}\n"
            "      three: {key: z}\n",
            [
                "5: profiles.a.models.one.repo: is missing",
                "5: profiles.a.models.one.rpo: is not a field; did you mean repo?",
                '6: profiles.a.models.two: source is "hb"; it must be one of hub, store',
                "7: profiles.a.models.three: lacks the field source",
            ],
        ),
        (
            "profiles:\n  a:\n    store: {endpoint: 3}\n    models: {}\n",
            ["3: profiles.a.store.endpoint: is 3; it must be text; put it in quotes"],
        ),
    ],
)
def test_each_wrong_field_is_named_with_its_line(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_profiles(path)
    lines = str(error.value).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"{path}:{message}")


def test_a_profile_that_the_file_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no profile 'large'; it has: default"):
        read_profile(QUICKSTART / "profiles.yaml", "large")
    with pytest.raises(UsageError, match=r"cannot read .*nowhere"):
        read_profile(tmp_path / "nowhere.yaml", "default")
