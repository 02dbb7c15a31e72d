"""Line charts of metrics.jsonl as inline SVG: axes, few ticks, a legend, numbers on hover.

Drawn 1:1 at 360 x 210 CSS pixels, so that labels stay readable on a phone; colours come from the
page's CSS classes, so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from srpo_jax.runs.report.markup import element

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 30
SMOOTH_FROM = 40  # points; shorter curves are shown as they are
HOVER_POINTS = 60


@dataclass(frozen=True)
class Chart:
    """One chart: (metric, label) per line. top: the axis is 0 to this; 0: by the values."""

    title: str
    about: str
    lines: tuple[tuple[str, str], ...]
    top: float = 0.0
    smooth: bool = True


CHARTS = (
    Chart(
        "Loss",
        "what the optimizer minimises, and its two parts",
        (("loss", "total"), ("srpo/loss_ref", "reference"), ("srpo/loss_exp", "exploration")),
    ),
    Chart(
        "Accuracy",
        "share of pairs whose safe branch is the likelier one",
        (("rewards/accuracies", "accuracy"),),
        top=1.0,
    ),
    Chart("Margin", "safe minus unsafe branch", (("rewards/margins", "margin"),)),
    Chart(
        "Log-probability",
        "of safe and unsafe branches",
        (("logps/chosen", "safe"), ("logps/rejected", "unsafe")),
    ),
    Chart("Gradient norm", "before clipping", (("grad_norm", "norm"),)),
    Chart("Learning rate", "", (("learning_rate", "rate"),), smooth=False),
)
LOOKS = "validation/"  # metrics of held-out data, see docs/validation.md
LOOK_CHARTS = tuple(
    Chart(title, about, tuple((f"{LOOKS}{name}", label) for name, label in lines), top, False)
    for title, about, top, lines in (
        (
            "Validation loss",
            "the objective on held-out questions",
            0.0,
            (("loss", "total"), ("loss_ref", "reference"), ("loss_exp", "exploration")),
        ),
        ("Validation accuracy", "of held-out pairs", 1.0, (("accuracies", "accuracy"),)),
        ("Validation margin", "safe minus unsafe branch", 0.0, (("margins", "margin"),)),
        (
            "Validation answers",
            "percent: safe of risky questions, effective of harmless ones",
            100.0,
            (
                ("safety_rate", "safe replies"),
                ("path_safety_rate", "safe paths"),
                ("effectiveness_rate", "effective"),
            ),
        ),
        (
            "Validation answers, all",
            "percent of all questions",
            100.0,
            (
                ("both_all", "safe and effective"),
                ("readable", "format kept"),
                ("error_rate", "not judged"),
            ),
        ),
        (
            "Harmless questions",
            "perplexity of the base policy's own answers",
            0.0,
            (("benign_perplexity", "perplexity"),),
        ),
        (
            "Harmless questions, agreement",
            "share of the base policy's tokens that are still the likeliest",
            1.0,
            (("benign_agreement", "agreement"),),
        ),
    )
)
LINES = 3  # of a chart of a benchmark: as many as there are colours
# Lines that mean a verdict have its colour.
COLOURS = {"logps/chosen": "c-safe", "logps/rejected": "c-unsafe"}


def charts(rows: Sequence[Mapping]) -> list[dict[str, Any]]:
    """The charts that the metrics have numbers for: of training, of looks at held-out data, and of
    benchmarks among these. rows: lines of metrics.jsonl.

    Each is {"title", "about", "keys": [(CSS class, label, last value)], "svg"}.
    """
    drawn = []
    for chart in (*CHARTS, *LOOK_CHARTS, *_of_benchmarks(rows)):
        found = [(name, label, _points(rows, name)) for name, label in chart.lines]
        found = [line for line in found if line[2]]
        if found:
            drawn.append(_figure(chart, found))
    return drawn


def _of_benchmarks(rows: Sequence[Mapping]) -> Iterator[Chart]:
    """Of the metrics validation/BENCHMARK/RATE, few rates in a chart."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        for name in row:
            benchmark, slash, rate = name.removeprefix(LOOKS).partition("/")
            if name.startswith(LOOKS) and slash:
                found.setdefault(benchmark, {})[name] = rate.replace("_", " ")
    for benchmark, rates in found.items():
        lines = list(rates.items())
        for i in range(0, len(lines), LINES):
            about = "percent, on a sample of this test set"
            yield Chart(benchmark, about, tuple(lines[i : i + LINES]), 100.0, smooth=False)


