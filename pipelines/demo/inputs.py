"""The 236 inputs of the demo's network, made of the columns of an event.

Row i is made of row i alone, without state. Every scaling constant is written here by hand; none is fitted on the data,
so none of them carries anything about a record. It does not know where the columns come from or what is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines.demo import event
from pipelines.demo.event import slot_values

Columns = Mapping[str, np.ndarray]

def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Every name of 2013. A name that is not here is no error: its columns stay zero.
CARRIERS = _names("9E AA AS B6 DL EV F9 FL HA MQ OO UA US VX WN YV")
ORIGINS = _names("EWR JFK LGA")
DESTINATIONS = _names(
    "ABQ ACK ALB ANC ATL AUS AVL BDL BGR BHM BNA BOS BQN BTV BUF BUR BWI BZN CAE CAK CHO CHS CLE CLT CMH CRW CVG "
    "DAY DCA DEN DFW DSM DTW EGE EYW FLL GRR GSO GSP HDN HNL HOU IAD IAH ILM IND JAC JAX LAS LAX LEX LGA LGB MCI "
    "MCO MDW MEM MHT MIA MKE MSN MSP MSY MTJ MVY MYR OAK OKC OMA ORD ORF PBI PDX PHL PHX PIT PSE PSP PVD PWM RDU "
    "RIC ROC RSW SAN SAT SAV SBN SDF SEA SFO SJC SJU SLC SMF SNA SRQ STL STT SYR TPA TUL TVC TYS XNA"
)
# 36 plan, 14 weather, 48 arrivals, 8 load, 16 overdue, 9 last leg, 105 destinations
WIDTH = 236


def encode(columns: Columns) -> np.ndarray:
    """Columns of n events -> (n, 236) float32, all finite.

    A category that is not listed becomes zeros, a missing number its usual value (weather: with an indicator).
    """
    parts = (_plan(columns), _weather(columns), _state(columns), _one_hot(columns["dest"], DESTINATIONS))
    return np.hstack([part.astype(np.float32) for part in parts])


def _numbers(column: np.ndarray) -> np.ndarray:
    """float64 with NaN for None and for anything that is not finite."""
    values = np.asarray(column, float)
    return np.where(np.isfinite(values), values, np.nan)


def _scaled(values: np.ndarray, usual: float, unit: float) -> np.ndarray:
    """(values - usual) / unit, a missing value as the usual one, cut to [-5, 5]."""
    return np.asarray(np.clip(np.nan_to_num((values - usual) / unit), -5, 5))


def _one_hot(column: np.ndarray, known: tuple[str, ...]) -> np.ndarray:
    """(n, len(known)); zeros for a name that is not known. `known` is sorted."""
    names = np.asarray(column).astype(str)
    place = np.minimum(np.searchsorted(known, names), len(known) - 1)
    hit = np.asarray(known)[place] == names
    return np.eye(len(known))[place] * hit[:, None]


def _plan(columns: Columns) -> np.ndarray:
    """Carrier, origin, weekday, time of day, distance, block time, where the destination is: (n, 36)."""
    numbers = {name: _numbers(columns[name]) for name in event.PLAN}
    hour, weekday = np.nan_to_num(numbers["local_hour"], nan=13.0), numbers["weekday"]
    angle = 2 * np.pi * hour / 24
    block, distance = numbers["block_minutes"], numbers["distance"]
    waves = [np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)]
    scaled = [
        _scaled(hour, 13, 5),
        _scaled(distance, 1000, 700),
        _scaled(block, 180, 90),
        _scaled(block - distance / 8, 45, 20),  # minutes beyond flying at 480 mph: the schedule's own buffer
        _scaled(numbers["dest_latitude"], 36, 6),
        _scaled(numbers["dest_longitude"], -85, 15),
    ]
    names = [_one_hot(columns["carrier"], CARRIERS), _one_hot(columns["origin"], ORIGINS)]
    days = weekday[:, None] == np.arange(7)
    return np.hstack([*names, days, np.column_stack([*waves, *scaled])])


def _weather(columns: Columns) -> np.ndarray:
    """The report of the previous full hour, and whether there was one: (n, 14)."""
    w = {name: _numbers(columns[name]) for name in event.WEATHER}
    direction = np.deg2rad(np.nan_to_num(w["wind_direction"]))
    wind, rain = _scaled(w["wind_speed"], 0, 10), np.maximum(np.nan_to_num(w["precipitation"]), 0)
    return np.column_stack(
        [
            _scaled(w["temperature"], 55, 18),
            _scaled(w["dew_point"], 42, 19),
            _scaled(w["humidity"], 62, 19),
            _scaled(w["wind_speed"], 10, 5.5),
            _scaled(np.nan_to_num(w["wind_gust"]), 6, 11),  # no gust is reported as none
            np.sin(direction) * wind,
            np.cos(direction) * wind,
            _scaled(np.sqrt(rain), 0, 0.2),
            rain > 0,
            _scaled(w["pressure"], 1018, 7.5),
            _scaled(w["visibility"], 10, 2),
            w["visibility"] < 3,
            _scaled(w["pressure_change_3h"], 0, 3),
            np.isnan(w["temperature"]),
        ]
    )


def _state(columns: Columns) -> np.ndarray:
    """What other flights did lately: arrivals, load, overdue flights, the aircraft's last leg: (n, 81)."""
    slots = {family: _numbers(slot_values(columns, family)) for family in event.FAMILIES}
    return np.hstack(
        [
            _scaled(slots["late_share"], 0.25, 0.25),
            _scaled(slots["mean_delay"], 0, 20),
            _scaled(_logarithm(slots["arrivals"]), 0, 4),
            _scaled(_logarithm(slots["flights"]), 0, 4),
            _scaled(_logarithm(slots["overdue"]), 0, 3),
            _scaled(slots["overdue_share"], 0, 1 / 3),
            _last_leg(columns),
        ]
    )


def _logarithm(counts: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(np.maximum(counts, 0)))


def _last_leg(columns: Columns) -> np.ndarray:
    """The aircraft's previous departure; all zeros but the two hours where nothing is known of it: (n, 9)."""
    state = np.asarray(columns["last_leg"]).astype(str)
    delay, ago, spare = (_numbers(columns[name]) for name in event.LAST_LEG)
    arrived, overdue = state == "arrived", state == "overdue"
    delay = np.where(arrived, np.nan_to_num(delay), 0) / 30
    ago = np.clip(np.where(arrived, np.nan_to_num(ago, nan=12), 12), 0, 24)
    spare = np.clip(np.where(arrived, np.nan_to_num(spare, nan=10), 10), -2, 10)
    return np.column_stack(
        [
            arrived,
            overdue | (state == "flying"),
            overdue,
            np.clip(delay, -5, 6),
            np.where(ago < 6, np.clip(delay, -5, 6), 0),
            ago / 6 - 2,
            spare / 4 - 1,
            arrived & (spare < 1),  # lands, or flies back, within the hour before departure
            np.clip(delay - spare, -5, 5),  # delay in half hours against spare hours
        ]
    )
