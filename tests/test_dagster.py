"""The Dagster location: the same steps by hand and by sensor, over a chain of windows, an outage and a quiet week."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from assets.checks import CHECKS
from assets.definitions import UPSTREAM, window_assets
from assets.partitions import cron, window_partitions
from assets.steps import STEPS
from assets.windows.clock import WindowPolicy, window_bounds
from pipelines import resources
from pipelines.attempts import Attempts, attempts_of, next_attempt
from pipelines.run_window import due_window
from tests.worlds import START, make_world

ROOT = Path(__file__).parents[1]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An installation in its own folder, and the location loaded from its settings file as `dagster dev` would."""
    made = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADGATE_CONFIG", str(tmp_path / "headgate.toml"))
    resources._workspace.cache_clear()
    module = importlib.reload(importlib.import_module("pipelines.definitions"))
    made.defs = module.defs
    return made


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(world, instance, window):
    job = world.defs.resolve_job_def("window_job")
    return job.execute_in_process(partition_key=window, instance=instance, raise_on_error=False)


def tick(world, instance):
    defs = world.defs
    context = dg.build_sensor_context(
        instance=instance, repository_def=defs.get_repository_def(), resources=dict(defs.resources)
    )
    return world.defs.get_sensor_def("next_due_window").evaluate_tick(context)


def test_every_step_is_an_asset_of_the_same_name_in_the_same_order():
    names = [name for name, _ in STEPS]
    assert [a.key.path[-1] for a in window_assets(window_partitions(WindowPolicy(timedelta(days=1), START)))] == names
    assert list(UPSTREAM) == names
    assert all(names.index(up) < names.index(name) for name, ups in UPSTREAM.items() for up in ups)


def test_three_chained_partitions_materialise_everything_and_pass_their_checks(world, instance):
    world.publish(3)
    for day in range(3):
        result = run(world, instance, world.window(day))
        assert result.success
        made = [event.asset_key.path[-1] for event in result.get_asset_materialization_events()]
        assert sorted(made) == sorted(name for name, _ in STEPS)
        checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
        assert set(checks) == set(CHECKS) and checks["completeness"] and checks["budget"] and checks["guard"]
    assert due_window(world.again()) is None
    versions = world.workspace.lineage().versions
    assert [body["windows"] for body in versions.values()] == [[world.window(0), world.window(1)]]


def test_a_window_without_a_due_update_says_so_and_is_complete(world, instance):
    world.publish(1)
    result = run(world, instance, world.window(0))
    adapter = next(e for e in result.get_asset_materialization_events() if e.asset_key.path[-1] == "adapter")
    assert adapter.materialization.metadata["reason"].value.startswith("not due: ")
    assert result.success


def test_a_repeated_run_gives_the_same_data_version(world, instance):
    world.publish(1)
    versions = []
    for _ in range(2):
        result = run(world, instance, world.window(0))
        events = result.get_asset_materialization_events()
        versions.append({e.asset_key.path[-1]: e.materialization.tags["dagster/data_version"] for e in events})
    assert {k: v for k, v in versions[0].items() if k != "rollout"} == {k: v for k, v in versions[1].items() if k != "rollout"}


def test_the_sensor_asks_for_the_next_due_window_and_never_twice_at_once(world, instance):
    assert "no window is due" in tick(world, instance).skip_message
    world.publish(1)
    request = tick(world, instance).run_requests[0]
    assert (request.partition_key, request.run_key) == (world.window(0), f"{world.window(0)}#1")
    assert "the next is at" in tick(world, instance).skip_message, "the attempt was counted: nobody begins it twice"


def test_after_an_outage_the_window_is_asked_for_again_under_a_new_key(world, instance):
    world.publish(1)
    tick(world, instance)
    bases = world.folder / "store" / "blobs" / "bases"
    bases.rename(world.folder / "away")  # the base cannot be read: the run fails loudly
    assert not run(world, instance, world.window(0)).success
    (world.folder / "away").rename(bases)
    attempts = attempts_of(world.journal, "blobs", world.window(0))
    attempt, _ = next_attempt(attempts, attempts.last + timedelta(minutes=2), running=False)
    assert attempt == 2
    resources._workspace.cache_clear()
    assert run(world, instance, world.window(0)).success


@pytest.mark.parametrize(
    ("count", "minutes_later", "running", "attempt"),
    [
        (0, 0, False, 1), (1, 0.5, False, 0), (1, 1, False, 2), (2, 1.5, False, 0), (2, 2, False, 3), (9, 60, False, 10),
        (1, 99, True, 0),
    ],
)
def test_each_failed_attempt_waits_longer_than_the_one_before(count, minutes_later, running, attempt):
    attempts = Attempts(count, START) if count else Attempts()
    found, reason = next_attempt(attempts, START + timedelta(minutes=minutes_later), running=running)
    assert found == attempt and bool(reason) == (not attempt)


@pytest.mark.parametrize(
    ("every", "expression"),
    [
        (timedelta(days=1), "0 8 * * *"),
        (timedelta(hours=6), "0 2,8,14,20 * * *"),
        (timedelta(minutes=15), "0,15,30,45 * * * *"),
        (timedelta(days=7), "0 8 * * 4"),
    ],
)
def test_partitions_have_the_edges_of_the_windows(every, expression):
    policy = WindowPolicy(every, START + timedelta(hours=8))
    assert cron(policy) == expression
    partitions = window_partitions(policy)
    for key in partitions.get_partition_keys(START + timedelta(days=30))[:40]:
        window = partitions.time_window_for_partition_key(key)
        start, end = window_bounds(policy, key)
        assert (window.start.timestamp(), window.end.timestamp()) == (start.timestamp(), end.timestamp())


def test_a_length_that_dagster_cannot_say_is_refused_with_the_other_driver():
    with pytest.raises(ValueError, match="headgate worker"):
        cron(WindowPolicy(timedelta(minutes=90), START))


def test_the_location_loads_without_torch_or_any_other_heavy_library(tmp_path):
    world = make_world(tmp_path)
    heavy = ["torch", "opacus", "mlflow", "evidently", "dp_accounting", "pandas", "sklearn"]
    code = f"import sys, pipelines.definitions; print([name for name in {heavy} if name in sys.modules])"
    environ = {**os.environ, "HEADGATE_CONFIG": str(world.folder / "headgate.toml")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_definitions_are_loadable(world):
    dg.Definitions.validate_loadable(world.defs)
    assert dataclasses.is_dataclass(world.settings)
