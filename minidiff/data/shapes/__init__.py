"""The shapes world: small captioned pictures whose truth is known.

A `Scene` says in words what is in a picture: one thing, or two with a relation, on a background.
`render` draws scenes with signed distance fields, `caption` describes them, and the oracle
`read` finds the scene in a picture by drawing candidates and comparing, or abstains (None) when
no scene explains the picture. So the claims made about a generative model can be measured:
`grade(captions, images)` says which pictures show what their captions ask for.
"""

from minidiff.data.shapes.captions import WORDS, caption, captioned, captions, holds
from minidiff.data.shapes.drawing import render, render_things
from minidiff.data.shapes.oracle import TOLERANCE, explain, grade, read
from minidiff.data.shapes.scenes import (
    BACKGROUND_VALUES,
    BACKGROUNDS,
    COLOUR_VALUES,
    COLOURS,
    HELD_OUT,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    decode,
    encode,
    random_codes,
    random_scenes,
)

__all__ = (
    ["Scene", "Thing", "random_scenes", "random_codes", "encode", "decode"]
    + ["SHAPES", "COLOURS", "SIZES", "TEXTURES", "BACKGROUNDS", "POSITIONS", "RELATIONS"]
    + ["COLOUR_VALUES", "BACKGROUND_VALUES", "HELD_OUT"]
    + ["render", "render_things", "caption", "captions", "captioned", "holds", "WORDS"]
    + ["read", "grade", "explain", "TOLERANCE"]
)
