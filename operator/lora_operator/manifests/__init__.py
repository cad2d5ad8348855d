"""Pure functions that build a stage's configuration file and its child Job from a job and its profile."""

from .job import build_job, build_metadata, runs_the_same
from .stage import ALLOCATOR, CLUSTER, Places, build_stage_config, command

__all__ = [
    "ALLOCATOR",
    "CLUSTER",
    "Places",
    "build_job",
    "build_metadata",
    "build_stage_config",
    "command",
    "runs_the_same",
]
