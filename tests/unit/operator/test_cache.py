"""Watches and lists overtake one another; what is newer stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from lora_operator import names
from lora_operator.cache import Cache, Page, Shelf


def thing(name: str, version: int, owner: str = "u") -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "resourceVersion": str(version)}, "owner": owner}


def seen(body: Any) -> str:
    metadata = body["metadata"]
    return f"{metadata['name']}@{metadata['resourceVersion']}"


def shelf(*bodies: dict[str, Any]) -> Shelf[str]:
    made = Shelf(seen, lambda body: body["owner"])
    for body in bodies:
        made.put(body)
    return made


def mend(which: Shelf[str], version: int, *pages: list[dict[str, Any]], owner: str | None = None) -> None:
    async def listed() -> AsyncIterator[Page]:
        for page in pages:
            yield page, version  # type: ignore[misc]

    asyncio.run(which.mend(listed(), owner))


def test_the_newer_of_two_stays_whichever_comes_first() -> None:
    found = shelf(thing("a", 5))
    assert not found.put(thing("a", 4))
    assert not found.put(thing("a", 5))
    assert list(found) == ["a@5"]
    assert found.put(thing("a", 6, owner="v"))
    assert (found.of("u"), found.of("v")) == ([], ["a@6"])


def test_what_says_nothing_new_is_no_news_and_makes_the_old_older() -> None:
    found = Shelf(lambda body: body["said"], lambda body: body["owner"])
    assert found.put(thing("a", 1) | {"said": "x"})
    assert not found.put(thing("a", 5) | {"said": "x"})
    assert not found.put(thing("a", 4) | {"said": "y"})
    assert found.put(thing("a", 6) | {"said": "y"})


def test_what_a_watch_missed_a_list_brings() -> None:
    found = shelf(thing("a", 1), thing("b", 2))
    mend(found, 9, [thing("a", 7)], [thing("c", 8)])
    assert sorted(found) == ["a@7", "c@8"]


def test_a_list_does_not_undo_what_came_after_it() -> None:
    found = shelf(thing("new", 12), thing("deleted", 3))
    found.drop(thing("deleted", 11))
    mend(found, 10, [thing("deleted", 3)])
    assert list(found) == ["new@12"]


def test_a_late_deletion_leaves_what_was_made_anew() -> None:
    found = shelf(thing("a", 9))
    found.drop(thing("a", 8))
    assert list(found) == ["a@9"]
    found.drop(thing("a", 10))
    assert list(found) == []
    assert not found.put(thing("a", 9))
    assert found.put(thing("a", 11))


def test_what_turned_out_to_be_gone_does_not_come_back_with_an_old_event() -> None:
    found = shelf(thing("a", 5))
    found.lose(("n", "a"))
    assert list(found) == []
    assert not found.put(thing("a", 5))
    assert found.put(thing("a", 7)), "another one of this name"


def test_what_a_list_does_not_know_does_not_come_back_with_an_event_from_before_it() -> None:
    found = shelf(thing("a", 5), thing("b", 6, owner="v"))
    mend(found, 9, [], owner="u")
    assert not found.put(thing("a", 8)), "gone by a list of its owner's"
    mend(found, 12, [thing("c", 3)])
    assert list(found) == ["c@3"], "what a list names is there, however old"
    for name, version in (("a", 8), ("b", 7), ("never-seen", 11)):
        assert not found.put(thing(name, version))
    assert found.put(thing("b", 13)), "another one of this name"


def test_lists_of_several_namespaces_are_as_old_as_the_oldest() -> None:
    found = shelf(thing("a", 5), thing("made-between", 10))

    async def listed() -> AsyncIterator[Page]:
        yield [thing("a", 5)], 9
        yield [], 12

    asyncio.run(found.mend(listed()))
    assert sorted(found) == ["a@5", "made-between@10"]
    assert found.put(thing("told-late", 11))


def test_anyone_may_borrow_our_labels() -> None:
    cache = Cache()
    stranger = thing("stranger", 1)
    stranger["metadata"]["labels"] = {names.JOB_UID: "u", names.STEP: "dance"}
    assert not cache.pods.put(stranger)
    assert not cache.children.put(thing("bare", 1))
    assert (list(cache.pods), list(cache.children)) == ([], [])


def test_a_list_of_ones_own_leaves_the_others() -> None:
    found = shelf(thing("a", 1), thing("b", 2, owner="v"))
    mend(found, 9, [], owner="u")
    assert list(found) == ["b@2"]


def resource(name: str, phase: str, **policy: Any) -> dict[str, Any]:
    metadata = {"namespace": "n", "name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, "spec": {"runPolicy": policy}, "status": {"phase": phase}}


def job(owner: str, *conditions: str) -> dict[str, Any]:
    labels = {names.JOB_UID: owner, names.STEP: "train", names.ATTEMPT: "1"}
    metadata = thing(f"{owner}-train", 2)["metadata"]
    return {
        "metadata": metadata | {"uid": "j", "labels": labels, "creationTimestamp": "2026-03-01T12:00:00Z"},
        "spec": {},
        "status": {"conditions": [{"type": kind, "status": "True"} for kind in conditions]},
    }


def test_an_end_leaves_nothing_to_do_but_for_what_still_runs_or_must_go() -> None:
    cache = Cache()
    cache.resources.put(resource("over", "Succeeded"))
    cache.children.put(job("over", "Complete"))
    cache.resources.put(resource("mortal", "Succeeded", ttlSecondsAfterFinished=60))
    cache.resources.put(resource("killed-before-its-training-was-stopped", "Failed"))
    cache.children.put(job("killed-before-its-training-was-stopped"))
    cache.resources.put(resource("at-work", "Training"))
    found = [item.name for item in cache.unsettled()]
    assert found == ["mortal", "killed-before-its-training-was-stopped", "at-work"]
