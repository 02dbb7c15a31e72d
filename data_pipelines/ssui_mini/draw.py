"""The pictures of SSUI-mini: `draw_scene` makes one of the 27 scenes, never twice the same.

They are drawn here from simple shapes, without fonts and without text. A seed changes size and
shape of the picture, position and scale of the subject, mirror side, time of day, colours and small
extras.
"""

from __future__ import annotations

import random

from PIL import Image

from srpo_jax.data_pipelines.ssui_mini.canvas import Canvas
from srpo_jax.data_pipelines.ssui_mini.draw_places import PLACES
from srpo_jax.data_pipelines.ssui_mini.draw_things import THINGS

_DRAW = {**PLACES, **THINGS}


def draw_scene(scene_id: str, seed: str) -> Image.Image:
    """The RGB picture of a scene, one of canvas.SIZES. Equal arguments give equal pixels."""
    canvas = Canvas(random.Random(f"{scene_id}/{seed}"))  # text seeds are stable across runs
    _DRAW[scene_id](canvas)
    return canvas.finish()
