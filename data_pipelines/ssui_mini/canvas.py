"""A small drawing surface for the SSUI-mini pictures, over PIL's primitives.

Shapes are given in a square frame of 0..100 by 0..100 (y down) that sits, with jitter, in the
middle of the picture; backgrounds fill the whole picture. Everything is drawn four times larger
and scaled down, which smooths the edges. Colours are (r, g, b) in 0..255.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw, ImageOps

SIZES = ((112, 112), (112, 84), (84, 112))  # width, height: multiples of 28 (14 px patches, 2 x 2)
_ZOOM = 4
INK = (45, 40, 50)  # outlines

Color = tuple[int, int, int]

# (top, bottom) of the sky by time of day, and the tint that the light gives to all colours.
DAYLIGHT = (
    ((110, 185, 245), (205, 232, 250), None),  # noon
    ((160, 205, 240), (250, 240, 215), (255, 225, 170)),  # morning
    ((125, 150, 215), (250, 190, 150), (255, 170, 120)),  # evening
    ((165, 180, 195), (215, 222, 228), (150, 165, 185)),  # cloudy
)


class Canvas:
    """One picture being drawn. Every random choice comes from `rng`."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.size = rng.choice(SIZES)
        width, height = (side * _ZOOM for side in self.size)
        side = min(width, height) * rng.uniform(0.84, 1.0)
        self._unit = side / 100
        self._left = (width - side) / 2 + width * rng.uniform(-0.04, 0.04)
        self._top = (height - side) / 2 + height * rng.uniform(-0.03, 0.03)
        self._mirror = rng.random() < 0.5
        self._sky = rng.choice(DAYLIGHT)
        self._image = Image.new("RGB", (width, height))
        self._draw = ImageDraw.Draw(self._image)

    # -- colours --------------------------------------------------------------------------------
    def pick(self, *colors: Color) -> Color:
        """One of `colors`, slightly changed."""
        return self.near(self.rng.choice(colors))

    def near(self, color: Color, amount: int = 10) -> Color:
        """`color` a little brighter or darker, warmer or cooler."""
        light, warm = self.rng.randint(-amount, amount), self.rng.randint(-amount // 2, amount // 2)
        r, g, b = (max(0, min(255, c + light + w)) for c, w in zip(color, (warm, 0, -warm)))
        return r, g, b

    # -- backgrounds ----------------------------------------------------------------------------
    def gradient(self, top: Color, bottom: Color) -> None:
        """Fill the whole picture from top to bottom."""
        width, height = self._image.size
        for y in range(0, height, _ZOOM):
            t = y / (height - _ZOOM)
            color = tuple(round(a + (b - a) * t) for a, b in zip(top, bottom))
            self._draw.rectangle((0, y, width, y + _ZOOM - 1), fill=color)

    def sky(self, *, extras: bool = True) -> None:
        """The sky at this picture's time of day, perhaps with a sun or a cloud in a corner."""
        self.gradient(*self._sky[:2])
        if not extras:
            return
        x, y = self.rng.choice((6, 94)) + self.rng.uniform(-5, 5), self.rng.uniform(6, 14)
        kind = self.rng.randrange(3)
        if kind == 0:
            self.oval(x, y, 7, 7, (255, 225, 110))
        elif kind == 1:
            for dx, dy, r in ((-7, 2, 5), (0, 0, 7), (8, 2, 5)):
                self.oval(x + dx, y + dy, r + 2, r, (248, 250, 252))

    def ground(self, y: float, color: Color) -> None:
        """Fill everything below frame height y."""
        width, height = self._image.size
        self._draw.rectangle((0, self._xy(0, y)[1], width, height), fill=color)

    def tiles(self, color: Color, joint: Color, step: float) -> None:
        """Fill the whole picture with a tiled wall."""
        self.gradient(color, color)
        for i in range(-4, int(140 / step) + 4):
            self.line([(-40, i * step), (140, i * step)], joint, 1)
            self.line([(i * step, -40), (i * step, 140)], joint, 1)

    # -- shapes, in frame units -----------------------------------------------------------------
    def _xy(self, x: float, y: float) -> tuple[float, float]:
        return self._left + x * self._unit, self._top + y * self._unit

    def _box(self, x0, y0, x1, y1):
        return (*self._xy(x0, y0), *self._xy(x1, y1))

    def _width(self, width: float) -> int:
        return max(1, round(width * self._unit))

    def poly(self, points, color: Color, edge: Color | None = None, width: float = 2) -> None:
        self._draw.polygon([self._xy(*p) for p in points], fill=color)
        if edge:
            self.line([*points, points[0], points[1]], edge, width)

    def rect(
        self,
        x0,
        y0,
        x1,
        y1,
        color: Color,
        edge: Color | None = None,
        width: float = 2,
        radius: float = 0,
    ) -> None:
        self._draw.rounded_rectangle(
            self._box(x0, y0, x1, y1),
            radius * self._unit,
            fill=color,
            outline=edge,
            width=self._width(width) if edge else 1,
        )

    def oval(
        self, cx, cy, rx, ry, color: Color | None, edge: Color | None = None, width: float = 2
    ) -> None:
        self._draw.ellipse(
            self._box(cx - rx, cy - ry, cx + rx, cy + ry),
            fill=color,
            outline=edge,
            width=self._width(width) if edge else 1,
        )

    def half(self, cx, cy, rx, ry, color: Color, start: int = 180, end: int = 360) -> None:
        """A part of an oval, between two angles in degrees (clockwise from the right)."""
        self._draw.pieslice(self._box(cx - rx, cy - ry, cx + rx, cy + ry), start, end, fill=color)

    def arc(self, cx, cy, rx, ry, start, end, color: Color, width: float = 2) -> None:
        self._draw.arc(
            self._box(cx - rx, cy - ry, cx + rx, cy + ry),
            start,
            end,
            fill=color,
            width=self._width(width),
        )

    def line(self, points, color: Color, width: float = 2) -> None:
        self._draw.line(
            [self._xy(*p) for p in points], fill=color, width=self._width(width), joint="curve"
        )

    # -- the end --------------------------------------------------------------------------------
    def finish(self) -> Image.Image:
        """The picture, RGB, at its final size."""
        image = self._image.reduce(_ZOOM)
        if self._sky[2]:
            image = Image.blend(image, Image.new("RGB", image.size, self._sky[2]), 0.12)
        return ImageOps.mirror(image) if self._mirror else image
