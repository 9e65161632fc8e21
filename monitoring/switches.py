"""The switches that stop libraries from phoning home, in one list.

It does not touch the process environment itself: `pipelines/settings.py` passes it in, before anything heavy is
imported (MLflow decides at import). It does not know what the libraries would have sent.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from types import MappingProxyType

# MLflow reads DO_NOT_TRACK only as the word "true"; Evidently reads any value; Dagster any value of its own name.
SWITCHES = MappingProxyType(
    {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }
)


def silence(environ: MutableMapping[str, str]) -> None:
    """Turn every telemetry switch off in `environ`, whatever it said before."""
    environ.update(SWITCHES)
