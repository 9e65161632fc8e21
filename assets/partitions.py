"""The grid of windows as Dagster partitions: the same names, the same edges.

Dagster describes time partitions by a cron expression, so a length that no expression can say is refused here; the
resident worker runs those too.
"""

from datetime import timedelta

import dagster as dg

from assets.windows.clock import WINDOW_FORMAT, WindowPolicy

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


def window_partitions(policy: WindowPolicy) -> dg.TimeWindowPartitionsDefinition:
    """Partition keys are window ids, from `policy.start` on."""
    return dg.TimeWindowPartitionsDefinition(
        start=policy.start, cron_schedule=cron(policy), fmt=WINDOW_FORMAT, timezone="UTC"
    )


def cron(policy: WindowPolicy) -> str:
    """The cron expression of the grid (UTC). ValueError for a length that has none.

    >>> from datetime import datetime, timezone
    >>> cron(WindowPolicy(every=timedelta(hours=6), start=datetime(2026, 1, 1, 2, tzinfo=timezone.utc)))
    '0 2,8,14,20 * * *'
    """
    every, start = policy.every, policy.start
    if every == 7 * _DAY:
        return f"{start.minute} {start.hour} * * {start.isoweekday() % 7}"
    if every % _HOUR == timedelta(0):
        hours = every // _HOUR
        return f"{start.minute} {','.join(map(str, range(start.hour % hours, 24, hours)))} * * *"
    if _HOUR % every == timedelta(0):
        minutes = every // timedelta(minutes=1)
        return f"{','.join(map(str, range(start.minute % minutes, 60, minutes)))} * * * *"
    raise ValueError(
        f"window.every = {every}: Dagster has no calendar for it; use minutes that divide an hour or hours that divide a "
        "day, or run `headgate worker`"
    )
