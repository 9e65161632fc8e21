"""The cut: which offsets belong to a window, on both kinds of log, and what is refused."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from assets.stream.embedded import EmbeddedLog
from assets.stream.log import Bounds, IdentityChanged, OffsetsGone, TopicBounds, Topics
from assets.windows.clock import NotDue, WindowPolicy, nth_window
from assets.windows.cut import Cut, CutRefused, decide_cut, next_due_window
from models.duration import parse_duration
from security.journal import Draft
from tests.windows import NOW, START, Stream, event, label, new_topics

TOPICS = Topics("e", "l", "p")
POLICY = WindowPolicy(timedelta(hours=1), START, timedelta(0), "stream")
WALL = WindowPolicy(timedelta(hours=1), START, timedelta(seconds=60), "wall")
W0, W1, W2 = "2024-01-01T00:00Z", "2024-01-01T01:00Z", "2024-01-01T02:00Z"


def found(topic, *parts, kind="CreateTime", after=None, topic_id="id", cluster="c"):
    """Bounds of a topic; a part is (earliest, latest, at) or (earliest, latest, at, last stable)."""
    partitions = {n: Bounds(p[0], p[1], p[3] if len(p) > 3 else p[1], p[2]) for n, p in enumerate(parts)}
    return TopicBounds(topic, f"{topic}-{topic_id}", cluster, partitions, kind, after)


def log_with(*parts, **kwargs):
    return {topic: found(topic, *parts, **kwargs) for topic in TOPICS.all}


def spans(cut, topic="e"):
    return dict(cut.topics[topic].partitions)


@pytest.fixture
def stream(event_log, tmp_path):
    return Stream(event_log, new_topics(event_log), tmp_path / "a")


def test_the_first_cut_begins_at_the_earliest_offsets_and_ends_where_the_next_window_begins():
    decided = decide_cut(None, log_with((5, 20, 12), (0, 7, None)), W0, POLICY, TOPICS)
    assert spans(decided) == {0: (5, 12), 1: (0, 7)}


def test_each_cut_begins_where_the_one_before_ended_whatever_the_time_stamps_say():
    first = decide_cut(None, log_with((0, 20, 12), (0, 7, None)), W0, POLICY, TOPICS)
    second = decide_cut(first, log_with((0, 20, 3), (0, 9, 8)), W1, POLICY, TOPICS)
    assert spans(second) == {0: (12, 12), 1: (7, 8)}


def test_a_new_partition_is_read_from_its_beginning():
    first = decide_cut(None, log_with((3, 20, 12)), W0, POLICY, TOPICS)
    second = decide_cut(first, log_with((3, 20, 15), (0, 4, 2)), W1, POLICY, TOPICS)
    assert spans(second) == {0: (12, 15), 1: (0, 2)}


def test_after_an_accepted_truncation_the_partition_begins_where_the_log_went_on():
    first = decide_cut(None, log_with((0, 20, 12), (0, 7, None)), W0, POLICY, TOPICS)
    second = decide_cut(first, log_with((0, 10, 9), (0, 9, 8)), W1, POLICY, TOPICS, {("e", 0): 8, ("l", 0): 8, ("p", 0): 8})
    assert spans(second) == {0: (8, 9), 1: (7, 8)}
    with pytest.raises(OffsetsGone, match=f"ends at offset 7, .*accept-gap {W1} --topic e --partition 0"):
        decide_cut(first, log_with((0, 7, None), (0, 9, 8)), W1, POLICY, TOPICS, {("e", 0): 8})


def test_time_stamps_that_step_back_stop_the_search_early_and_lose_nothing():
    """The old leader's clock was fast: its record at 4 answers for every window until its time."""
    log = log_with((0, 30, 4), kind="LogAppendTime")
    first = decide_cut(None, log, W0, WALL, TOPICS)
    second = decide_cut(first, log, W1, WALL, TOPICS)
    third = decide_cut(second, log_with((0, 30, 25), kind="LogAppendTime"), W2, WALL, TOPICS)
    assert [spans(cut)[0] for cut in (first, second, third)] == [(0, 4), (4, 4), (4, 25)]


