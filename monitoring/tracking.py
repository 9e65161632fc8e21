"""MLflow as a picture of what the journal decided: one run and one logged model for each version, and the board as aliases.

The one place that imports MLflow, and only inside functions (2 to 7 CPU seconds). Nothing here is read back to decide
anything, and no pickle and no loader is written: the model is its safetensors and manifest, byte for byte. When MLflow
is down, locked or slow, `record_update` gives up after a bounded time and says so once; the caller goes on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeGuard

from monitoring.registry import VERSION_TAG, Releases, project

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

STANDARD_METRICS = (
    "accuracy",
    "f1",
    "auc",
    "log_loss",
    "calibration_error",
    "latency_p50_ms",
    "latency_p99_ms",
    "retention",
    "plasticity",
    "epsilon",
    "gradient_norm",
    "weight_delta",
)
STATE_TAG, MISSING_TAG = "headgate.state", "not_measured"
BATCH = 1000  # the most MLflow takes in one call
FLAVOR = "headgate_adapter"
PATIENCE_SECONDS = 60.0  # the first touch of an empty database makes its schema: 6 s on a quiet machine


class TelemetryOn(RuntimeError):
    """MLflow was imported with its telemetry on: nothing is recorded."""


@dataclass(frozen=True, slots=True)
class _Update:
    """What one call of `record_update` was given."""

    experiment: str
    version: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    curves: Mapping[str, Sequence[float | None]]
    files: Sequence[Path]


class Tracker:
    """Records updates at one tracking URL: `sqlite:///FILE`, `http://HOST:PORT`, or "" for nothing at all."""

    def __init__(self, url: str, *, patience: float = PATIENCE_SECONDS) -> None:
        self.url = url
        self._patience = patience
        self._client: MlflowClient | None = None
        self._busy: threading.Thread | None = None
        self._quiet = False

    def record_update(
        self,
        experiment: str,
        version: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float | None],
        *,
        curves: Mapping[str, Sequence[float | None]],
        files: Sequence[Path],
    ) -> str | None:
        """Record one version and return its run id; a version that is recorded already keeps its run.

        `metrics` are logged by name; standard ones that are absent, None or not finite are named in the tag
        `not_measured`. Each of `curves` is logged by step as `<name>_by_step`. `files` are the logged model. None when
        tracking is off, or when MLflow did not do it within `patience` seconds: then one warning is logged.
        """
        if not self.url:
            return None
        if self._busy is not None and self._busy.is_alive():
            return self._give_up(version, "an earlier call still waits for it")
        update = _Update(experiment, version, params, metrics, curves, files)
        outcome: list[str | Exception] = []
        # MLflow's own retries take minutes and cannot be bounded from outside: a thread that we stop waiting for.
        self._busy = threading.Thread(target=self._try, args=(update, outcome), name="mlflow", daemon=True)
        self._busy.start()
        self._busy.join(self._patience)
        if not outcome:
            return self._give_up(version, f"no answer within {self._patience:g} s")
        if isinstance(outcome[0], Exception):
            first_line = (str(outcome[0]).strip() or "no message").splitlines()[0]
            return self._give_up(version, f"{type(outcome[0]).__name__}: {first_line}")
        self._quiet = False
        return outcome[0]

    def show_releases(self, task: str, wanted: Releases) -> list[str]:
        """Make the model registry show the board, see `registry.project`. Raises whatever MLflow raises, and takes its time."""
        return project(self._connected(), task, wanted)

    def _give_up(self, version: str, cause: str) -> str | None:
        if not self._quiet:
            _log.warning(
                "MLflow at %s did not record version %s (%s): the journal has it and the pipeline goes on; further "
                "failures are not logged until one call succeeds. Check [tracking] mlflow_url, or set it to \"\"",
                self.url, version, cause,
            )  # fmt: skip
        self._quiet = True
        return None

    def _try(self, update: _Update, outcome: list[str | Exception]) -> None:
        try:
            client = self._connected()
            outcome.append(_record(client, _experiment(client, self.url, update.experiment), update))
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises is one more way of being down
            outcome.append(error)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            folder = _folder(self.url)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            from mlflow import MlflowClient
            from mlflow.telemetry import get_telemetry_client

            if get_telemetry_client() is not None:
                raise TelemetryOn("its telemetry is on: call monitoring.switches.silence before MLflow is imported")
            self._client = MlflowClient(tracking_uri=self.url, registry_uri=self.url)
        return self._client


def _folder(url: str) -> Path | None:
    """The folder of a SQLite database, absolute; None for another store."""
    prefix = "sqlite:///"
    return Path(url.removeprefix(prefix)).resolve().parent if url.startswith(prefix) else None


def _experiment(client: MlflowClient, url: str, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    folder = _folder(url)
    # Without a location MLflow would write ./mlruns into whatever folder the process was started in.
    location = None if folder is None else (folder / "mlflow-files" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _record(client: MlflowClient, experiment: str, update: _Update) -> str:
    found = client.search_runs([experiment], f"tags.`{VERSION_TAG}` = '{update.version}'", max_results=10)
    for run in found:
        if run.data.tags.get(STATE_TAG) == "complete":
            return str(run.info.run_id)
    for run in found:  # a call that was cut off halfway: once more from the start
        client.delete_run(run.info.run_id)
    logged = {name: float(value) for name, value in update.metrics.items() if _is_figure(value)}
    missing = [name for name in STANDARD_METRICS if name not in logged]
    tags = {VERSION_TAG: update.version, STATE_TAG: "incomplete", MISSING_TAG: ", ".join(missing)}
    run_id = str(client.create_run(experiment, tags=tags, run_name=update.version).info.run_id)
    model_id = _model(client, experiment, run_id, update) if update.files else None
    _log_figures(client, run_id, update, logged, model_id)
    client.set_tag(run_id, STATE_TAG, "complete")
    client.set_terminated(run_id)
    return run_id


def _is_figure(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _model(client: MlflowClient, experiment: str, run_id: str, update: _Update) -> str:
    """A logged model of the files as they are, with a flavour that no loader knows."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    name = update.version.replace(".", "-").replace("/", "-")
    model = client.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags={VERSION_TAG: update.version}, model_type="lora-adapter"
    )
    described = Model(run_id=run_id, model_uuid=model.model_id)
    tensors = next((file.name for file in update.files if file.suffix == ".safetensors"), "")
    described.add_flavor(FLAVOR, format="safetensors", data=tensors)
    with TemporaryDirectory() as folder:
        described.save(str(Path(folder) / "MLmodel"))
        for file in update.files:
            Path(folder, file.name).write_bytes(file.read_bytes())
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _log_figures(
    client: MlflowClient, run_id: str, update: _Update, logged: Mapping[str, float], model_id: str | None
) -> None:
    """Params, metrics and curves in as few calls as MLflow allows: a call a metric costs thirty times as much."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0, model_id=model_id) for name, value in logged.items()]
    metrics += [
        Metric(f"{name}_by_step", value, now, step)
        for name, values in update.curves.items()
        for step, value in enumerate(values)
        if _is_figure(value)
    ]
    params = [Param(name, str(value)) for name, value in update.params.items()]
    client.log_batch(run_id, metrics=metrics[:BATCH], params=params)
    for start in range(BATCH, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
