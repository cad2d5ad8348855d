"""Checks of the result that a stage reports.

Its pod runs in the tenant's namespace, so a result is checked before it becomes status. It is accepted if everything
that it names is in the profile's output bucket and under the prefix of the job, or of the namespace for an adapter
that is reused. Only the pod verifies the files themselves; the operator does not read the store.
"""

from __future__ import annotations

from lora_api.keys import folder_of, is_below, namespace_root, parse_manifest_key
from lora_api.stages import Outcome, StageName, StageResult
from lora_api.status import AdapterStatus

from ..snapshot import Snapshot


def is_usable(snapshot: Snapshot, stage: StageName, result: StageResult) -> bool:
    """Return whether a result of a stage that ended well has what the job needs, and all of it is the job's."""
    has_adapter, reused = result.adapter is not None, result.outcome == Outcome.REUSED
    if stage == StageName.TRAIN:
        complete = has_adapter and result.outcome == Outcome.TRAINED
    else:
        complete = result.captions is not None or (has_adapter and reused)
    return complete and not find_foreign(snapshot, result)


def find_foreign(snapshot: Snapshot, result: StageResult) -> str:
    """Describe an object in a result that is not this job's; empty if there is none."""
    if result.captions is not None and result.captions.key != snapshot.keys.captions:
        return f"captions at {result.captions.key}"
    if result.adapter is None:
        return ""
    reused = result.outcome == Outcome.REUSED
    root = namespace_root(snapshot.namespace) if reused else snapshot.keys.root
    if problem := _foreign_adapter(snapshot, result.adapter, root):
        return problem
    outside = [preview.key for preview in result.previews if not is_below(preview.key, root)]
    return f"a preview at {outside[0]}" if outside else ""


def _foreign_adapter(snapshot: Snapshot, adapter: AdapterStatus, root: str) -> str:
    """Describe an object of an adapter that is outside `root` or not beside the manifest; empty if there is none."""
    bucket, key = adapter.location
    profile = snapshot.profile
    # an accepted job continues without its profile; then there is no bucket to compare with
    if profile is not None and bucket != profile.store.output_bucket:
        return f"an adapter in the bucket {bucket} instead of the profile's outputBucket {profile.store.output_bucket}"
    if parse_manifest_key(adapter.manifest_key) is None or not is_below(adapter.manifest_key, root):
        return f"a manifest at {adapter.manifest_key}"
    folder = folder_of(adapter.manifest_key)
    for other in (key, adapter.report_key):
        if other and not is_below(other, folder):
            return f"{other}, which is not beside the manifest"
    return ""
