"""The page as HTML: one template, one style sheet, no script, nothing from elsewhere.

Everything a page holds comes from outside (names, reasons, messages), so the template escapes all of it and nothing is
marked safe but our own style sheet. Numbers become text here: None and NaN are a dash, never a zero.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from math import isfinite

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from monitoring.dashboard.page import Page
from monitoring.dashboard.releases import in_step
from monitoring.dashboard.windows import topics

WINDOW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ")
ABSENT = "–"
MINUS = "−"
REFRESH_SECONDS = 5
POLICY = "default-src 'none'; style-src {style}; img-src data:; base-uri 'none'; form-action 'none'"


def render(page: Page, *, live: bool) -> str:
    """The whole document. `live`: it names the served style sheet and asks the browser to come again; else it stands
    alone, with the style inside and its own content policy."""
    css = style()
    alone = POLICY.format(style=f"'sha256-{base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}'")
    return _environment().get_template("page.html").render(
        page=page,
        live=live,
        refresh=REFRESH_SECONDS,
        css=None if live else Markup(css),  # noqa: S704 - our own file, and the one thing that is not escaped
        content_policy=None if live else alone,
    )


@lru_cache(maxsize=1)
def style() -> str:
    """The style sheet's text."""
    return (files("monitoring.dashboard") / "style.css").read_text()


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("monitoring.dashboard", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters.update(
        number=number, count=count, share=share, evidence=evidence, span=span, moment=moment, day=day, ago=ago,
        seconds=seconds, plural=plural, probability=probability,
    )  # fmt: skip
    made.globals.update(topics=topics, in_step=in_step, run=run)
    return made


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number with so many digits after the point, `sign` also where it is positive."""
    if value is None or not isfinite(value):
        return ABSENT
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", MINUS)


def count(value: int | None) -> str:
    """A whole number, thousands apart."""
    return ABSENT if value is None else f"{value:,}"


def share(value: float | None, digits: int = 1) -> str:
    """A share in per cent."""
    return ABSENT if value is None or not isfinite(value) else f"{100 * value:.{digits}f} %"


def evidence(value: float | None) -> str:
    """An e-value: three figures matter, whether it is 0.0123 or 12,300,000."""
    if value is None or not isfinite(value):
        return ABSENT
    if value >= 1e5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def probability(value: float | None) -> str:
    """A p value; what rounds to nothing is `< 0.0001`."""
    return "< 0.0001" if value is not None and 0.0 <= value < 1e-4 else number(value)


def span(value: timedelta | None) -> str:
    """A length of time in its two largest units, e.g. `2 d 4 h`."""
    if value is None:
        return ABSENT
    left, parts = max(0, int(value.total_seconds())), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def seconds(value: float | None) -> str:
    """Seconds as a length of time."""
    return ABSENT if value is None or not isfinite(value) else span(timedelta(seconds=value))


def ago(at: datetime | None, now: datetime) -> str:
    """How long before `now`; a stamp from a clock ahead of ours counts as now."""
    return ABSENT if at is None else f"{span(now - at)} ago"


def moment(at: datetime | None, with_seconds: bool = False) -> str:
    """Date and time, UTC."""
    return ABSENT if at is None else f"{at.astimezone(UTC):{'%Y-%m-%d %H:%M:%S' if with_seconds else '%Y-%m-%d %H:%M'}}"


def day(window: str) -> str:
    """A window id as people read it, `2013-06-03 08:00`; anything else as it is."""
    return window[:-1].replace("T", " ") if WINDOW.fullmatch(window) else window


def plural(many: int, noun: str) -> str:
    """`1 alarm`, `2 alarms`."""
    return f"{many:,} {noun}{'' if many == 1 else 's'}"


def run(windows: tuple[str, ...]) -> str:
    """Windows in a row, by their first and last: `06-03 to 06-09`."""
    if not windows:
        return ABSENT
    first, last = windows[0], windows[-1]
    return first[5:10] if first[:10] == last[:10] else f"{first[5:10]} to {last[5:10]}"
