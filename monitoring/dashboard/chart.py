"""Line charts as plain geometry: points and ticks in the units of an SVG view box, drawn by the template.

It knows numbers and no colours, no markup and no meaning: the page can be escaped as a whole because nothing here makes
a tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 420.0, 140.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 8.0, 18.0
MOST_TICKS = 6
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One series. `kind` is a class of the style sheet; `runs` are the unbroken stretches as `points` of a polyline,
    and `dot` its newest point."""

    name: str
    kind: str
    runs: tuple[str, ...]
    dot: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line at `y` with its label; a limit has a `kind` and is drawn dashed."""

    y: float
    label: str
    kind: str = "grid"


@dataclass(frozen=True, slots=True)
class Chart:
    """`first` and `last` label the ends of the x axis; `about` is the chart in words, for those who do not see it."""

    lines: tuple[Line, ...]
    ticks: tuple[Tick, ...]
    first: str
    last: str
    about: str
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    floor: float = HEIGHT - BOTTOM


def line_chart(
    series: Sequence[tuple[str, str, Values]],
    *,
    first: str,
    last: str,
    about: str,
    limits: Sequence[tuple[str, float]] = (),
    least: float | None = None,
    powers: bool = False,
) -> Chart | None:
    """A chart of (name, kind, values) over equally spaced places, None where there are not two values to draw.

    None or a value that is not finite is a gap. `limits` are (kind, height) lines; the axis reaches down to `least`.
    With `powers` the values are log10 and ticks are labelled with the power itself."""
    finite = [v for _, _, values in series for v in values if v is not None and isfinite(v)]
    if len(finite) < 2:
        return None
    held = [*finite, *(height for _, height in limits), *([] if least is None else [least])]
    bottom, top = _apart(min(held), max(held))
    marks, digits = _powers(bottom, top) if powers else _round_steps(bottom, top)
    pad = (max(top, marks[-1]) - min(bottom, marks[0])) * 0.04
    low, high = min(bottom, marks[0]) - pad, max(top, marks[-1]) + pad
    places = max(max(len(values) for _, _, values in series) - 1, 1)

    def x(place: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * place / places, 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)

    label = _power_label if powers else f"{{:.{digits}f}}".format
    ticks = [Tick(y(mark), label(mark)) for mark in marks]
    ticks += [Tick(y(value), "", kind) for kind, value in limits]
    lines = []
    for name, kind, values in series:
        points = [(x(k), None if v is None or not isfinite(v) else y(v)) for k, v in enumerate(values)]
        lines.append(Line(name, kind, *_drawn(points)))
    return Chart(tuple(lines), tuple(ticks), first, last, about)


def _drawn(points: list[tuple[float, float | None]]) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    runs: list[list[str]] = [[]]
    dot = None
    for px, py in points:
        if py is None:
            runs.append([])
        else:
            runs[-1].append(f"{px:g},{py:g}")
            dot = (px, py)
    return tuple(" ".join(run) for run in runs if len(run) > 1), dot


def _powers(bottom: float, top: float) -> tuple[list[float], int]:
    first, last = floor(bottom), ceil(top)
    step = ceil((last - first) / MOST_TICKS) or 1
    return [float(k) for k in range(first, last + 1, step)], 0


def _power_label(power: float) -> str:
    if power < 0:
        return f"{10**power:.{int(-power)}f}" if power >= -3 else f"1e{power:.0f}"
    return f"{10**power:,.0f}" if power < 5 else f"1e{power:.0f}"


def _apart(bottom: float, top: float) -> tuple[float, float]:
    """A flat line gets room: a twentieth of its height above and below it."""
    if top - bottom > 1e-9 * max(abs(top), abs(bottom), 1e-9):
        return bottom, top
    room = abs(top) / 20 or 1.0
    return bottom - room, top + room


def _round_steps(bottom: float, top: float) -> tuple[list[float], int]:
    """Ticks at 1, 2 or 5 times a power of ten, inside the range, and how many digits their labels need."""
    raw = (top - bottom) / (MOST_TICKS - 1)
    power = 10.0 ** floor(log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw)
    first = ceil(bottom / step - 1e-9)
    return [k * step for k in range(first, floor(top / step + 1e-9) + 1)], max(0, -floor(log10(step) + 1e-9))
