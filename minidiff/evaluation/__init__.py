"""What the shipped models are worth, measured: the figures in their cards."""

from minidiff.evaluation.diffusion import Figure, sample_many, share, split

__all__ = ["Figure", "sample_many", "share", "split"]
