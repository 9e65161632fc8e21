"""The record of an answer the gateway gave: what the predictions topic carries, one JSON object for each request.

The gateway writes them, the canary's guardrails read them. `event_id` is the join key, `at` the wall clock of the
answer. This file does not know how a request is routed.
"""

from __future__ import annotations

import pyarrow as pa

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),  # what the traffic is split by
        pa.field("epoch", pa.int64(), nullable=False),  # of the routing that chose the arm
        pa.field("arm", pa.string(), nullable=False),  # "stable" or "canary"
        pa.field("propensity", pa.float64(), nullable=False),  # probability of this arm when it was chosen
        pa.field("version", pa.string(), nullable=False),
        pa.field("score", pa.float64()),  # null: the request failed
        pa.field("shadow_version", pa.string()),
        pa.field("shadow_score", pa.float64()),
        pa.field("latency_ms", pa.float64(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
