"""Selection of the jobs that may start under a profile's `maxRunningJobs`."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lora_operator.capacity import Candidate, admit


def job(uid: str, namespace: str = "a", running: bool = False) -> Candidate:
    return Candidate(uid, namespace, f"2026-03-01T12:00:{uid[-1]}Z", running)


def test_within_a_namespace_the_oldest_is_next() -> None:
    assert admit(2, [job("j3"), job("j1"), job("j2")]) == {"j1", "j2"}


def test_the_namespace_with_the_fewest_running_jobs_is_next() -> None:
    crowd = [job(f"a{number}", running=number < 2) for number in range(9)]
    assert admit(4, [*crowd, job("b8", "b"), job("b9", "b")]) == {"a0", "a1", "b8", "b9"}


def test_what_runs_stays_although_the_limit_was_lowered() -> None:
    assert admit(1, [job("j1"), job("j2", running=True), job("j3", running=True)]) == {"j2", "j3"}


def test_an_admitted_job_keeps_its_place_when_an_older_one_is_seen_later() -> None:
    admitted = [replace(job(uid), reserved=True) for uid in ("j2", "j3")]
    assert admit(2, [job("j1"), *admitted]) == {"j2", "j3"}
    assert admit(3, [job("j1"), *admitted]) == {"j1", "j2", "j3"}


def test_a_limit_that_was_lowered_takes_places_from_jobs_that_have_not_started() -> None:
    jobs = [job("j1", running=True), replace(job("j2"), reserved=True), replace(job("j3"), reserved=True)]
    assert admit(2, jobs) == {"j1", "j2"}
    assert admit(1, jobs) == {"j1"}


def test_a_postponed_job_gets_a_place_that_no_other_can_use() -> None:
    refused = [replace(job(uid, "a"), postponed=True) for uid in ("a1", "a2")]
    assert admit(2, [*refused, job("b3", "b")]) == {"b3", "a1"}
    assert admit(2, [*refused, job("b3", "b"), job("b4", "b")]) == {"b3", "b4"}


def test_a_postponed_job_does_not_keep_the_place_that_it_was_admitted_to() -> None:
    refused = replace(job("a1"), reserved=True, postponed=True)
    assert admit(1, [refused, job("b2", "b")]) == {"b2"}
    assert admit(1, [refused]) == {"a1"}


@given(
    limit=st.integers(1, 6),
    jobs=st.lists(
        st.builds(
            lambda postponed, *rest: replace(job(*rest), postponed=postponed),
            st.booleans(),
            st.from_regex(r"[a-z]{8}[0-9]", fullmatch=True),
            st.sampled_from("abc"),
            st.booleans(),
        ),
        unique_by=lambda candidate: candidate.uid,
        max_size=20,
    ),
)
def test_no_place_is_left_empty_and_none_is_given_twice(limit: int, jobs: list[Candidate]) -> None:
    admitted = admit(limit, jobs)
    running = {candidate.uid for candidate in jobs if candidate.running}
    assert admitted >= running
    assert len(admitted) == max(len(running), min(limit, len(jobs)))
    passed_over = [c for c in jobs if c.uid not in admitted and not c.postponed]
    assert not passed_over or not [c for c in jobs if c.uid in admitted - running and c.postponed]
