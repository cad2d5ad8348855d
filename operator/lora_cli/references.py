"""Names of jobs on the command line: `NAME -n NAMESPACE`, or `NAMESPACE/NAME`."""

from __future__ import annotations

from dataclasses import dataclass

from lora_api.fields import is_label, is_subdomain

from .errors import UsageError


@dataclass(frozen=True)
class JobReference:
    """Name of a job. Both parts are valid Kubernetes names, so they are safe in paths and URLs."""

    name: str
    namespace: str = ""
    """Empty: the namespace of the current context."""

    @classmethod
    def parse(cls, text: str, namespace: str = "") -> JobReference:
        """Read `NAME` or `NAMESPACE/NAME`.

        Args:
            namespace: the value of `-n`.

        Raises:
            UsageError: when the text is not a valid name, or its namespace differs from that of `-n`.
        """
        before, slash, name = text.rpartition("/")
        if slash and not before:
            raise UsageError(f"name the job as NAME or NAMESPACE/NAME, not {text!r}")
        if before and namespace and before != namespace:
            raise UsageError(
                f"{text} is in namespace {before!r}, but -n names {namespace!r}: remove one of the two"
            )
        return cls(require_name(name), require_namespace(before or namespace))

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def require_name(name: str) -> str:
    """Return the name of an object, if it is valid.

    Raises:
        UsageError: when Kubernetes would not accept it.
    """
    if not is_subdomain(name):
        raise UsageError(
            f"{name!r} is not a valid name: use lower-case letters, digits, '-' and '.', "
            "beginning and ending with a letter or digit"
        )
    return name


def require_namespace(name: str) -> str:
    """Return the name of a namespace, if it is valid or empty.

    Raises:
        UsageError: when Kubernetes would not accept it.
    """
    if name and not is_label(name):
        raise UsageError(
            f"{name!r} is not a valid namespace: use at most 63 lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit"
        )
    return name
