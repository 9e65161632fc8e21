"""The demo's data and Task: true times, no look into the future, robust inputs, figures that are right."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.demo import event, inputs, source, upstream
from pipelines.demo.flights import FlightDelay
from pipelines.demo.source import NEVER

HOUR = 3600


@pytest.fixture(scope="module")
def data():
    return source.load()


@pytest.fixture(scope="module")
def task():
    return FlightDelay()


@pytest.fixture(scope="module")
def week(data):
    """Events of a stormy week of June, as published."""
    return upstream.columns_between(data, at(6, 24), at(7, 1))


def at(month, day, hour=0, minute=0):
    return datetime(2013, month, day, hour, minute, tzinfo=UTC)


def seconds(moment):
    return int(moment.timestamp())


def same(a, b):
    return a == b if a.dtype.kind != "f" else (a == b) | (np.isnan(a) & np.isnan(b))


def one_row(columns, row):
    return {name: column[row : row + 1] for name, column in columns.items()}


# ---- the source ----


@pytest.mark.parametrize(
    ("event_id", "departure", "arrival"),
    [
        ("2013-01-01-UA1545-EWR", at(1, 1, 10, 15), at(1, 1, 14, 30)),  # Houston, an hour behind
        ("2013-01-01-B6725-JFK", at(1, 1, 10, 45), at(1, 1, 14, 4)),  # Aguadilla, which the list of airports lacks
        ("2013-07-01-HA51-JFK", at(7, 1, 14, 0), at(7, 2, 1, 27)),  # Honolulu, six hours behind in summer
    ],
)
def test_a_flight_leaves_and_arrives_at_its_true_utc_time(data, event_id, departure, arrival):
    flights = data.flights
    row = np.flatnonzero(flights.event_id == event_id)[0]
    assert (flights.scheduled[row], flights.arrival[row]) == (seconds(departure), seconds(arrival))


def test_every_arrival_shows_the_clock_of_its_destination(data):
    """arr_time is used nowhere in the source: it is a second witness for 27,000 flights of June."""
    import pandas as pd

    wanted = ["month", "day", "arr_time", "carrier", "flight", "origin", "dest", "arr_delay"]
    raw = pd.read_csv(source.data_folder() / "flights.csv.zip", usecols=wanted)
    raw = raw[(raw.month == 6) & raw.arr_delay.notna()]
    parts = zip(raw.day, raw.carrier, raw.flight, raw.origin, strict=True)
    ids = [f"2013-06-{day:02d}-{carrier}{number}-{origin}" for day, carrier, number, origin in parts]
    arrival = pd.Series(data.flights.arrival, index=data.flights.event_id)[ids].to_numpy()
    zones = pd.read_csv(source.data_folder() / "airports.csv").set_index("faa").tzone.to_dict() | source.CARIBBEAN
    zone = raw.dest.map(zones).to_numpy()
    for name in set(zone):
        here = zone == name
        clock = pd.to_datetime(arrival[here], unit="s", utc=True).tz_convert(name)
        shown = raw.arr_time.to_numpy()[here]
        assert np.array_equal((clock.hour * 100 + clock.minute) % 2400, shown % 2400)


def test_events_have_one_id_each_and_come_in_the_order_of_time(data):
    flights = data.flights
    assert len(flights) == 336_776
    assert len(np.unique(flights.event_id)) == len(flights)
    assert (np.diff(flights.scheduled) >= 0).all()


def test_cancelled_and_diverted_flights_never_get_a_label_and_every_label_fits_the_horizon(data, task):
    flights = data.flights
    labelled = flights.arrival < NEVER
    assert (~labelled).sum() == 9_430
    assert np.isnan(flights.arr_delay[~labelled]).all()
    lag = (flights.arrival - flights.scheduled)[labelled]
    assert lag.min() > 0
    assert lag.max() < task.label_horizon.total_seconds()


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(source, "PACKAGE", "no_such_flights")
    with pytest.raises(source.DataMissing, match=r"no_such_flights is not installed.*make install"):
        source.data_folder()


# ---- nothing of the future ----

# 9 February: a blizzard, 57 % cancelled. 24 June and 23 July: evenings of thunderstorms. 3 November: clocks change.
ROUGH = [at(2, 9, 15), at(6, 24, 23, 30), at(7, 23, 2), at(11, 3, 12)]
MOMENTS = [*ROUGH, *(at(3, 12, 20, 5) + k * timedelta(days=20, minutes=37) for k in range(8))]


def wrecked(flights, weather, moment, seed):
    """The same data with everything changed that is known only after `moment`: arrivals, later flights, weather."""
    rng, now = np.random.default_rng(seed), seconds(moment)
    n, later = len(flights), flights.scheduled > now
    open_ = flights.arrival >= now
    lands = np.maximum(flights.scheduled_arrival, now) + rng.integers(0, 600, n) * 60
    arrival = np.where(open_, np.where(rng.random(n) < 0.5, NEVER, lands), flights.arrival)
    shuffled = rng.permutation(n)
    changed = replace(
        flights,
        scheduled=flights.scheduled + 420 * later,
        scheduled_arrival=flights.scheduled_arrival + rng.integers(0, 60, n) * 60 * later,
        arrival=arrival,
        arr_delay=np.where(open_, np.where(arrival < NEVER, rng.integers(-30, 400, n), np.nan), flights.arr_delay),
        carrier=np.where(later, flights.carrier[shuffled], flights.carrier),
        dest=np.where(later, flights.dest[shuffled], flights.dest),
        tail=np.where(later, flights.tail[shuffled], flights.tail),
        distance=flights.distance + 99 * later,
    )
    unseen = weather.hour + HOUR > now
    measures = {name: np.where(unseen, -40.0, values) for name, values in weather.measures.items()}
    return changed, replace(weather, measures=measures)


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_wrecking_all_that_is_known_later_leaves_every_earlier_event_bit_identical(data, moment):
    flights = data.flights.between(moment - timedelta(days=4), moment + timedelta(days=2))
    before = upstream.columns_of(flights, data.weather)
    past = flights.scheduled <= seconds(moment)
    after = upstream.columns_of(*wrecked(flights, data.weather, moment, seed=moment.month))
    assert [name for name in before if not same(before[name][past], after[name][past]).all()] == []
    # The wreck is felt: later events change in every column that can, so equality above means something.
    kept = {"event_id", "origin", "local_hour", "weekday", "dest_latitude", "dest_longitude"}
    felt = {name for name in before if not same(before[name][~past], after[name][~past]).all()}
    assert felt == set(before) - kept


def test_the_wreck_catches_a_look_of_five_minutes_ahead(data, monkeypatch):
    moment = ROUGH[1]
    flights = data.flights.between(moment - timedelta(days=4), moment + timedelta(days=2))
    true_upto = upstream.Timeline.upto
    monkeypatch.setattr(upstream.Timeline, "upto", lambda self, group, when: true_upto(self, group, when + 300))
    before = upstream.columns_of(flights, data.weather)
    after = upstream.columns_of(*wrecked(flights, data.weather, moment, 0))
    past = flights.scheduled <= seconds(moment)
    changed = {name for name in before if not same(before[name][past], after[name][past]).all()}
    assert changed >= {"arrivals_1h", "late_share_by", "overdue_3h"}


def test_an_overdue_flight_looks_the_same_whether_it_comes_late_or_never(data):
    """While a flight is missing nobody knows why; the count may not tell the two apart, however long it takes."""
    moment = ROUGH[0]
    flights = data.flights.between(moment - timedelta(days=4), moment)
    never = replace(flights, arrival=np.where(flights.arrival >= seconds(moment), NEVER, flights.arrival))
    very_late = replace(flights, arrival=np.where(never.arrival == NEVER, seconds(moment), flights.arrival))
    a, b = (upstream.columns_of(f, data.weather) for f in (never, very_late))
    assert a["overdue_6h"].max() > 50
    for name in ("overdue_3h", "overdue_6h", "overdue_by", "overdue_share_3h", "overdue_share_by", "last_leg"):
        assert np.array_equal(a[name], b[name]), name


def naive(flights, row):
    """Every slot of one event, counted flight by flight."""
    f, now = flights, int(flights.scheduled[row])
    keys = {
        "all": np.ones(len(f), bool),
        "origin": f.origin == f.origin[row],
        "carrier": f.carrier == f.carrier[row],
        "dest": f.dest == f.dest[row],
    }
    keys |= {"route": keys["origin"] & keys["dest"], "origin_carrier": keys["origin"] & keys["carrier"]}
    counts = {family: [] for family in event.FAMILIES}
    for by, hours in event.ARRIVAL_SLOTS:
        delay = f.arr_delay[keys[by] & (f.arrival >= now - hours * HOUR) & (f.arrival < now)]
        counts["arrivals"].append(len(delay))
        counts["late_share"].append((sum(delay >= 15) + 1) / (len(delay) + 5))
        counts["mean_delay"].append((sum(np.clip(delay, -30, 180)) + 25) / (len(delay) + 5))
    for by, hours in event.OVERDUE_SLOTS:
        due = f.scheduled_arrival + 900
        recent = keys[by] & (due >= now - hours * HOUR) & (due < now)
        counts["overdue"].append(sum(f.arrival[recent] >= now))
        counts["overdue_share"].append(sum(f.arrival[recent] >= now) / (sum(recent) + 5))
    for by, hours in event.LOAD_SLOTS:
        counts["flights"].append(sum(keys[by] & (f.scheduled >= now - hours * HOUR) & (f.scheduled < now)))
    return counts


def test_every_aggregate_equals_a_count_by_hand(data):
    for moment in ROUGH[:3]:
        flights = data.flights.between(moment - timedelta(days=4), moment)
        columns = upstream.columns_of(flights, data.weather)
        for row in np.random.default_rng(1).integers(len(flights) // 2, len(flights), 25):
            for family, wanted in naive(flights, row).items():
                found = event.slot_values(one_row(columns, row), family)[0]
                np.testing.assert_allclose(found, wanted, rtol=6e-4, atol=1e-6)  # published to four digits


def test_the_last_leg_equals_a_search_by_hand(data):
    flights = data.flights.between(at(7, 20), at(7, 23, 3))
    columns = upstream.columns_of(flights, data.weather)
    seen = set()
    for row in range(len(flights) - 500, len(flights)):
        now = flights.scheduled[row]
        earlier = np.flatnonzero((flights.tail == flights.tail[row]) & (flights.scheduled < now) & (flights.tail >= 0))
        state = "unknown"
        if len(earlier):
            leg = earlier[-1]
            if flights.arrival[leg] < now:
                state = "arrived" if now - flights.arrival[leg] < 24 * HOUR else "unknown"
            elif now - flights.scheduled[leg] < 12 * HOUR:
                state = "overdue" if flights.scheduled_arrival[leg] + 900 < now else "flying"
        assert columns["last_leg"][row] == state
        if state == "arrived":
            delay = np.clip(flights.arr_delay[leg], -30, 180)
            assert columns["last_leg_delay"][row] == delay
        else:
            assert np.isnan(columns["last_leg_delay"][row])
        seen.add(state)
    assert seen == set(event.LAST_LEG_STATES)


def test_weather_is_the_report_of_the_hour_before(data):
    columns = upstream.columns_between(data, at(6, 10, 12), at(6, 10, 18))
    weather = data.weather
    for row in range(0, len(columns["event_id"]), 10):
        hour = seconds(datetime.fromisoformat(columns["scheduled_departure"][row])) // HOUR * HOUR - HOUR
        report = (weather.origin == columns["origin"][row]) & (weather.hour == hour)
        assert columns["temperature"][row] == np.round(weather.measures["temperature"][report][0], 2)


def test_a_stretch_has_the_same_columns_as_a_longer_one(data, week):
    longer = upstream.columns_between(data, at(6, 10), at(7, 3))
    first = int(np.flatnonzero(longer["event_id"] == week["event_id"][0])[0])
    part = slice(first, first + len(week["event_id"]))
    assert [name for name in week if not same(longer[name][part], week[name]).all()] == []


def test_columns_made_of_labels_are_exactly_the_declared_ones(data, task, week):
    """With all labels changed the declared columns change, every one of them, and no other does."""
    flights = data.flights.between(at(6, 24), at(7, 1))
    later = np.minimum(flights.arrival, NEVER - 2 * HOUR) + 2 * HOUR
    other = replace(flights, arrival=later, arr_delay=flights.arr_delay + 120)
    a, b = (upstream.columns_of(f, data.weather) for f in (flights, other))
    assert {name for name in a if not same(a[name], b[name]).all()} == set(task.label_derived)
    assert "published by law" in task.public_reason


# ---- the event ----


def consumed(documents, schema):
    """The columns as a consumer gets them: JSON -> the schema's types -> numpy."""
    rows = [json.loads(document) for document in documents]
    table = pa.Table.from_pylist(rows, schema)
    columns = {}
    for field in schema:
        column = table[field.name].combine_chunks()
        if pa.types.is_fixed_size_list(field.type):
            columns[field.name] = column.flatten().to_numpy().reshape(len(rows), field.type.list_size)
        else:
            columns[field.name] = column.to_numpy(zero_copy_only=False)
    return columns