def test_predictions_are_cut_at_the_high_watermark_under_the_streams_clock_and_by_time_under_the_walls():
    log = log_with((0, 20, 12), kind="LogAppendTime")
    assert spans(decide_cut(None, log, W0, WALL, TOPICS), "p") == {0: (0, 12)}
    assert spans(decide_cut(None, log_with((0, 20, 12)), W0, POLICY, TOPICS), "p") == {0: (0, 20)}


def test_an_open_transaction_below_the_end_holds_the_window_back_and_one_above_does_not():
    with pytest.raises(NotDue, match=r"open transaction in 'e' partition 0: offsets from 10 .* ends at 12"):
        decide_cut(None, log_with((0, 20, 12, 10)), W0, POLICY, Topics("e", "l", "l"))
    assert spans(decide_cut(None, log_with((0, 12, 12, 12)), W0, POLICY, TOPICS)) == {0: (0, 12)}


@pytest.mark.parametrize(
    ("changed", "names"),
    [({"topic_id": "other"}, ("e-id", "e-other")), ({"cluster": "d"}, ("cluster c", "it is d"))],
)
def test_another_topic_or_cluster_stops_with_both_names(changed, names):
    first = decide_cut(None, log_with((0, 20, 12)), W0, POLICY, TOPICS)
    with pytest.raises(IdentityChanged) as stopped:
        decide_cut(first, log_with((0, 20, 15), **changed), W1, POLICY, TOPICS)
    assert all(name in str(stopped.value) for name in names)


def test_a_partition_that_vanished_and_a_log_that_shrank_stop():
    first = decide_cut(None, log_with((0, 20, 12), (0, 4, 2)), W0, POLICY, TOPICS)
    with pytest.raises(IdentityChanged, match="lost partition 1"):
        decide_cut(first, log_with((0, 20, 15)), W1, POLICY, TOPICS)
    with pytest.raises(OffsetsGone, match="ends at offset 8, the last cut ended at 12"):
        decide_cut(first, log_with((0, 8, None), (0, 4, 2)), W1, POLICY, TOPICS)


def test_a_topic_name_changed_in_the_settings_stops():
    first = decide_cut(None, log_with((0, 20, 12)), W0, POLICY, TOPICS)
    renamed = {name: found(name, (0, 20, 15)) for name in ("e", "l", "q")}
    with pytest.raises(IdentityChanged, match="'q' is not in the cut"):
        decide_cut(first, renamed, W1, POLICY, Topics("e", "l", "q"))


def test_no_window_is_skipped_and_the_grid_of_a_running_task_does_not_change():
    with pytest.raises(CutRefused, match=f"cannot be the first cut: start with {W0}"):
        decide_cut(None, log_with((0, 20, 12)), W1, POLICY, TOPICS)
    first = decide_cut(None, log_with((0, 20, 12)), W0, POLICY, TOPICS)
    with pytest.raises(CutRefused, match="does not follow"):
        decide_cut(first, log_with((0, 20, 12)), W2, POLICY, TOPICS)
    third = decide_cut(first, log_with((0, 20, 12)), W1, POLICY, TOPICS)
    for every, cut_before, follows in (("30m", first, "2024-01-01T01:00Z"), ("2h", third, "2024-01-01T02:00Z")):
        policy = replace(POLICY, every=parse_duration(every))
        told = rf'window\.every = "{every}", but window {cut_before.window} was cut with "1h": .*write that, or start a new'
        with pytest.raises(CutRefused, match=told):
            decide_cut(cut_before, log_with((0, 20, 12)), follows, policy, TOPICS)


@pytest.mark.parametrize(("after", "shown"), [(None, "no limit"), (3_600_000, "3600000 ms")])
def test_the_walls_clock_refuses_time_stamps_that_may_run_ahead_of_the_grace(after, shown):
    with pytest.raises(CutRefused, match=rf"{shown} > window.grace = 60000 ms: set .*=LogAppendTime"):
        decide_cut(None, log_with((0, 20, 12), after=after), W0, WALL, TOPICS)
    assert decide_cut(None, log_with((0, 20, 12), after=60_000), W0, WALL, TOPICS)
    assert decide_cut(None, log_with((0, 20, 12), kind="LogAppendTime"), W0, WALL, TOPICS)


