"""What the shipped models are worth, measured: the figures in their cards."""

from minidiff.evaluation.figure import Figure, share

__all__ = ["Figure", "share"]
