"""The report of a training: one HTML file that shows what went in, what happened and what came out."""

from .facts import Facts, Timing
from .page import render
from .pictures import Shown, show

__all__ = ["Facts", "Shown", "Timing", "render", "show"]