def test_the_streams_clock_refuses_topics_stamped_by_the_broker_but_for_predictions():
    log = log_with((0, 20, 12), kind="LogAppendTime")
    with pytest.raises(CutRefused, match="CreateTime"):
        decide_cut(None, log, W0, POLICY, TOPICS)
    assert decide_cut(None, log_with((0, 20, 12)) | {"p": log["p"]}, W0, POLICY, TOPICS)


def test_a_cut_survives_the_journal():
    decided = decide_cut(None, log_with((5, 20, 12), *[(0, 7, None)] * 10), W0, POLICY, TOPICS)
    assert Cut.of(decided.body()) == decided
    assert Cut.of(decided.body()).digest() == decided.digest()


def test_records_go_to_the_window_of_their_time_and_late_ones_to_the_next(stream):
    stream.publish(event("a", 10, 0), event("b", 70, 0), event("late", 20, 0), event("c", 130, 0))
    stream.publish(label("a", 30), label("b", 130))
    stream.end(180)
    cuts = [stream.cut(number) for number in range(3)]
    assert [spans(cut, stream.topics.events)[0] for cut in cuts] == [(0, 1), (1, 3), (3, 4)]
    assert [entry.body for entry in stream.history.journal.read("cut/delays")] == [cut.body() for cut in cuts]


def test_a_window_waits_until_both_topics_have_passed_it(stream):
    stream.publish(event("a", 10), event("b", 70))
    with pytest.raises(NotDue, match="events and labels"):
        stream.cut(0)
    assert next_due_window(stream.history, stream.log, stream.policy, stream.topics, now=NOW) is None
    stream.publish(label("a", 60))
    assert next_due_window(stream.history, stream.log, stream.policy, stream.topics, now=NOW) == W0
    assert stream.cut(0).window == W0
    with pytest.raises(NotDue):
        stream.cut(1)


def test_grace_makes_the_window_wait_longer(stream):
    stream.policy = replace(stream.policy, grace=timedelta(minutes=5))
    stream.publish(event("a", 64), label("a", 64))
    with pytest.raises(NotDue):
        stream.cut(0)
    stream.publish(event("b", 65), label("b", 65))
    assert stream.cut(0)


def test_a_window_that_is_cut_stays_as_it_is(stream):
    stream.publish(event("a", 10), label("a", 70))
    stream.end(60)
    decided = stream.cut(0)
    stream.publish(event("late", 11))
    assert stream.cut(0) == decided
    assert stream.history.journal.length("cut/delays") == 1


def test_the_next_due_window_is_the_earliest_that_is_not_sealed(stream):
    def due():
        return next_due_window(stream.history, stream.log, stream.policy, stream.topics, now=NOW)

    stream.publish(event("a", 10), label("a", 70))
    stream.end(120)
    assert due() == W0
    stream.cut(0)
    stream.cut(1)
    stream.seal(1)
    assert due() == W0
    stream.seal(0)
    assert due() is None


def test_the_next_window_is_found_without_walking_from_the_first_again(stream):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw, done = random.Random(seed), set()
    stream.end(60 * 50)
    while len(done) < 40:
        name = nth_window(stream.policy, draw.randrange(45))
        if name not in done:
            draft = Draft("window/delays", "window.sealed", {"window": name})
            stream.history.journal.append(draft, actor="test", at=NOW)
            done.add(name)
        wanted = next(each for number in range(50) if (each := nth_window(stream.policy, number)) not in done)
        assert next_due_window(stream.history, stream.log, stream.policy, stream.topics, now=NOW) == wanted


def test_one_wrong_time_in_one_topic_makes_nothing_due(stream):
    stream.publish(event("a", 10), event("wrong", 10**6), label("a", 20))
    with pytest.raises(NotDue, match="events and labels"):
        stream.cut(0)


def test_wrong_times_in_both_topics_make_nothing_due_beyond_now(tmp_path):
    """Kafka from 4.0 on refuses them itself (message.timestamp.after.max.ms is an hour there)."""
    log = EmbeddedLog(tmp_path / "log.db")
    stream = Stream(log, new_topics(log), tmp_path / "a")
    stream.publish(event("a", 10), event("wrong", 10**8), label("a", 20), label("wrong", 10**8))  # 190 years ahead
    now = START + timedelta(hours=1, minutes=30)
    assert stream.cut(0, now=now)
    with pytest.raises(NotDue, match="after now"):
        stream.cut(1, now=now)


