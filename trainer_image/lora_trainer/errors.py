"""Errors of a stage. Each has an exit code and a reason for the status of the LoraTrainingJob.

StageError
├── BadConfigurationError    64  the configuration file or a setting in it
├── BadDataError             65  images or captions that cannot be used
├── NoInputError             66  no input
├── UnavailableError         69  a service is temporarily unavailable (retried)
├── InterruptedStageError    75  interrupted after saving (retried, not counted by backoffLimit)
├── RefusedCredentialsError  77  credentials that a service refused
└── BadSetupError            78  the environment: a missing bucket, a full disk, an exhausted budget
"""

from __future__ import annotations

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_api.status import DatasetStatus


class StageError(Exception):
    """A failed stage. The message names the problem and what to change."""

    exit_code = ExitCode.INTERNAL
    default_reason = Reason.INTERNAL_ERROR

    def __init__(
        self, message: str, reason: Reason | None = None, dataset: DatasetStatus | None = None
    ) -> None:
        """
        Args:
            reason: the reason for the job's status; None for that of the class.
            dataset: the status of the dataset, if its images are the cause.
        """
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.dataset = dataset


class BadConfigurationError(StageError):
    exit_code = ExitCode.BAD_CONFIGURATION
    default_reason = Reason.CONFIGURATION_INVALID


class BadDataError(StageError):
    exit_code = ExitCode.BAD_DATA
    default_reason = Reason.DATASET_INVALID


class NoInputError(StageError):
    exit_code = ExitCode.NO_INPUT
    default_reason = Reason.DATASET_INVALID


class UnavailableError(StageError):
    exit_code = ExitCode.UNAVAILABLE
    default_reason = Reason.STORE_UNAVAILABLE


class InterruptedStageError(StageError):
    exit_code = ExitCode.INTERRUPTED
    default_reason = Reason.INTERRUPTED


class RefusedCredentialsError(StageError):
    exit_code = ExitCode.REFUSED_CREDENTIALS
    default_reason = Reason.CREDENTIALS_REFUSED


class BadSetupError(StageError):
    exit_code = ExitCode.BAD_SETUP
    default_reason = Reason.CONFIGURATION_INVALID
