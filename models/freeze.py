"""Freeze windows: times in which no version gets more traffic.

Two forms, both UTC: weekly, `"Fri 16:00 - Mon 08:00"`, and once, `"2026-12-20 - 2027-01-03"` (first and last day, both
included). It knows a calendar and nothing of releases.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
WEEK = timedelta(days=7)
_WEEKLY = re.compile(r"(\w{3}) (\d\d):(\d\d) - (\w{3}) (\d\d):(\d\d)")
_ONCE = re.compile(r"(\d{4}-\d\d-\d\d) - (\d{4}-\d\d-\d\d)")


def frozen(windows: tuple[str, ...], now: datetime) -> str | None:
    """The first of these windows that `now` lies in, or None. ValueError for a text that is none."""
    return next((text for text in windows if _holds(text, now.astimezone(UTC))), None)


def _holds(text: str, now: datetime) -> bool:
    if once := _ONCE.fullmatch(text):
        first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in once.groups())
        if last < first:
            raise ValueError(f"freeze {text!r} ends before it begins: first day, then last")
        return first <= now < last + timedelta(days=1)
    weekly = _WEEKLY.fullmatch(text)
    if weekly is None or weekly[1] not in DAYS or weekly[4] not in DAYS:
        raise ValueError(f'freeze {text!r}: wanted "Fri 16:00 - Mon 08:00" or "2026-12-20 - 2027-01-03", times in UTC')
    begin, end = _into_week(*weekly.groups()[:3]), _into_week(*weekly.groups()[3:])
    if begin == end:
        raise ValueError(f"freeze {text!r} has no length: begin and end are the same")
    since_monday = timedelta(days=now.weekday(), hours=now.hour, minutes=now.minute, seconds=now.second)
    return (since_monday - begin) % WEEK < (end - begin) % WEEK


def _into_week(day: str, hours: str, minutes: str) -> timedelta:
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError(f"freeze: {day} {hours}:{minutes} is no time of day")
    return timedelta(days=DAYS.index(day), hours=int(hours), minutes=int(minutes))