def test_a_record_with_a_wrong_clock_that_hides_those_behind_it_is_named(stream):
    stream.publish(event("a", 10, 0), event("wrong", 60 * 200, 0), *(event(f"{n}", 11 + n, 0) for n in range(20)))
    stream.end(180)
    assert spans(stream.cut(0), stream.topics.events)[0] == (0, 1)
    with pytest.raises(CutRefused, match=r"partition 0 offset 1 is stamped .* most of the 20 records behind it"):
        stream.cut(1)


@pytest.mark.parametrize("behind", [[*range(12000, 12030)], [30, 12001, 12002, 12003, 12004, *range(12005, 12015)], [30]])
def test_a_quiet_time_is_not_a_wrong_clock_even_with_a_late_record_after_it(stream, behind):
    stream.publish(event("a", 10, 0), event("monday", 12000, 0), *(event(f"{n}", m, 0) for n, m in enumerate(behind)))
    stream.end(13000)
    cuts = [stream.cut(number) for number in range(3)]
    assert [spans(cut, stream.topics.events)[0] for cut in cuts] == [(0, 1), (1, 1), (1, 1)]


@pytest.fixture
def walls(event_log, tmp_path):
    """A stream stamped by its log's clock, in windows of a week that begin today."""
    names = Topics(*(f"{topic}-wall" for topic in new_topics(event_log).all))
    for name in names.all:
        event_log.create_topic(name, 1, timestamp_type="LogAppendTime")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Stream(event_log, names, tmp_path / "a", policy=WindowPolicy(timedelta(days=7), today))


def test_a_host_whose_clock_runs_ahead_cuts_early_and_the_next_window_has_the_rest(walls):
    """And when its clock is put right, it waits: the window after is due by the true time."""
    fast = walls.policy.start + timedelta(days=7, seconds=60)
    walls.publish(event("before", 1))
    early = walls.cut(0, now=fast)
    walls.publish(event("of the same window", 2))
    with pytest.raises(NotDue):
        walls.cut(1, now=datetime.now(UTC))
    later = walls.cut(1, now=fast + timedelta(days=7))
    assert [spans(cut, walls.topics.events)[0] for cut in (early, later)] == [(0, 1), (1, 2)]


def test_by_the_wall_the_topics_of_the_brokers_clock_are_cut(event_log, tmp_path):
    topics = new_topics(event_log)
    wall = Topics(*(f"{topic}-wall" for topic in topics.all))
    for topic in wall.all:
        event_log.create_topic(topic, 1, timestamp_type="LogAppendTime")
    stream = Stream(event_log, wall, tmp_path / "a", policy=WindowPolicy(timedelta(days=7), START))
    stream.publish(event("a", 10), label("a", 20))
    with pytest.raises(NotDue) as early:
        stream.cut(0, now=START + timedelta(days=7))
    assert early.value.when == START + timedelta(days=7, seconds=60)
    decided = stream.cut(0, now=early.value.when)
    assert spans(decided, wall.events) == {0: (0, 0)}  # the broker stamped it today, years after this window


def test_two_that_race_to_cut_make_one_cut(tmp_path):
    log = EmbeddedLog(tmp_path / "log.db")
    topics = new_topics(log)
    Stream(log, topics, tmp_path / "a").end(600)
    racers = [Stream(EmbeddedLog(tmp_path / "log.db"), topics, tmp_path / "a") for _ in range(6)]
    gate, cuts = threading.Barrier(len(racers)), []

    def race(racer):
        for number in range(10):
            gate.wait()
            racer.publish(event(f"{number}", number * 60 + 1))  # so that each would cut elsewhere
            cuts.append((number, racer.cut(number)))

    threads = [threading.Thread(target=race, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journalled = [entry.body for entry in racers[0].history.journal.read("cut/delays")]
    assert len(journalled) == 10
    assert len(cuts) == 60
    assert all(cut.body() == journalled[number] for number, cut in cuts)
