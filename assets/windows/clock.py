"""The grid of windows, and the moment a window may be cut.

A window is named by its UTC start (`2013-06-03T08:00Z`) and lies on the grid `start + k * every`. Everything here is
arithmetic: it reads no log and no journal, and `now` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

WINDOW_FORMAT = "%Y-%m-%dT%H:%MZ"

_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)


class NotDue(Exception):
    """Nothing is wrong, it is too early. `reason` is a sentence; `when` the earliest moment to ask again, if known."""

    def __init__(self, reason: str, when: datetime | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.when = when


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """How the stream is divided. The section `[window]` of headgate.toml has the same names.

    clock "wall": a window is due at its end + grace by the wall clock (production). "stream": it is due when records of
    events and of labels carry time stamps of its end + grace or later, or the stream has ended (replay, backtest).
    Raises ValueError for a division that cannot be a calendar of windows.
    """

    every: timedelta
    start: datetime
    grace: timedelta = timedelta(seconds=60)
    clock: Literal["wall", "stream"] = "wall"
    enter: str = "maturity"
    evidence_share: float = 0.0

    def __post_init__(self) -> None:
        _check_every(self.every)
        if self.start.tzinfo is None:
            raise ValueError(f"window.start = {self.start.isoformat()} has no time zone: write it with Z, for UTC")
        if self.start.second or self.start.microsecond:
            raise ValueError(f"window.start = {self.start.isoformat()}: a window starts on a whole minute")
        if self.grace < timedelta(0):
            raise ValueError(f"window.grace = {self.grace} < 0: a window cannot be cut before its end")
        if self.clock not in ("wall", "stream"):
            raise ValueError(f'window.clock = {self.clock!r}: write "wall" (production) or "stream" (replay)')
        if self.enter != "maturity":
            raise ValueError(
                f'window.enter = {self.enter!r} is not supported: write "maturity", an example enters when its label '
                "is mature"
            )
        if self.evidence_share:
            raise ValueError(
                f'window.evidence_share = {self.evidence_share} has no effect with enter = "maturity", where every '
                "example is evidence before it is trained on: write 0.0"
            )


def _check_every(every: timedelta) -> None:
    whole = every >= _MINUTE and not every % _MINUTE
    if not whole or not (every == 7 * _DAY or (every <= _DAY and not _DAY % every)):
        raise ValueError(
            f"window.every = {every} is not a calendar of windows: write whole minutes that divide a day (such as "
            '"15m", "1h", "6h"), "1d" or "7d"'
        )


def window_id(start: datetime) -> str:
    """The name of the window that starts then.

    >>> window_id(datetime(2013, 6, 3, 8, tzinfo=UTC))
    '2013-06-03T08:00Z'
    """
    return start.astimezone(UTC).strftime(WINDOW_FORMAT)


def parse_window(window: str) -> datetime:
    """The start a name stands for. Raises ValueError for another spelling."""
    try:
        start = datetime.strptime(window, WINDOW_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        start = None
    if start is None or window_id(start) != window:
        raise ValueError(f"{window!r} is not the name of a window: write its UTC start like 2013-06-03T08:00Z")
    return start


def window_index(policy: WindowPolicy, moment: datetime) -> int:
    """The number of the window that contains the moment, 0 for the first; negative before the stream starts."""
    return (moment - policy.start) // policy.every


def window_at(policy: WindowPolicy, moment: datetime) -> str:
    """The window that contains the moment. Raises ValueError before the first window."""
    index = window_index(policy, moment)
    if index < 0:
        raise ValueError(f"{moment.isoformat()} is before the first window, {window_id(policy.start)} (window.start)")
    return window_id(policy.start + index * policy.every)


def window_bounds(policy: WindowPolicy, window: str) -> tuple[datetime, datetime]:
    """[start, end) of a window. Raises ValueError for one that is not on the grid."""
    start = parse_window(window)
    nearest = window_at(policy, start)
    if nearest != window:
        raise ValueError(f"no window starts at {window}: with window.every = {policy.every} it lies inside {nearest}")
    return start, start + policy.every


def next_window(policy: WindowPolicy, window: str | None) -> str:
    """The window right after this one; the first of all for None."""
    return window_id(policy.start if window is None else window_bounds(policy, window)[1])


def previous_window(policy: WindowPolicy, window: str) -> str | None:
    """The window right before this one; None for the first of all."""
    start = window_bounds(policy, window)[0]
    return None if start <= policy.start else window_id(start - policy.every)


def windows_between(policy: WindowPolicy, first: str, last: str) -> list[str]:
    """All windows from `first` to `last`, both included, in order; none when last is before first."""
    begin, end = window_bounds(policy, first)[0], window_bounds(policy, last)[0]
    return [window_id(begin + step * policy.every) for step in range((end - begin) // policy.every + 1)]


def nth_window(policy: WindowPolicy, number: int) -> str:
    """The window with this number, 0 for the first: the inverse of `window_index`."""
    return window_id(policy.start + number * policy.every)


def check_due(policy: WindowPolicy, window: str, *, now: datetime, passed: bool, ended: datetime | None) -> None:
    """Return when the window may be cut, else raise NotDue.

    now: the wall clock. passed: both topics carry a record of window end + grace or later (read under the stream clock
    only). ended: every record of the stream is older than this moment, and no more will come; None while it runs.
    The clock of the stream does not run ahead of the wall's: one record stamped in a far year would make every window
    until then due at once, and what is cut stays cut.
    """
    start, end = window_bounds(policy, window)
    ready = end + policy.grace
    if policy.clock == "wall":
        if now < ready:
            raise NotDue(f"window {window} is due at {ready.isoformat()} (its end + grace {policy.grace})", ready)
    elif ended is not None:
        if start >= ended:
            raise NotDue(f"window {window} begins after the stream ended, at {ended.isoformat()}")
    elif not passed:
        raise NotDue(
            f"window {window} waits for records of {ready.isoformat()} or later in the topics of events and labels "
            f"(its end + grace {policy.grace}, by the clock of the stream)"
        )
    elif now < end:
        raise NotDue(
            f"window {window} ends at {end.isoformat()}, after now ({now.isoformat()}), though a record of the stream says "
            "it has passed: that record, or this machine's clock, is wrong",
            end,
        )