def test_an_event_is_about_a_kilobyte_of_json_that_a_person_can_read(week):
    documents = list(event.documents(week, event.EVENT))
    assert 900 < np.mean([len(d) for d in documents]) < 1300
    first = json.loads(documents[1000])
    assert list(first) == event.EVENT.names
    assert first["scheduled_departure"].endswith("Z") and first["carrier"] in inputs.CARRIERS


def test_inputs_are_bit_identical_after_the_way_through_json(task, week):
    documents = list(event.documents(week, event.EVENT))[:500]
    received = consumed(documents, task.event)
    sent = task.encode({name: column[:500] for name, column in week.items()})
    listed = [name for name in week if week[name].ndim == 2]
    as_history = task.encode({n: (c[:500].astype(np.float32) if n in listed else c[:500]) for n, c in week.items()})
    assert np.array_equal(task.encode(received), as_history)
    np.testing.assert_allclose(sent, as_history, atol=1e-5)


def test_an_infinite_number_is_refused_and_a_missing_one_becomes_null(week):
    missing, infinite = (one_row(week, 0) | {"temperature": np.array([value])} for value in (np.nan, np.inf))
    assert json.loads(next(event.documents(missing, event.EVENT)))["temperature"] is None
    with pytest.raises(ValueError, match="JSON compliant"):
        next(event.documents(infinite, event.EVENT))


