"""The reader's connections take what is there in few calls."""

import socket

from assets.stream import wide_reads
from assets.stream.kafka import KafkaLog
from assets.stream.log import Outgoing
from assets.stream.wide_reads import WideSocket

T0 = 1_700_000_000_000


def test_a_wide_socket_gives_more_than_it_is_asked_for_and_is_a_socket_otherwise():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x" * 50_000)
        wide = WideSocket(ours)
        assert wide.recv(10) == b"x" * 50_000 and wide.fileno() == ours.fileno()


def test_the_reader_of_a_broker_reads_by_wide_sockets(kafka, topic, monkeypatch):
    sizes = []

    class Counting(WideSocket):
        def recv(self, size):
            data = super().recv(size)
            sizes.append(len(data))
            return data

    monkeypatch.setattr(wide_reads, "WideSocket", Counting)
    log = KafkaLog(kafka)
    log.create_topic(topic, 1)
    log.append(topic, [Outgoing(b"%d" % n, bytes([n]) * 1000 + n.to_bytes(4) * 20_000, T0) for n in range(30)])
    assert [record.key for batch in log.read(topic, 0, 0, 30) for record in batch] == [b"%d" % n for n in range(30)]
    assert max(sizes) > 4096
    log.close()
