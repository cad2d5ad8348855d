"""Units of memory and time, as people read them."""

from __future__ import annotations

GIB = 2**30
"""Bytes of a GiB."""


def format_duration(seconds: float) -> str:
    """Format seconds for people: `2 h 5 min`, `3 min 20 s`, `4.2 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
