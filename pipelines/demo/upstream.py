"""Computes what is known at a scheduled departure: the columns of an event, from what had arrived by then.

This stands for the feature system in front of Kafka. Every figure at time t is made of three kinds of facts: the
schedule, weather reports of hours that were over, and labels with arrival < t. Absence counts as well (a flight that is
overdue), but never its reason: whether an overdue flight comes late or never is not known, so both are treated alike.

It knows nothing of Kafka, JSON or the model, and fits nothing on the data: the constants below are written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from pipelines.demo import event
from pipelines.demo.source import NEVER, Flights, Source, Weather

HOUR = 3_600
LATE_MINUTES = 15
# A mean over few flights is drawn to what is usual: five flights of which one is late, 5 minutes on average.
PRIOR_FLIGHTS, PRIOR_LATE_SHARE, PRIOR_DELAY = 5.0, 0.2, 5.0
# One flight of 20 hours must not outweigh an airport: delays count between these limits, in minutes.
DELAY_LIMITS = (-30, 180)
# A flight is overdue from 15 minutes after its scheduled arrival until it arrives or has been missing too long.
OVERDUE_AFTER = 15 * 60
WEATHER_MAX_AGE = 6 * HOUR
LAST_LEG_ARRIVED_WITHIN = 24 * HOUR
LAST_LEG_OPEN_WITHIN = 12 * HOUR
# What an event looks back on: 24 hours of arrivals, of flights that may have left 33 hours earlier (the longest label
# lag of the year is 32.7 h); the aircraft's last leg arrived up to 24 hours ago.
MEMORY = timedelta(hours=24 + 33)
SIGNIFICANT_DIGITS = 4


def columns_between(source: Source, start: datetime, end: datetime) -> dict[str, np.ndarray]:
    """The columns of the events scheduled in [start, end), rows by time; equal to the same rows of a longer stretch."""
    flights = source.flights.between(start - MEMORY, end)
    asked = flights.scheduled >= int(start.timestamp())
    return {name: column[asked] for name, column in columns_of(flights, source.weather).items()}


def columns_of(flights: Flights, weather: Weather) -> dict[str, np.ndarray]:
    """All columns of event.EVENT for these flights; (n,) or (n, k), rounded as they are published."""
    columns = {**_plan(flights), **_weather_before(flights, weather), **_last_leg(flights)}
    for family, values in {**_arrivals(flights), **_overdue(flights), **_load(flights)}.items():
        columns |= event.family_columns(family, rounded(values))
    return {name: columns[name] for name in event.EVENT.names}


def rounded(values: np.ndarray) -> np.ndarray:
    """To four significant digits: keeps an event near 1 kB; the model's inputs move by less than 0.001."""
    size = np.floor(np.log10(np.maximum(np.abs(values), 1e-3)))
    scale = 10.0 ** (SIGNIFICANT_DIGITS - 1 - size)
    return np.asarray(np.round(values * scale) / scale)


