"""MLflow as a projection: one run a version, exact files, no loader; and when it is away, nothing waits for long."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from monitoring.switches import SWITCHES, silence
from monitoring.tracking import STANDARD_METRICS, Tracker

silence(os.environ)  # as pipelines/settings.py does, before MLflow is imported

CURVES = {"loss": [0.6, None, 0.5], "gradient_norm": [float(step) for step in range(1500)]}
FIGURES = {"accuracy": 0.8, "epsilon": 0.5, "gradient_norm": 14.2, "auc": None, "f1": float("nan")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def tracker(place):
    """One database for the module: making MLflow's schema takes seconds."""
    return Tracker(f"sqlite:///{place}/not/there/yet/mlflow.db", patience=300)


@pytest.fixture(scope="module")
def client(tracker):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracker.url)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    (tmp_path / "adapter.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "manifest.json").write_text('{"version":1}')
    return sorted(tmp_path.glob("*.*"))


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    """Every address a socket of this process was asked to reach: none may lie outside this machine."""
    asked = []
    real = socket.socket.connect

    def connect(self, address):
        asked.append(address)
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield asked
    assert [address for address in asked if address[0] != "127.0.0.1"] == []


def _record(tracker, version, files=(), **given):
    params = {"r": 16, "parent": "base-1a2b3c4d"}
    return tracker.record_update("flights", version, params, FIGURES | given, curves=CURVES, files=files)


def test_an_update_is_one_run_with_its_figures_curves_and_what_was_not_measured(tracker, client):
    run = client.get_run(_record(tracker, "v000001-aaaaaaaa"))
    assert run.data.params == {"r": "16", "parent": "base-1a2b3c4d"} and run.info.status == "FINISHED"
    measured = {name: value for name, value in run.data.metrics.items() if not name.endswith("_by_step")}
    assert measured == {"accuracy": 0.8, "epsilon": 0.5, "gradient_norm": 14.2}
    missing = run.data.tags["not_measured"].split(", ")
    assert len(STANDARD_METRICS) == 12 and set(missing) | set(measured) == set(STANDARD_METRICS)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss_by_step")] == [0, 2]
    assert len(client.get_metric_history(run.info.run_id, "gradient_norm_by_step")) == 1500


def test_the_model_is_the_files_byte_for_byte_and_no_loader_opens_it(tracker, client, files, tmp_path):
    import mlflow

    run_id = _record(tracker, "v000002-bbbbbbbb", files)
    experiment = client.get_experiment_by_name("flights").experiment_id
    (model,) = client.search_logged_models([experiment], filter_string="name = 'v000002-bbbbbbbb'")
    assert model.source_run_id == run_id and str(model.status) in ("READY", "LoggedModelStatus.READY")
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(path.name for path in stored.iterdir()) == ["MLmodel", "adapter.safetensors", "manifest.json"]
    assert (stored / "adapter.safetensors").read_bytes() == files[0].read_bytes()
    text = (stored / "MLmodel").read_text()
    assert "loader_module" not in text and "pickle" not in text and "python_function" not in text
    mlflow.set_tracking_uri(tracker.url)
    with pytest.raises(mlflow.MlflowException, match="python_function"):
        mlflow.pyfunc.load_model(f"models:/{model.model_id}")


def test_a_second_call_for_a_version_finds_its_run(tracker, client):
    first = _record(tracker, "v000003-cccccccc")
    assert _record(tracker, "v000003-cccccccc", accuracy=0.9) == first
    assert client.get_run(first).data.metrics["accuracy"] == 0.8


def test_a_run_that_was_cut_off_is_made_again(tracker, client):
    experiment = client.get_experiment_by_name("flights").experiment_id
    tags = {"headgate.version": "v000004-dddddddd", "headgate.state": "incomplete"}
    half = client.create_run(experiment, tags=tags).info.run_id
    whole = _record(tracker, "v000004-dddddddd")
    assert whole != half and client.get_run(half).info.lifecycle_stage == "deleted"


def test_nothing_is_written_into_the_working_folder(tracker, place, files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _record(tracker, "v000005-eeeeeeee", files)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)
    assert (place / "not/there/yet/mlflow-files/flights").is_dir()


def test_no_url_means_no_tracking_and_no_import():
    assert Tracker("").record_update("flights", "v1", {}, {}, curves={}, files=[]) is None


def test_a_locked_database_costs_a_bounded_time_and_one_warning(tracker, caplog):
    database = tracker.url.removeprefix("sqlite:///")
    impatient = Tracker(tracker.url, patience=1.0)
    lock = sqlite3.connect(database)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        start = time.monotonic()
        assert _record(impatient, "v000006-ffffffff") is None
        assert _record(impatient, "v000007-ffffffff") is None
        assert time.monotonic() - start < 4
    finally:
        lock.rollback()
        lock.close()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "monitoring.tracking"]
    assert "did not record version v000006-ffffffff" in warning and "[tracking] mlflow_url" in warning
    impatient._busy.join(60)
    assert _record(Tracker(tracker.url, patience=300), "v000007-ffffffff") is not None


def test_a_server_that_is_not_there_costs_a_bounded_time(caplog):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        away = Tracker(f"http://127.0.0.1:{held.getsockname()[1]}", patience=1.0)
    start = time.monotonic()
    assert _record(away, "v000001-aaaaaaaa") is None
    assert time.monotonic() - start < 3 and "did not record" in caplog.text


def test_telemetry_is_off_in_every_library_that_has_some():
    from mlflow.telemetry import get_telemetry_client

    assert get_telemetry_client() is None
    environ = {"DO_NOT_TRACK": "0", "PATH": "/bin"}
    silence(environ)
    assert environ == {"PATH": "/bin", **SWITCHES}
