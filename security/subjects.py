"""Subject accounts: what each person, card or device has spent over all updates, and whose records the next one may use.

Which records stay follows from the envelope alone: subject and arrival, never content. An account adds up Renyi divergence
at one fixed order: the individual filter of Feldman & Zrnic (2021), valid though later updates depend on earlier ones. A
PLD or its epsilon is no such filter, and a Gaussian filter would take a sampled step for a full batch, 50 x its cost.

The table is a file beside the store, encrypted, never exported; the ledger's RESERVE has its digest, so that an older copy
is refused. It is written before the reservation and counts from it on: a crash after it is spent. Knows no window and no
example; who a subject is, is in the table only as an HMAC.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import math
import secrets
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security import disk
from security.accounting import Law

ORDERS = tuple(range(2, 65))
NONCE_BYTES = 12
ABOUT = b"headgate subject accounts 1"


class AccountsLost(Exception):
    """The table of accounts is missing, damaged or older than the ledger: what subjects have spent is not known."""


class SubjectBudget(ValueError):
    """The budget of a subject has no room for a single update."""


@dataclass(frozen=True)
class Table:
    """`spent`: name -> Renyi divergence at `order`; `pending`: what `update` adds once it is reserved; `before`: digest of
    the table that was reserved last."""

    order: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)
    update: str = ""
    pending: Mapping[str, float] = field(default_factory=dict)
    before: str | None = None


def dominating(law: Law, records: int) -> Law:
    """The law of one record that costs at least what a subject with so many records pays under `law`.

    A step's sensitivity is Binomial(records, q); it is replaced by `records` whenever any of them is drawn.
    """
    return law._replace(
        sampling_rate=1 - (1 - law.sampling_rate) ** records, noise_multiplier=law.noise_multiplier / records
    )


@lru_cache(maxsize=256)
def divergence(law: Law, order: int, records: int = 1) -> float:
    """Renyi divergence at `order` of an update for a subject with so many records in it."""
    import dp_accounting
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    paid = dominating(law, records)
    step = dp_event.GaussianDpEvent(paid.noise_multiplier)
    event = dp_event.PoissonSampledDpEvent(paid.sampling_rate, step) if paid.sampling_rate < 1 else step
    accountant = RdpAccountant([order], dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_event.SelfComposedDpEvent(event, law.steps))
    return float(accountant.rdp[0])


def limit(order: int, epsilon: float, delta: float) -> float:
    """The most divergence at `order` that is still (epsilon, delta)-DP (Canonne, Kamath & Steinke 2020, prop. 12)."""
    return epsilon - math.log(1 - 1 / order) + math.log(delta * order) / (order - 1)


@lru_cache(maxsize=64)
def best_order(law: Law, epsilon: float, delta: float) -> int:
    """The order at which most updates of this law fit. Raises SubjectBudget when none does at any."""
    found = max(ORDERS, key=lambda order: limit(order, epsilon, delta) / divergence(law, order))
    if divergence(law, found) > limit(found, epsilon, delta):
        raise SubjectBudget(
            f"subject_epsilon {epsilon:g}: one update costs a subject more under the filter of its account; raise "
            "[privacy] subject_epsilon, 4 has room for 39 updates at the default law"
        )
    return found


def admit(
    subjects: Sequence[str], spent: Mapping[str, float], costs: Sequence[float], budget: float
) -> tuple[list[bool], dict[str, float]]:
    """Which records may be used, in their order, and what their subjects are charged.

    costs[k - 1] is what k records of one subject cost; as many as fit, at most len(costs), those that arrived first.
    """
    allowed = {}
    for subject, records in Counter(subjects).items():
        room = budget - spent.get(subject, 0.0)
        allowed[subject] = max((k for k in range(1, min(records, len(costs)) + 1) if costs[k - 1] <= room), default=0)
    kept, keep = Counter[str](), []
    for subject in subjects:
        keep.append(kept[subject] < allowed[subject])
        kept[subject] += 1
    return keep, {subject: costs[count - 1] for subject, count in allowed.items() if count}


class Accounts:
    """The table of one ledger. `master`: 32 secret bytes; the keys of names and of the file are derived from it."""

    def __init__(self, path: Path, master: bytes) -> None:
        self.path = path
        self._names = hmac.digest(master, ABOUT + b": names", "sha256")
        self._cipher = AESGCM(hmac.digest(master, ABOUT + b": file", "sha256"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else admits until the block ends, or the process."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def name(self, subject: object) -> str:
        """How the table calls a subject. Records without one (None) are one subject together."""
        text = b"" if subject is None else b"=" + str(subject).encode()
        return hmac.digest(self._names, text, "sha256")[:16].hex()

    def load(self, reserved: str | None, updates: Container[str]) -> Table:
        """What was spent. `reserved`: digest in the newest RESERVE that has one; `updates`: all that were ever reserved.

        Raises AccountsLost when the file is not the one that was reserved, nor one written since for no reservation.
        """
        if not self.path.exists():
            if reserved is not None:
                raise self._lost("is missing")
            return Table()
        payload = self.path.read_bytes()
        digest = hashlib.sha256(payload).hexdigest()
        try:
            table = Table(**json.loads(self._cipher.decrypt(payload[:NONCE_BYTES], payload[NONCE_BYTES:], ABOUT)))
        except (InvalidTag, ValueError) as error:
            raise self._lost("cannot be decrypted") from error
        if digest == reserved:
            total = Counter(table.spent)
            total.update(table.pending)
            return Table(table.order, dict(total), before=digest)
        if table.before == reserved and table.update not in updates:  # written, then refused or killed: nothing was run
            return replace(table, update="", pending={})
        raise self._lost("is not the one of the newest reservation: an older copy?")

    def save(self, table: Table) -> str:
        """Write the table whole or not at all; its digest."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        payload = nonce + self._cipher.encrypt(nonce, json.dumps(table.__dict__).encode(), ABOUT)
        disk.put(self.path, payload, mode=0o600)
        return hashlib.sha256(payload).hexdigest()

    def _lost(self, what: str) -> AccountsLost:
        return AccountsLost(
            f"the subject accounts {self.path} {what}: what people have spent is not known and nothing is reserved; bring the "
            "file (and its key) back from the newest backup"
        )


def admitted(
    table: Table, update: str, names: Sequence[str], law: Law, *, most: int, epsilon: float, delta: float
) -> tuple[list[bool], Table]:
    """Which records the update may use, and the table with what it will have cost: to be saved, then reserved."""
    order = table.order or best_order(law, epsilon, delta)
    costs = [divergence(law, order, records) for records in range(1, most + 1)]
    keep, pending = admit(names, table.spent, costs, limit(order, epsilon, delta))
    return keep, replace(table, order=order, update=update, pending=pending)