# ---- the task ----


def test_the_task_is_one_the_product_accepts(task):
    from models.task import load_task

    loaded = load_task("pipelines.demo.flights:FlightDelay")
    assert loaded.name == "flights" and loaded.subject is None
    assert set(task.monitored) < set(task.event.names) and 18 <= len(task.monitored) <= 22


def test_inputs_are_236_finite_numbers_and_row_by_row(task, week):
    whole = task.encode(week)
    assert whole.shape == (len(week["event_id"]), inputs.WIDTH) and whole.dtype == np.float32
    assert np.isfinite(whole).all() and np.abs(whole).max() <= 6
    for row in range(0, len(whole), 997):
        assert np.array_equal(task.encode(one_row(week, row))[0], whole[row])
    assert np.array_equal(task.encode(week), whole)


def test_every_input_varies_over_the_history_but_those_that_cannot(task):
    history = task.history()
    constant = np.flatnonzero(task.encode(history).std(axis=0) == 0)
    first = inputs.WIDTH - len(inputs.DESTINATIONS)
    unvisited = {first + k for k, name in enumerate(inputs.DESTINATIONS) if name not in set(history["dest"])}
    no_weather = 49  # the indicator of a missing report: there was one within six hours from January to March
    assert set(constant.tolist()) == unvisited | {no_weather}
    assert len(unvisited) == 9


