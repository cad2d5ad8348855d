"""From a job and its profile to what runs: the step's file and the Job around it. Pure."""

from .job import build_job
from .step import CLUSTER, Places, build_step, command

__all__ = ["CLUSTER", "Places", "build_job", "build_step", "command"]
