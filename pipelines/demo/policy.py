"""The settings of the demo: what a team with daily windows and weekly updates would write, and why each differs.

A function of a folder, no environment, no file: the demo must do the same on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.demo.story import Story
from pipelines.settings import Settings, make_settings

TASK = "pipelines.demo.flights:FlightDelay"


def demo_settings(
    folder: Path, *, bootstrap_servers: str = "", tracking: bool = True, min_requests: int | None = None
) -> Settings:
    """The effective settings of a demo whose files are under `folder`."""
    story = Story()
    rollout: dict[str, Any] = {
        # 10 %, 50 %, 100 %, two days each and two of baking: the canary is about errors and latency here, since a
        # prediction does not change whether a flight is late; the quality test is the paired shadow.
        "steps": ["shadow", 10, 50, 100],
        "min_hold": "2d",
        "bake": "2d",
        "max_age": "28d",
    }
    if min_requests is not None:
        rollout["min_requests"] = min_requests
    return make_settings(
        {
            "task": TASK,
            "store": {"url": str(folder / "store")},
            "journal": {"url": f"sqlite:///{folder / 'journal.db'}"},
            "keys": {"directory": str(folder / "keys")},
            "stream": {"bootstrap_servers": bootstrap_servers, "events": "flights", "labels": "arrivals"},
            "window": {"every": "1d", "start": story.start, "clock": "stream"},
            "update": {"every": "7d", "min_examples": 5000, "max_age": "7d"},
            "adapter": {"r": 8, "lora_alpha": 16.0},
            # Settled on this year's data, as docs/tutorial.md says: a clip of 1 would lose .16 nats without any noise.
            "training": {"learning_rate": 0.03, "lr_decay": 1.0},
            "privacy": {"label_derived_public": True},
            "rollout": rollout,
            "tracking": {"mlflow_url": f"sqlite:///{folder / 'mlflow.db'}" if tracking else ""},
            "gateway": {"port": 0},
            "dashboard": {"port": 0},
        },
        "the demo's settings",
    )
