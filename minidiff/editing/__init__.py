"""Editing without training: a paper a file, each composed of a denoiser, a step, a path, an edit.

Every method is a function of a denoiser and images (B,3,H,W) in [-1, 1]; masks are (B or 1,1,H,W),
1 = keep. Image i of a seed is the same whatever the batch. `masks` and `strokes` make inputs.
"""

from minidiff.editing.blended import background_loss, blended, rank
from minidiff.editing.ilvr import ilvr, low_pass
from minidiff.editing.repaint import repaint
from minidiff.editing.sdedit import sdedit

__all__ = ["background_loss", "blended", "ilvr", "low_pass", "rank", "repaint", "sdedit"]
