"""A running update's checkpoint in the store, and what it belongs to: another process goes on only where all of it still holds.

Knows where the file lies and which public facts name an update: its charge, base, parent, adapter and rate. It does not
train, and does not know what the checkpoint holds beside them (`models/progress.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from assets.lineage import Lineage
from assets.workspace import Workspace
from models import progress
from models.config import UpdateConfig
from models.progress import Progress, ProgressLost
from security.checkpoint import Checkpoint
from security.keys import secret
from security.privacy import Ledger, Reservation

LAW = ("noise_multiplier", "sampling_rate", "steps", "spare", "max_grad_norm", "expected_batch")


def begun(
    workspace: Workspace, lineage: Lineage, reservation: Reservation, config: UpdateConfig, kept: Sequence[bool] | None
) -> Progress:
    """A new update's progress, written down before any of its examples is read."""
    checkpoint = _checkpoint(workspace, reservation.update)
    for stale in checkpoint.copies[0].parent.glob("progress-*"):
        stale.unlink()  # of an update that ended while another machine still wrote: one at a time is under way
    made = Progress(_facts(lineage, reservation, config), None if kept is None else np.array(kept, bool), checkpoint)
    made.start()
    return made


def taken_up(
    workspace: Workspace, lineage: Lineage, ledger: Ledger, update: str, config: UpdateConfig
) -> tuple[Reservation, Progress]:
    """What a process that died has left of `update`. Raises ProgressLost where nobody can go on.

    The caller must be the only one that trains it (`training_lease`).
    """
    reservation = ledger.open_reservation(update)
    if reservation is None:
        raise ProgressLost("its charge is closed already")
    if gone := ledger.retired(workspace.task.name).intersection(reservation.windows):
        raise ProgressLost(f"window {min(gone)} was retired since")
    facts = _facts(lineage, reservation, config)
    return reservation, progress.left_behind(_checkpoint(workspace, update), facts, reservation.spare)


def forget(workspace: Workspace, update: str) -> None:
    """The update has its end in the journal: its checkpoint goes."""
    _checkpoint(workspace, update).remove()


def _checkpoint(workspace: Workspace, update: str) -> Checkpoint:
    task, _, number = update.rpartition("/")
    path = workspace.store / task / "vault" / f"progress-{number}"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Checkpoint(path, secret(workspace.keys, "vault"))


def _facts(lineage: Lineage, reservation: Reservation, config: UpdateConfig) -> Mapping[str, Any]:
    """As JSON holds them. Settings that only decide who looks at the result (guard, rollout) are not among them."""
    base, head = lineage.registered_base(), lineage.head
    return {
        "update": reservation.update,
        "windows": list(reservation.windows),
        **{name: getattr(reservation, name) for name in LAW},
        "base": base["digest"][:16],
        "parent": head,
        "parent's weights": "none" if head == base["version"] else lineage.versions[head]["vault_sha256"][:16],
        "[training] learning_rate": config.training.learning_rate,
        "learning rate": config.training.rate(config.update_number, reservation.noise_in_weights(reservation.steps)),
        **{f"[adapter] {name}": list(value) if isinstance(value, tuple) else value
           for name, value in asdict(config.adapter).items()},
    }  # fmt: skip