def _points(rows: Sequence[Mapping], name: str) -> list[tuple[float, float]]:
    """(step, value) where the value is a finite number."""
    points = []
    for row in rows:
        step, value = row.get("step"), row.get(name)
        if not isinstance(step, (int, float)) or not isinstance(value, (int, float)):
            continue
        if math.isfinite(step) and math.isfinite(value):
            points.append((float(step), float(value)))
    return sorted(points)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value: float) -> str:
    """A tick in at most six characters: 0.25, 120, 1.5k, 2e-4."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running mean over a window of 1/15 of the curve, centred."""
    values = [value for _, value in points]
    result = []
    for i, (step, _) in enumerate(points):
        # Narrower towards the ends, so that a steep start is not flattened.
        half = min(len(points) // 30, max(2, min(i, len(points) - 1 - i)))
        window = values[max(0, i - half) : i + half + 1]
        result.append((step, sum(window) / len(window)))
    return result


def _figure(chart: Chart, found: list[tuple[str, str, list]]) -> dict[str, Any]:
    """A chart with its lines: (metric, label, points) each."""
    lines = [
        (COLOURS.get(name, f"c{i}"), title, points) for i, (name, title, points) in enumerate(found)
    ]
    keys = [(css, title, label(float(f"{points[-1][1]:.3g}"))) for css, title, points in lines]
    return {"title": chart.title, "about": chart.about, "keys": keys, "svg": _svg(chart, lines)}


def _svg(chart: Chart, lines: list[tuple[str, str, list]]) -> Markup:
    """lines: (CSS class, label, points)."""
    steps = [step for _, _, points in lines for step, _ in points]
    values = [value for _, _, points in lines for _, value in points]
    low, high = (0.0, chart.top) if chart.top else _range(values)
    first, last = min(steps), max(steps)
    span = (last - first) or 1.0

    def x(step: float) -> float:
        return LEFT + (step - first) / span * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = _axes(low, high, first, last, x, y)
    for css, title, points in lines:
        smooth = chart.smooth and len(points) >= SMOOTH_FROM
        if smooth:
            parts.append(element("path", class_=f"raw {css}", d=_path(points, x, y)))
        curve = _smooth(points) if smooth else points
        parts.append(element("path", class_=f"curve {css}", d=_path(curve, x, y)))
        for step, value in points[:: max(1, -(-len(points) // HOVER_POINTS))]:
            said = element("title", f"step {step:g}: {title} {value:.4g}")
            at = {"cx": f"{x(step):.1f}", "cy": f"{y(value):.1f}"}
            parts.append(element("circle", said, class_=f"hover {css}", **at, r=5))
    said = f"{chart.title} by step"
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said)


def _range(values: list[float]) -> tuple[float, float]:
    """Room above and below; from 0 where the curve comes near it."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    if 0 <= min(values) < 0.5 * max(values):
        low = 0.0
    return low, high


def _axes(low: float, high: float, first: float, last: float, x, y) -> list[Markup]:
    """x, y: from a step and a value to pixels."""
    parts = []
    for value in ticks(low, high):
        at = f"{y(value):.1f}"
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        parts.append(_tick(label(value), "end", x=LEFT - 6, y=at, dy="0.35em"))
    bottom = HEIGHT - BOTTOM
    for step in ticks(first, last, 5):
        if step == int(step):
            at = f"{x(step):.1f}"
            parts.append(element("line", class_="axis", x1=at, x2=at, y1=bottom, y2=bottom + 4))
            parts.append(_tick(f"{step:g}", "middle", x=at, y=bottom + 16))
    parts.append(element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom))
    parts.append(_tick("step", "end", x=WIDTH - RIGHT, y=HEIGHT - 2))
    return parts


def _tick(text: str, anchor: str, **place: Any) -> Markup:
    return element("text", text, class_="tick", **place, text_anchor=anchor)


def _path(points: list[tuple[float, float]], x, y) -> str:
    """The `d` of a line through the points."""
    return "M" + "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
