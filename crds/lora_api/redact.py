"""Removal of secrets from texts that leave a process: log lines, results, status messages and Events.

A process registers the secrets that it reads. Every message for people (`fields.Clipped`) and every log line
(`log_lines.RedactingFormatter`) passes through `redact`. It also recognizes common forms of credentials, because a process
such as the operator handles messages about secrets that it does not hold.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

MASK = "[redacted]"
MIN_LENGTH = 6
"""Length from which a secret is redacted, in characters. Shorter ones would match parts of ordinary words."""

_START = r"(?i)(?<![A-Za-z0-9])"
_PATTERNS = [
    # schemes of the Authorization header
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    (
        re.compile(_START + r"(x-api-key|api[-_]?key|authorization)(\"?\s*[:=]\s*\"?)[A-Za-z0-9._~+/=-]{8,}"),
        rf"\1\2{MASK}",
    ),
    (
        re.compile(
            _START + r"(passw(?:or)?d|(?:client|shared)[-_]?secret|secret[-_]?(?:access[-_]?)?key"
            r"|(?:access|refresh|id|session)[-_]?token|(?:account|shared[-_]?access)[-_]?key)"
            r"(\"?\s*[:=]\s*\"?)[^\s\"'&,;]{6,}"
        ),
        rf"\1\2{MASK}",
    ),
    # keys of Anthropic, OpenAI and services that follow their spelling, then of Hugging Face, GitHub, GitLab, Slack, Google
    (re.compile(r"\bsk-[A-Za-z0-9_-]{12,}"), MASK),
    (
        re.compile(r"\b(?:hf_|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AIza|whsec_)[A-Za-z0-9_+/=-]{16,}"),
        MASK,
    ),
    # a JSON web token, such as that of a service account
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), MASK),
    # AWS: identifiers of keys, and the signature of a presigned URL
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+"), rf"\1{MASK}"),
    (re.compile(r"(?i)([?&](?:signature|sig|key|token)=)[^&\s\"']+"), rf"\1{MASK}"),
    # user information of a URL
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://)[^/\s@]{1,400}@"), rf"\1{MASK}@"),
]

# Every text that a pattern matches contains one of these. Most texts have none: one search then replaces a dozen.
_TRIGGERS = re.compile(
    r"(?i)bearer|basic|key|authorization|passw|secret|token|sk-|hf_|gh[opsur]_|github_pat_|glpat-|xox|aiza|whsec_|eyJ|akia|asia|x-amz-|sig|://"
)

_ESCAPE = re.compile("%[0-9A-F]{2}")
_secrets: set[str] = set()


def register_secret(value: str) -> None:
    """Register a secret for `redact`, in each encoding in which libraries and services may print it."""
    if len(value) < MIN_LENGTH:
        return
    escaped = json.dumps(value)[1:-1]
    quoted = {quote(value, safe=""), quote(value), quote_plus(value)}
    # the hexadecimal digits of an escape may be lower-case too
    quoted |= {_ESCAPE.sub(lambda match: match[0].lower(), text) for text in quoted}
    _secrets.update({value, escaped, escaped.replace("/", "\\/"), html.escape(value)} | quoted)
    _secrets.update(_base64_forms(value.encode()))


def _base64_forms(value: bytes) -> Iterator[str]:
    """Yield what base64 makes of a value, alone and inside a longer text, with either alphabet.

    Three bytes become four characters. Inside a longer text, the first and the last characters depend on the bytes
    beside the value, so they are left out.
    """
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(value).decode()
        yield from (encoded, encoded.rstrip("="))
        for before in range(3):
            inner = encode(bytes(before) + value).decode().rstrip("=")
            inner = inner[(0, 2, 3)[before] :]
            inner = inner[:-1] if (before + len(value)) % 3 else inner
            if len(inner) >= MIN_LENGTH:
                yield inner


def redact(text: str) -> str:
    """Replace secrets in a text by a mask."""
    # the longest first: a registered secret may contain another one
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    if _TRIGGERS.search(text):
        for pattern, mask in _PATTERNS:
            text = pattern.sub(mask, text)
    return text
