"""Editing without training: a paper a file, each composed of a denoiser, a step, a path, an edit.

Every method is a function of a denoiser and images (B,3,H,W) in [-1, 1]; masks are (B or 1,1,H,W),
1 = keep. Image i of a seed is the same whatever the batch. `masks` and `strokes` make inputs.
"""

from minidiff.editing.attention import WordMaps
from minidiff.editing.blended import background_loss, blended, in_place, rank
from minidiff.editing.clip_guidance import clip_guided, clip_score, cutouts, spherical_distance
from minidiff.editing.diffedit import cut, diffedit, difference, edit_mask
from minidiff.editing.ilvr import ilvr, low_pass
from minidiff.editing.interpolation import interpolate, slerp
from minidiff.editing.prompt_to_prompt import (
    injection,
    local_blend,
    prompt_to_prompt,
    refine,
    replace,
    reweight,
)
from minidiff.editing.repaint import repaint
from minidiff.editing.sdedit import sdedit

__all__ = [
    "WordMaps",
    "background_loss",
    "blended",
    "in_place",
    "clip_guided",
    "clip_score",
    "cut",
    "cutouts",
    "diffedit",
    "difference",
    "edit_mask",
    "ilvr",
    "injection",
    "interpolate",
    "local_blend",
    "low_pass",
    "prompt_to_prompt",
    "rank",
    "refine",
    "repaint",
    "replace",
    "reweight",
    "sdedit",
    "slerp",
    "spherical_distance",
]
