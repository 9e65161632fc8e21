"""The section [stream] of headgate.toml: where the log is, how it is reached, and what its topics hold.

What the keys mean is in docs/settings.md. Nothing is opened here, and no file is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.connection import check_access
from pipelines.secret import Secret

Values = Literal["json", "confluent"]


@dataclass(frozen=True)
class Stream:
    """Raises ValueError with value, limit and cure."""

    bootstrap_servers: str = ""
    client_properties: str = ""
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: Secret = Secret("")
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_key_password: Secret = Secret("")
    allow_insecure: bool = False
    events: str = "events"
    labels: str = "labels"
    predictions: str = "predictions"
    partitions: int = 3
    events_format: Values = "json"
    labels_format: Values = "json"
    cloudevents: bool = False
    headers: tuple[str, ...] = ()
    schema_registry: str = ""
    schema_registry_username: str = ""
    schema_registry_password: Secret = Secret("")
    schema_registry_cafile: str = ""
    max_reject_share: float = 0.01
    dead_letters: bool = False
    processes: int = 0

    def __post_init__(self) -> None:
        names = (self.events, self.labels, self.predictions)
        if len(set(names)) < len(names):
            raise ValueError(f"[stream] topics {', '.join(names)}: events, labels and predictions need three topics")
        if self.partitions < 1 or not 0.0 <= self.max_reject_share <= 1.0:
            found = f"partitions = {self.partitions}, max_reject_share = {self.max_reject_share}"
            raise ValueError(f"[stream] {found}: at least 1 partition and a share from 0 to 1 wanted")
        if self.processes < 0:
            raise ValueError(f"[stream] processes = {self.processes}: 0 (by the size of the window) or more wanted")
        if len(set(self.headers)) < len(self.headers) or "" in self.headers:
            raise ValueError(f"[stream] headers = {list(self.headers)}: names that differ and are not empty wanted")
        if "confluent" in (self.events_format, self.labels_format) and not self.schema_registry:
            raise ValueError('[stream] a format "confluent" needs schema_registry = "https://..."')
        if "PRIVATE KEY-----" in self.ssl_certfile + self.ssl_keyfile:
            raise ValueError("[stream] ssl_certfile or ssl_keyfile holds a private key: name a file with mode 0400 instead")
        check_access(self)
