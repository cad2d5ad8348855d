"""Choice of the decisions before which everything is read again (docs/explanation/staleness.md).

Every watch lags behind the API server by its own delay. Most decisions from outdated data are harmless, because the
status write carries a resourceVersion and is refused. A child Job that is created or deleted by mistake does harm: it
is a GPU pod too many or too few. `must_read_again` returns whether a decision could do that, and `Staleness` records
between reconciles which jobs must be read in any case.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Generic, TypeVar

from lora_api.status import Phase

from .decide import Action, Decision, DeleteChildJob, SendWebhook, StartAnnotation, StartTraining
from .snapshot import Snapshot

Key = TypeVar("Key")

SETTLE_SECONDS = 1.0
"""How long an inconsistency between the watches must last before a list checks it."""


class Staleness(Generic[Key]):
    """Record of the jobs whose cached state may not match the cluster."""

    def __init__(self) -> None:
        self._unverified: set[Key] = set()
        """Jobs whose last decision may have been carried out in part: the status does not show it yet."""
        self._inconsistent_since: dict[Key, float] = {}
        """Time on the monotonic clock since which a job's children have not matched its status."""
        self._refused: dict[Key, tuple[Action, ...]] = {}
        """The actions of each job whose child Job was refused, until it is created."""

    def is_unverified(self, key: Key) -> bool:
        return key in self._unverified

    def mark_unverified(self, keys: Iterable[Key]) -> None:
        self._unverified.update(keys)

    def mark_verified(self, key: Key) -> None:
        self._unverified.discard(key)

    def mark_refused(self, key: Key, decision: Decision) -> None:
        """Record that a decision was carried out but for its child Job, which the API server refused."""
        self._refused[key] = decision.actions

    def forget_refused(self, key: Key) -> None:
        self._refused.pop(key, None)

    def was_refused(self, key: Key, decision: Decision) -> bool:
        """Return whether a decision repeats a start that was refused.

        What had to be read was read then. A refused start is repeated for as long as a quota is exceeded, and nothing
        else starts the stage meanwhile: another replica would give the child Job the same name.
        """
        return bool(decision.actions) and self._refused.get(key) == decision.actions

    def settle_seconds(self, key: Key, snapshot: Snapshot, decision: Decision) -> float:
        """Return the seconds to wait before the decision may be carried out; 0 when it may be carried out now.

        Child Jobs and pods come from two watches, which usually agree a moment later. Waiting costs far less than
        listing the namespace.
        """
        # a deletion names the child Job's UID, so outdated data cannot make it delete another one
        only_deletes = bool(decision.actions) and all(
            isinstance(action, DeleteChildJob) for action in decision.actions
        )
        if only_deletes or not must_read_again(snapshot, decision, unverified=False):
            self._inconsistent_since.pop(key, None)
            return 0.0
        since = self._inconsistent_since.setdefault(key, monotonic())
        left = since + SETTLE_SECONDS - monotonic()
        if left > 0:
            return left
        del self._inconsistent_since[key]
        return 0.0


def must_read_again(snapshot: Snapshot, decision: Decision, unverified: bool) -> bool:
    """Return whether the child Jobs, the pods and then the resource must be read before a decision is carried out.

    Args:
        snapshot: what the decision was made from.
        decision: the decision.
        unverified: the last decision may have been carried out in part.
    """
    # for a resource that is being deleted, child Jobs are only deleted, by UID, and that is always right
    if snapshot.deleting or not _can_do_harm(snapshot, decision):
        return False
    return unverified or _depends_on_children(snapshot, decision)


def _can_do_harm(snapshot: Snapshot, decision: Decision) -> bool:
    """Whether a decision from outdated data could do more than write a status that is refused."""
    ends = decision.status.phase.terminal and not snapshot.status.phase.terminal
    # a webhook announces an end that is in the stored status already, and an end does not change
    acts = any(not isinstance(action, SendWebhook) for action in decision.actions)
    return acts or ends or bool(snapshot.orphaned_pods)


def _depends_on_children(snapshot: Snapshot, decision: Decision) -> bool:
    """Whether a child Job or a pod that no watch has reported yet could make the decision wrong.

    That is not possible when a stage starts for the first time, or when a stage's result was read.
    """
    status = snapshot.status
    first = {StartAnnotation: status.captions is None, StartTraining: status.training is None}
    starts_first = all(first.get(type(action), False) for action in decision.actions)
    return bool(snapshot.orphaned_pods) or not starts_first or decision.status.phase == Phase.FAILED
