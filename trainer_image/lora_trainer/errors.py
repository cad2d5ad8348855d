"""How a step fails: each error knows its exit code and the reason that the job's status will show.

StepError
├── BadConfigurationError    64  the step file or a setting in it
├── BadDataError             65  images or captions that cannot be used
├── NoInputError             66  nothing there to work on
├── UnavailableError         69  a service that may be back soon (retried)
├── InterruptedStepError     75  told to stop; work is saved (retried, not charged)
├── RefusedCredentialsError  77  a key that the service does not accept
└── BadSetupError            78  a missing bucket, a full disk, a budget: something around the job
"""

from __future__ import annotations

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_api.status import DatasetStatus


class StepError(Exception):
    """A failure in plain words. The message says what is wrong and what to change."""

    exit_code = ExitCode.INTERNAL
    default_reason = Reason.INTERNAL_ERROR

    def __init__(
        self, message: str, reason: Reason | None = None, dataset: DatasetStatus | None = None
    ) -> None:
        """
        Args:
            dataset: the outcome of the images, where they are what is wrong.
        """
        super().__init__(message)
        self.reason = reason or self.default_reason
        self.dataset = dataset


class BadConfigurationError(StepError):
    exit_code = ExitCode.BAD_CONFIGURATION
    default_reason = Reason.CONFIGURATION_INVALID


class BadDataError(StepError):
    exit_code = ExitCode.BAD_DATA
    default_reason = Reason.DATASET_INVALID


class NoInputError(StepError):
    exit_code = ExitCode.NO_INPUT
    default_reason = Reason.DATASET_INVALID


class UnavailableError(StepError):
    exit_code = ExitCode.UNAVAILABLE
    default_reason = Reason.STORE_UNAVAILABLE


class InterruptedStepError(StepError):
    exit_code = ExitCode.INTERRUPTED
    default_reason = Reason.INTERRUPTED


class RefusedCredentialsError(StepError):
    exit_code = ExitCode.REFUSED_CREDENTIALS
    default_reason = Reason.CREDENTIALS_REFUSED


class BadSetupError(StepError):
    exit_code = ExitCode.BAD_SETUP
    default_reason = Reason.CONFIGURATION_INVALID