def test_a_name_nobody_has_seen_becomes_zeros_and_no_error(task, week):
    known = one_row(week, 5)
    strange = known | {name: np.array(["Ωmega"]) for name in ("carrier", "origin", "dest")}
    difference = task.encode(known)[0] - task.encode(strange)[0]
    assert sorted(difference[difference != 0]) == [1.0, 1.0, 1.0]


def test_an_event_without_any_number_still_has_finite_inputs(task, week):
    empty = {
        name: np.array([None], object) if column.ndim == 1 else np.full((1, column.shape[1]), np.nan)
        for name, column in week.items()
    }
    absurd = {n: np.array([np.inf]) if n in task.monitored else c[:1] for n, c in week.items()}
    for columns in (empty, absurd):
        assert np.isfinite(task.encode(columns)).all()


def test_no_rows_encode_to_no_rows(task, week):
    nothing = {name: column[:0] for name, column in week.items()}
    assert task.encode(nothing).shape == (0, inputs.WIDTH)
    assert task.score(np.zeros(0), np.zeros(0)) == {}


def test_the_network_gives_one_logit_a_row_and_its_losses_one_value_each(task, week):
    network = task.build()
    assert {"fc1.weight", "fc2.weight", "head.weight"} < set(network.state_dict())
    output = network(torch.from_numpy(task.encode(week))[:50])
    target = torch.from_numpy((np.arange(50) % 2).astype(np.float32))
    assert output.shape == task.loss(output, target).shape == task.gate_loss(output, target).shape == (50,)
    answers = task.answer(output.detach().numpy())
    np.testing.assert_allclose(answers, torch.sigmoid(output).detach().numpy(), atol=1e-6)
    assert (task.answer(np.array([-1e4, 1e4])) == [0.0, 1.0]).all()


def test_the_gate_loss_is_bounded_and_the_training_loss_is_not(task):
    output, target = torch.tensor([-40.0, 40.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    np.testing.assert_allclose(task.gate_loss(output, target), -np.log([0.05, 0.95, 0.5]), rtol=1e-6)
    assert task.loss(output, target)[0] > 39


def test_fifteen_minutes_is_late_and_fourteen_is_not(task):
    assert task.target({"arr_delay": np.array([14, 15, -20], np.int32)}).tolist() == [0.0, 1.0, 0.0]


def test_scores_equal_their_definitions(task):
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = np.round(rng.normal(size=60), 1)  # rounded: ties
        truth = (rng.random(60) < 0.3).astype(np.float32)
        positive, negative = logits[truth > 0], logits[truth == 0]
        pairs = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
        figures = task.score(logits, truth)
        assert figures["auc"] == pytest.approx(pairs)
        assert figures["accuracy"] == pytest.approx(((logits > 0) == (truth > 0)).mean())
        expected = task.loss(torch.from_numpy(logits), torch.from_numpy(truth).double()).mean()
        assert figures["log_loss"] == pytest.approx(float(expected), abs=1e-6)
    assert "auc" not in task.score(np.zeros(3), np.ones(3))
