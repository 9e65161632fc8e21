"""Durations as people write them: "90s", "15m", "36h", "28d", or a sum such as "1d12h". Settings and messages use one form."""

from __future__ import annotations

import re
from datetime import timedelta

_PART = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> timedelta:
    """The span a text names. ValueError for any other form.

    >>> parse_duration("1d12h")
    datetime.timedelta(days=1, seconds=43200)
    """
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f'{text!r} is not a duration: write for example "90s", "60m", "36h" or "7d"')
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))


def spell(span: timedelta) -> str:
    """The shortest text `parse_duration` reads back.

    >>> spell(timedelta(days=28)), spell(timedelta(hours=36)), spell(timedelta(hours=25.5))
    ('28d', '36h', '1d1h30m')
    """
    seconds = span.total_seconds()
    for unit in "dh":  # "36h" reads better than "1d12h"
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    text, rest = "-" if seconds < 0 else "", abs(seconds)
    for unit in "dhm":
        count, rest = divmod(rest, _SECONDS[unit])
        text += f"{int(count)}{unit}" if count else ""
    return text + f"{rest:g}s" if rest or not text else text
