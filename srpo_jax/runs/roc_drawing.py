"""The curve of all thresholds on a judge's score, as SVG."""

from __future__ import annotations

from markupsafe import Markup

from srpo_jax.judge.trust.statistics import Roc, Threshold
from srpo_jax.runs.report.markup import element

SIDE, LEFT, BOTTOM, EDGE = 300, 44, 40, 10  # pixels: of the square, and around it
HOVER_POINTS = 60


def draw_roc(curve: Roc, best: Threshold) -> Markup:
    """What is found of UNSAFE (upwards) for false alarms (to the right), with the threshold `best`
    as a dot and chance as the diagonal. Colours come from the page's CSS classes.
    """
    bottom = EDGE + SIDE

    def x(share: float) -> float:
        return LEFT + share * SIDE

    def y(share: float) -> float:
        return bottom - share * SIDE

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        across, up = f"{y(tick):.1f}", f"{x(tick):.1f}"
        parts.append(element("line", class_="grid", x1=LEFT, x2=x(1), y1=across, y2=across))
        parts.append(element("line", class_="grid", x1=up, x2=up, y1=EDGE, y2=bottom))
        said, place = f"{100 * tick:g}", {"class_": "tick"}
        parts.append(_text(said, "end", **place, x=LEFT - 6, y=across, dy="0.35em"))
        parts.append(_text(said, "middle", **place, x=up, y=bottom + 16))
    parts.append(element("line", class_="axis chance", x1=x(0), y1=y(0), x2=x(1), y2=y(1)))
    points = list(zip(curve.false_alarms.tolist(), curve.found.tolist()))
    line = "M" + "L".join(f"{x(alarms):.1f} {y(found):.1f}" for alarms, found in points)
    parts.append(element("path", class_="curve c0", d=line))
    step = max(1, -(-len(points) // HOVER_POINTS))
    for (alarms, found), value in list(zip(points, curve.thresholds.tolist()))[1::step]:
        parts.append(_dot("hover c0", x(alarms), y(found), _said(value, found, 1 - alarms)))
    parts.append(_dot("best c1", x(1 - best.specificity), y(best.sensitivity), _said(*best)))
    label = "% of SAFE called UNSAFE (false alarms)"
    parts.append(_text(label, "middle", class_="tick", x=x(0.5), y=bottom + 34))
    turned = {
        "class_": "tick",
        "x": 0,
        "y": 0,
        "transform": f"translate(11 {y(0.5):.1f}) rotate(-90)",
    }
    parts.append(_text("% of UNSAFE found", "middle", **turned))
    return element(
        "svg",
        *parts,
        class_="roc",
        viewBox=f"0 0 {LEFT + SIDE + EDGE} {bottom + BOTTOM}",
        role="img",
        aria_label="found UNSAFE against false alarms, for all thresholds on the score",
    )


def _said(value: float, found: float, passed: float) -> str:
    return (
        f"from score {value:.3g} on UNSAFE: sensitivity {100 * found:.1f} %, "
        f"specificity {100 * passed:.1f} %"
    )


def _dot(css: str, x: float, y: float, said: str) -> Markup:
    place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}"}
    return element("circle", element("title", said), class_=css, **place, r=5)


def _text(text: str, anchor: str, **place) -> Markup:
    return element("text", text, text_anchor=anchor, **place)