@dataclass(frozen=True)
class Timeline:
    """Dated records of many groups, ready to be summed over any stretch of time of one group.

    `stamps` are sorted `group << 32 | seconds`; `sums[k]` is the total of the first k records. All values are whole
    numbers, so that differences of totals are exact and a later record cannot change an earlier sum by rounding.
    """

    stamps: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, group: np.ndarray, when: np.ndarray, *values: np.ndarray) -> Timeline:
        """One record a row; its first value is the count 1, the others as given."""
        stamps = (group << 32) | when
        order = np.argsort(stamps, kind="stable")
        table = np.column_stack([np.ones(len(when)), *values])[order]
        return cls(stamps[order], np.vstack([np.zeros((1, table.shape[1])), np.cumsum(table, axis=0)]))

    def upto(self, group: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Totals of everything before `when` in this group, plus a constant of the group: only differences mean
        something. (n, values)."""
        return np.asarray(self.sums[np.searchsorted(self.stamps, (group << 32) | when, "left")])

    def within(self, group: np.ndarray, when: np.ndarray, seconds: int) -> np.ndarray:
        """Totals over [when - seconds, when), in the group of each row. (n, values)."""
        return self.upto(group, when) - self.upto(group, when - seconds)


def _groups(flights: Flights) -> dict[str, np.ndarray]:
    """By what records are summed: name -> an int for each flight."""
    origin, carrier, dest = (
        np.unique(names, return_inverse=True)[1].astype(np.int64)
        for names in (flights.origin, flights.carrier, flights.dest)
    )
    return {
        "all": np.zeros(len(flights), np.int64),
        "origin": origin,
        "carrier": carrier,
        "dest": dest,
        "route": origin * 1000 + dest,
        "origin_carrier": origin * 1000 + carrier,
    }


def _plan(flights: Flights) -> dict[str, np.ndarray]:
    """What the schedule says."""
    return {
        "event_id": flights.event_id,
        "carrier": flights.carrier,
        "origin": flights.origin,
        "dest": flights.dest,
        "scheduled_departure": np.array([event.iso(t) for t in flights.scheduled.tolist()]),
        "local_hour": np.round(flights.local_hour, 3),
        "weekday": flights.weekday.astype(float),
        "distance": flights.distance,
        "block_minutes": (flights.scheduled_arrival - flights.scheduled) / 60.0,
        "dest_latitude": np.round(flights.dest_latitude, 2),
        "dest_longitude": np.round(flights.dest_longitude, 2),
    }


def _weather_before(flights: Flights, weather: Weather) -> dict[str, np.ndarray]:
    """The report of the hour before the scheduled one, or the newest before it, not older than six hours; else NaN.

    A report is taken near minute 51 of its hour, so the one of the running hour is not there yet.
    """
    hour = flights.scheduled // HOUR * HOUR - HOUR
    now, earlier = (_report(flights.origin, at, weather) for at in (hour, hour - 3 * HOUR))
    columns = {name: np.round(_values(values, now), 2) for name, values in weather.measures.items()}
    change = _values(weather.measures["pressure"], now) - _values(weather.measures["pressure"], earlier)
    return columns | {"pressure_change_3h": np.round(change, 2)}


def _report(origin: np.ndarray, hour: np.ndarray, weather: Weather) -> np.ndarray:
    """The row of the newest report of this airport at or before `hour`, -1 where it is too old or missing."""
    found = np.full(len(hour), -1)
    for airport in np.unique(origin):
        rows = np.flatnonzero(weather.origin == airport)
        rows = rows[np.argsort(weather.hour[rows], kind="stable")]
        here = np.flatnonzero(origin == airport)
        last = np.searchsorted(weather.hour[rows], hour[here], "right") - 1
        if len(rows):
            fresh = (last >= 0) & (hour[here] - weather.hour[rows[last]] <= WEATHER_MAX_AGE)
            found[here] = np.where(fresh, rows[last], -1)
    return found


def _values(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.where(rows >= 0, values[rows], np.nan)


def _arrivals(flights: Flights) -> dict[str, np.ndarray]:
    """Share of late flights, mean delay and number of the labels that arrived in the last hours: (n, ARRIVAL_SLOTS)."""
    known = flights.arrival < NEVER
    delay = flights.arr_delay[known]
    late, limited = (delay >= LATE_MINUTES).astype(float), np.clip(delay, *DELAY_LIMITS)
    shares, means, counts = [], [], []
    groups = _groups(flights)
    lines = {by: Timeline.of(group[known], flights.arrival[known], late, limited) for by, group in groups.items()}
    for by, hours in event.ARRIVAL_SLOTS:
        count, number_late, minutes = lines[by].within(groups[by], flights.scheduled, hours * HOUR).T
        shares.append((number_late + PRIOR_FLIGHTS * PRIOR_LATE_SHARE) / (count + PRIOR_FLIGHTS))
        means.append((minutes + PRIOR_FLIGHTS * PRIOR_DELAY) / (count + PRIOR_FLIGHTS))
        counts.append(count)
    return {
        "late_share": np.column_stack(shares),
        "mean_delay": np.column_stack(means),
        "arrivals": np.column_stack(counts),
    }


def _overdue(flights: Flights) -> dict[str, np.ndarray]:
    """How many flights that were due in the last hours have not arrived, and their share of all that were due.

    A flight is overdue from `due` until it arrives, and no longer than the window: the number at t is what began before
    t minus what ended before t. A cancelled flight and a late one look the same for as long as nobody can tell.
    """
    due = flights.scheduled_arrival + OVERDUE_AFTER
    numbers, shares = [], []
    groups = _groups(flights)
    for by, hours in event.OVERDUE_SLOTS:
        group = groups[by]
        begun = Timeline.of(group, due)
        ended = Timeline.of(group, np.clip(flights.arrival, due, due + hours * HOUR))
        all_due = begun.within(group, flights.scheduled, hours * HOUR)[:, 0]
        open_now = (begun.upto(group, flights.scheduled) - ended.upto(group, flights.scheduled))[:, 0]
        numbers.append(open_now)
        shares.append(open_now / (all_due + PRIOR_FLIGHTS))
    return {"overdue": np.column_stack(numbers), "overdue_share": np.column_stack(shares)}


def _load(flights: Flights) -> dict[str, np.ndarray]:
    """Departures that were scheduled in the last hours: (n, LOAD_SLOTS). No label is used."""
    groups = _groups(flights)
    lines = {by: Timeline.of(groups[by], flights.scheduled) for by in {by for by, _ in event.LOAD_SLOTS}}
    counts = [
        lines[by].within(groups[by], flights.scheduled, hours * HOUR)[:, 0] for by, hours in event.LOAD_SLOTS
    ]
    return {"flights": np.column_stack(counts)}


def _last_leg(flights: Flights) -> dict[str, np.ndarray]:
    """What became of the aircraft's previous departure from New York, as far as it is known.

    `last_leg_spare_hours`: what is left until departure after flying back at the scheduled block time.
    """
    previous = _previous_departure(flights)
    has, leg = previous >= 0, np.maximum(previous, 0)
    now, arrival = flights.scheduled, flights.arrival[leg]
    block = flights.scheduled_arrival[leg] - flights.scheduled[leg]
    arrived = has & (arrival < now) & (now - arrival < LAST_LEG_ARRIVED_WITHIN)
    flying = has & (arrival >= now) & (now - flights.scheduled[leg] < LAST_LEG_OPEN_WITHIN)
    overdue = flying & (flights.scheduled_arrival[leg] + OVERDUE_AFTER < now)
    state = np.select([overdue, flying, arrived], ["overdue", "flying", "arrived"], "unknown")
    values = {
        "last_leg_delay": np.clip(flights.arr_delay[leg], *DELAY_LIMITS),
        "last_leg_hours_ago": (now - arrival) / HOUR,
        "last_leg_spare_hours": (now - arrival - block) / HOUR,
    }
    known = {name: rounded(np.where(arrived, value, np.nan)) for name, value in values.items()}
    return {"last_leg": state, **known}


def _previous_departure(flights: Flights) -> np.ndarray:
    """The row of the same aircraft's last departure before this one, -1 where none or no aircraft is known."""
    stamps = (flights.tail << 32) | flights.scheduled
    order = np.argsort(stamps, kind="stable")
    earlier = order[np.maximum(np.searchsorted(stamps[order], stamps, "left") - 1, 0)]
    same = (flights.tail[earlier] == flights.tail) & (flights.scheduled[earlier] < flights.scheduled)
    return np.where(same & (flights.tail >= 0), earlier, -1)
