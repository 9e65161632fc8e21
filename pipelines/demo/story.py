"""When the demo's story happens: the months of history, the weeks of the stream, the week of wrong labels.

It knows dates and nothing else: no data, no log, no policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True)
class Story:
    """The dates of the demo, all UTC. Days are cut at 08:00 UTC (03:00 or 04:00 in New York): of 327,346 labels of
    the year only 1,930 arrive on the other side of that cut, against 26,873 for local midnight."""

    history_start: datetime = datetime(2013, 1, 1, tzinfo=UTC)
    history_end: datetime = datetime(2013, 4, 1, tzinfo=UTC)
    start: datetime = datetime(2013, 6, 3, 8, tzinfo=UTC)
    end: datetime = datetime(2013, 8, 26, 8, tzinfo=UTC)
    wrong_from: datetime = datetime(2013, 7, 15, 8, tzinfo=UTC)
    wrong_until: datetime = datetime(2013, 7, 22, 8, tzinfo=UTC)
    window: timedelta = timedelta(days=1)

    @property
    def windows(self) -> tuple[datetime, ...]:
        """The starts of the windows of the stream, oldest first."""
        count = (self.end - self.start) // self.window
        return tuple(self.start + k * self.window for k in range(count))

    @property
    def wrong_labels(self) -> tuple[datetime, datetime]:
        """Labels that arrive in `[first, second)` carry the delay with the wrong sign."""
        return self.wrong_from, self.wrong_until
