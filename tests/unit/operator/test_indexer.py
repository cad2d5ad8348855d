"""Watches and lists overtake one another; what is newer stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from lora_operator import names
from lora_operator.indexer import Cache, Indexer, Page
from tests.support.raw_children import raw_job


def thing(name: str, version: int, owner: str = "u") -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "resourceVersion": str(version)}, "owner": owner}


def seen(body: Any) -> str:
    metadata = body["metadata"]
    return f"{metadata['name']}@{metadata['resourceVersion']}"


def indexer(*bodies: dict[str, Any]) -> Indexer[str]:
    made = Indexer(seen, lambda body: body["owner"])
    for body in bodies:
        made.update(body)
    return made


def replace(
    which: Indexer[str], version: int, *pages: list[dict[str, Any]], owner: str | None = None
) -> None:
    async def listed() -> AsyncIterator[Page]:
        for page in pages:
            yield page, version  # type: ignore[misc]

    asyncio.run(which.replace(listed(), owner))


def test_the_newer_of_two_stays_whichever_comes_first() -> None:
    found = indexer(thing("a", 5))
    assert not found.update(thing("a", 4))
    assert not found.update(thing("a", 5))
    assert list(found) == ["a@5"]
    assert found.update(thing("a", 6, owner="v"))
    assert (found.by_owner("u"), found.by_owner("v")) == ([], ["a@6"])


def test_what_says_nothing_new_is_no_news_and_makes_the_old_older() -> None:
    found = Indexer(lambda body: body["said"], lambda body: body["owner"])
    assert found.update(thing("a", 1) | {"said": "x"})
    assert not found.update(thing("a", 5) | {"said": "x"})
    assert not found.update(thing("a", 4) | {"said": "y"})
    assert found.update(thing("a", 6) | {"said": "y"})


def test_what_a_watch_missed_a_list_brings() -> None:
    found = indexer(thing("a", 1), thing("b", 2))
    replace(found, 9, [thing("a", 7)], [thing("c", 8)])
    assert sorted(found) == ["a@7", "c@8"]


def test_a_list_does_not_undo_what_came_after_it() -> None:
    found = indexer(thing("new", 12), thing("deleted", 3))
    found.delete(thing("deleted", 11))
    replace(found, 10, [thing("deleted", 3)])
    assert list(found) == ["new@12"]


def test_a_late_deletion_leaves_what_was_made_anew() -> None:
    found = indexer(thing("a", 9))
    found.delete(thing("a", 8))
    assert list(found) == ["a@9"]
    found.delete(thing("a", 10))
    assert list(found) == []
    assert not found.update(thing("a", 9))
    assert found.update(thing("a", 11))


def test_what_turned_out_to_be_gone_does_not_come_back_with_an_old_event() -> None:
    found = indexer(thing("a", 5))
    found.forget(("n", "a"))
    assert list(found) == []
    assert not found.update(thing("a", 5))
    assert found.update(thing("a", 7)), "another one of this name"


def test_what_a_list_does_not_know_does_not_come_back_with_an_event_from_before_it() -> None:
    found = indexer(thing("a", 5), thing("b", 6, owner="v"))
    replace(found, 9, [], owner="u")
    assert not found.update(thing("a", 8)), "gone by a list of its owner's"
    replace(found, 12, [thing("c", 3)])
    assert list(found) == ["c@3"], "what a list names is there, however old"
    for name, version in (("a", 8), ("b", 7), ("never-seen", 11)):
        assert not found.update(thing(name, version))
    assert found.update(thing("b", 13)), "another one of this name"


def test_lists_of_several_namespaces_are_as_old_as_the_oldest() -> None:
    found = indexer(thing("a", 5), thing("made-between", 10))

    async def listed() -> AsyncIterator[Page]:
        yield [thing("a", 5)], 9
        yield [], 12

    asyncio.run(found.replace(listed()))
    assert sorted(found) == ["a@5", "made-between@10"]
    assert found.update(thing("told-late", 11))


def test_anyone_may_borrow_our_labels() -> None:
    cache = Cache()
    stranger = thing("stranger", 1)
    stranger["metadata"]["labels"] = {names.JOB_UID: "u", names.STAGE: "dance"}
    assert not cache.pods.update(stranger)
    assert not cache.children.update(thing("bare", 1))
    assert (list(cache.pods), list(cache.children)) == ([], [])


def test_a_child_job_that_lost_a_label_is_reported_once() -> None:
    cache = Cache()
    body = job("statue")
    assert cache.children.update(body)
    del body["metadata"]["labels"][names.JOB_UID]
    for version, reported in (("2", True), ("3", False)):
        body["metadata"]["resourceVersion"] = version
        assert cache.children.update(body) is reported
        assert not list(cache.children)


def test_a_list_of_ones_own_leaves_the_others() -> None:
    found = indexer(thing("a", 1), thing("b", 2, owner="v"))
    replace(found, 9, [], owner="u")
    assert list(found) == ["b@2"]


def resource(name: str, phase: str, **policy: Any) -> dict[str, Any]:
    metadata = {"namespace": "n", "name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, "spec": {"runPolicy": policy}, "status": {"phase": phase}}


def job(owner: str, *conditions: str) -> dict[str, Any]:
    status = {"conditions": [{"type": kind, "status": "True"} for kind in conditions]}
    return raw_job("n", owner, owner, status=status)


def test_an_end_leaves_nothing_to_do_but_for_what_still_runs_or_must_go() -> None:
    cache = Cache()
    cache.resources.update(resource("over", "Succeeded"))
    cache.children.update(job("over", "Complete"))
    cache.resources.update(resource("has-ttl", "Succeeded", ttlSecondsAfterFinished=60))
    cache.resources.update(resource("killed-before-its-training-was-stopped", "Failed"))
    cache.children.update(job("killed-before-its-training-was-stopped"))
    cache.resources.update(resource("at-work", "Training"))
    found = [item.name for item in cache.pending()]
    assert found == ["has-ttl", "killed-before-its-training-was-stopped", "at-work"]
