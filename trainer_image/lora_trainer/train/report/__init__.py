"""The report of a training: one HTML file with its inputs, progress and results."""

from .images import TrainingImage, describe_image
from .page import render
from .report_data import ReportData, Timing

__all__ = ["ReportData", "Timing", "TrainingImage", "describe_image", "render"]
