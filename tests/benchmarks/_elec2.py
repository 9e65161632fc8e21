"""Elec2 as a Task: will the price of electricity in New South Wales be above its mean of the last day? One row in 30 minutes,
May 1996 to December 1998 (Harries 1999; OpenML 151).

The label is exactly `price > mean of the last 48 prices`, so that whoever shows the price to a model shows it the label: price
and date stay out. What is made here of other rows is made of demand alone, so no column holds another record's label. The
data are not part of the checkout; who wants the figures brings the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_A_DAY = 48
SECONDS_A_ROW = 1800
HISTORY_ROWS = 17_424  # until then the three columns of Victoria are constant: the state joined the market in May 1997
LAGS = (1, ROWS_A_DAY, 7 * ROWS_A_DAY)
CHANGES = tuple(f"demand_change_{lag}" for lag in LAGS)
# usual value and unit of each, by hand: nothing is fitted on the stream
SCALES = {
    "demand": (0.42, 0.16), "vic_price": (0.0035, 0.002), "vic_demand": (0.42, 0.12), "transfer": (0.5, 0.15),
    **dict.fromkeys(CHANGES, (0.0, 0.05)), "demand_less_mean": (0.0, 0.16),
}  # fmt: skip
Columns = Mapping[str, np.ndarray]


class Elec2:
    """A network of 63-64-32-1 on time of day, weekday, demand, and what Victoria does; labels come a day late."""

    name = "elec2"
    subject: str | None = None
    event = pa.schema([
        ("event_id", pa.string()), ("half_hour", pa.int64()), ("weekday", pa.int64()),
        *((name, pa.float64()) for name in SCALES),
    ])  # fmt: skip
    label = pa.schema([("event_id", pa.string()), ("up", pa.int64())])
    label_horizon = timedelta(seconds=ROWS_A_DAY * SECONDS_A_ROW)
    label_seen = "always"
    negative_if_absent = False
    label_derived: tuple[str, ...] = ()

    def build(self) -> Any:
        """fc1, fc2, head; called with (n, 63), gives one logit a row, (n,)."""
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc1, self.fc2, self.head = nn.Linear(ROWS_A_DAY + 7 + len(SCALES), 64), nn.Linear(64, 32), nn.Linear(32, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                logit: torch.Tensor = self.head(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
                return logit.squeeze(-1)

        return Net()

    def encode(self, columns: Columns) -> np.ndarray:
        """(n, 63) float32, each number cut to [-5, 5]."""
        half_hours = columns["half_hour"][:, None] == np.arange(ROWS_A_DAY)
        days = columns["weekday"][:, None] == np.arange(7)
        numbers = [np.clip((columns[name] - usual) / unit, -5, 5) for name, (usual, unit) in SCALES.items()]
        return np.column_stack([half_hours, days, *numbers]).astype(np.float32)

    def target(self, columns: Columns) -> np.ndarray:
        return columns["up"].astype(np.float32)

    def loss(self, output: Any, target: Any) -> Any:
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(output, target, reduction="none")

    def gate_loss(self, output: Any, target: Any) -> Any:
        p = output.sigmoid().clamp(0.05, 0.95)
        return -(target * p.log() + (1 - target) * (1 - p).log())

    def answer(self, output: np.ndarray) -> np.ndarray:
        return np.asarray(0.5 * (1 + np.tanh(np.asarray(output, float) / 2)))

    def score(self, output: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean((output > 0) == (target > 0.5)))} if len(target) else {}


def read(path: Path) -> dict[str, np.ndarray]:
    """The file's rows as columns of event and label, in its order, which is that of time."""
    table = pq.read_table(path, columns=["day", "period", "nswdemand", "vicprice", "vicdemand", "transfer", "y"])
    found = {name: table.column(name).to_numpy() for name in table.column_names}
    demand = found["nswdemand"]
    changes = {name: _change(demand, lag) for name, lag in zip(CHANGES, LAGS, strict=True)}
    sums = np.cumsum(np.concatenate([np.zeros(ROWS_A_DAY), demand]))
    seen = np.minimum(np.arange(1, len(demand) + 1), ROWS_A_DAY)
    mean = (sums[ROWS_A_DAY:] - sums[:-ROWS_A_DAY]) / seen
    return {
        "event_id": np.array([f"row-{row}" for row in range(len(demand))]),
        "half_hour": np.rint(found["period"] * (ROWS_A_DAY - 1)).astype(np.int64), "weekday": found["day"] - 1,
        "demand": demand, "vic_price": found["vicprice"], "vic_demand": found["vicdemand"], "transfer": found["transfer"],
        **changes, "demand_less_mean": demand - mean, "up": found["y"].astype(np.int64),
    }  # fmt: skip


def _change(values: np.ndarray, lag: int) -> np.ndarray:
    """Against the value `lag` rows before; 0 where there is none."""
    return np.concatenate([np.zeros(min(lag, len(values))), values[lag:] - values[:-lag]])
