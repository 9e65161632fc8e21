"""How the Kafka clients are set up, and why so. This file opens no connection."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import kafka.record.util

from assets.stream.log import MAX_RECORD_BYTES

# Framing of a record inside a request: headers, lengths, batch header. The limits leave room for it.
FRAMING_BYTES = 64 << 10
# What one answer may hold. The next smaller one is asked for when an answer does not arrive in time: with 7 seconds of
# patience these are links of 1.2 MB/s, 150 and 38 kB/s. Few steps, as each of them costs the time limit once.
FETCH_BYTES = (8 << 20, 1 << 20, 256 << 10)

logging.getLogger("kafka").addHandler(logging.NullHandler())  # else Python prints its warnings on stderr, unasked


def check_client() -> None:
    """Refuse kafka-python's silent fall-back to a CRC in Python: 10,000 instead of 246,000 records/s of 1 KB."""
    if kafka.record.util.crc32c_c is None:
        raise ImportError(
            "the crc32c wheel is missing, without it kafka-python reads 10 to 25 times slower: `pip install crc32c`"
        )
    logger = logging.getLogger("kafka")
    if logger.level < logging.INFO:  # also when none is set: the root's may be lowered to DEBUG later
        logger.setLevel(logging.INFO)  # its DEBUG lines hold whole frames, credentials included


def shared_settings(bootstrap_servers: str, limit_ms: int, client: Mapping[str, Any]) -> dict[str, Any]:
    """For every client. client: what the user has set, such as `security_protocol`; it wins."""
    return {
        "bootstrap_servers": [server.strip() for server in bootstrap_servers.split(",")],
        "client_id": "headgate",
        "bootstrap_timeout_ms": limit_ms,
        "request_timeout_ms": limit_ms,
        "metadata_max_age_ms": 60_000,
        "reconnect_backoff_max_ms": 500,  # the default, 30 s, makes a broker that is back look dead
        **client,
    }


def consumer_settings(fetch_bytes: int) -> dict[str, Any]:
    """fetch_bytes: at most so many in an answer, one record batch at least."""
    return {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # the default, "latest", loses records silently
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,  # a misspelt name must not create a topic
        "check_crcs": True,
        "metrics_enabled": False,
        # One fetch is in flight for a broker, so a partition moves one fetch at a time: large fetches, few round trips.
        "max_poll_records": 10**9,
        "max_partition_fetch_bytes": fetch_bytes,
        "fetch_max_bytes": 64 << 20,
        "receive_message_max_bytes": 128 << 20,
        "fetch_max_wait_ms": 200,
    }


def producer_settings(limit_ms: int) -> dict[str, Any]:
    return {
        "enable_idempotence": True,
        "acks": "all",
        "compression_type": "lz4",
        "batch_size": 256 << 10,
        "linger_ms": 5,
        "max_request_size": MAX_RECORD_BYTES + FRAMING_BYTES,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        "delivery_timeout_ms": limit_ms + 1000,
        "max_block_ms": limit_ms,
    }
