"""Everything the steps of a window need, in one place: task, policies, journal, log, store, keys, and the folds of it all.

A workspace is opened once a process. What it caches (folds, models) can be thrown away at any time: the journal and the
store are the truth. It decides nothing and knows neither settings files nor Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.board_fold import BoardFold
from assets.lineage import Lineage, fold_lineage
from assets.stream.formats import FormatPolicy, ValueFormat, formats_of
from assets.stream.log import EventLog, Topics
from assets.update_due import UpdatePolicy
from assets.windows.clock import WindowPolicy, window_bounds
from assets.windows.history import History
from assets.windows.join import find_examples, read_examples
from assets.windows.seal import SealPolicy
from assets.windows.store import StoreDamaged
from models.config import AdapterConfig, GuardConfig, PoisoningConfig, RetentionConfig, TrainingConfig
from models.release_board import Board
from models.release_policy import RolloutPolicy
from models.rollout import Decision
from monitoring import evidence
from monitoring.drift_config import DriftConfig
from monitoring.evidence import Evidence
from security.journal import Draft, Journal, Projection
from security.privacy import PrivacyPolicy

if TYPE_CHECKING:
    import pyarrow as pa

    from models.predictor import Predictor
    from models.task import Task
    from monitoring.tracking import Tracker

CACHED_PREDICTORS = 16
FINISHED = "window.finished"  # written when the last step of a window is done: what "next due window" asks for


@dataclass(frozen=True)
class Policies:
    """The sections of the settings that the steps obey."""

    window: WindowPolicy
    update: UpdatePolicy = UpdatePolicy()
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyPolicy = PrivacyPolicy()
    guard: GuardConfig = GuardConfig()
    poisoning: PoisoningConfig = PoisoningConfig()
    retention: RetentionConfig = RetentionConfig()
    rollout: RolloutPolicy = RolloutPolicy()
    drift: DriftConfig = DriftConfig()
    seal: SealPolicy = SealPolicy()
    formats: FormatPolicy = FormatPolicy()
    dead_letters: bool = False


@dataclass
class Workspace:
    """See the module. `tracker` None: no projection to MLflow. `reports` False: no Evidently (quick runs)."""

    task: Task
    journal: Journal
    log: EventLog
    store: Path
    keys: Path
    topics: Topics
    policies: Policies
    settings_digest: str = ""
    tracker: Tracker | None = None
    reports: bool = True
    actor: str = "pipeline"
    wall: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.history = History(self.journal, self.task.name)
        self._lineage = Projection(self.journal, f"lineage/{self.task.name}", Lineage(), fold_lineage)
        self._evidence = evidence.projection(self.journal, self.task.name)
        self._board = BoardFold(self.journal, self.task.name)
        self._predictors: dict[str, Predictor] = {}

    def now(self) -> datetime:
        """The wall clock, never before the newest entry of the journal (two machines' clocks may differ)."""
        return self.journal.now(self.wall())

    def clock(self, window: str) -> datetime:
        """The task's clock while `window` is processed: its end for a replayed stream, else now."""
        return window_bounds(self.policies.window, window)[1] if self.policies.window.clock == "stream" else self.now()

    def lineage(self) -> Lineage:
        """The lineage as of now."""
        return self._lineage.refresh()

    def lineage_length(self) -> int:
        """Entries of the lineage stream in the fold: what an append compares with."""
        return self._lineage.length

    def evidence(self) -> Evidence:
        """All evidence as of now."""
        return self._evidence.refresh()

    def board(self) -> Board:
        """Rollouts, routing and head as of now: one fold over three streams, in the journal's order."""
        return self._board.refresh()

    def append_decisions(self, decisions: Sequence[Decision], *, also: Sequence[Draft] = ()) -> None:
        """Append the board's decisions in one transaction, and `also` behind them, if no stream of them has moved since
        `board()`.

        Raises Conflict when somebody else decided first: take the board again and decide again.
        """
        self.journal.append_all([*self._board.drafts(decisions), *also], actor=self.actor, at=self.now())

    @cached_property
    def base(self) -> bytes:
        """The frozen base's bytes, checked against the journal. Raises NoBase, BaseRefused."""
        from models.base import BaseRefused, digest

        body = self.lineage().registered_base()
        state = (self.store / body["path"]).read_bytes()
        if digest(state) != body["digest"]:
            raise BaseRefused(f"{body['path']} has digest {digest(state)}, the journal says {body['digest']}: restore it")
        return state

    def predictor(self, version: str) -> Predictor:
        """The release copy of a version (or the base), verified, ready to score. Raises VersionRefused."""
        from models.predictor import Predictor

        if version not in self._predictors:
            tensors, config = None, self.policies.adapter
            if version != self.lineage().registered_base()["version"]:
                opened = self.open(version)
                tensors, config = opened.tensors, opened.config  # its own: the settings may be others by now
            while len(self._predictors) >= CACHED_PREDICTORS:
                self._predictors.pop(next(iter(self._predictors)))
            self._predictors[version] = Predictor(self.task, self.base, tensors, config)
        return self._predictors[version]

    def open(self, version: str) -> Any:
        """The version's files after every check of `models.version.open_version`, and as the journal registered them.

        Raises VersionRefused, and StoreDamaged when the store itself is not there: that says nothing of the version.
        """
        from models.version import VersionRefused, open_version
        from security.keys import public_key
        from security.manifest import digest, encode

        body = self.lineage().versions[version]
        relative = Path(body["path"])
        if relative.is_absolute() or ".." in relative.parts or relative.name != version:
            raise VersionRefused(f"{version}: the journal's path {body['path']!r} is not one of the store: nothing was read")
        folder = self.store / relative
        if not folder.parent.exists():
            raise StoreDamaged(f"{folder.parent} is not there: check [store] url; what runs goes on, nothing new is loaded")
        opened = open_version(
            folder,
            trusted={"trainer": public_key(self.keys, "trainer")},
            base_digest=self.lineage().registered_base()["digest"],
            task=self.task.name,
            now=self.now(),
        )
        # the name carries 8 hex digits of this digest, the journal all 64
        if digest(encode(opened.manifest)) != body["manifest_digest"]:
            raise VersionRefused(f"{version}: the manifest is not the one the journal registered: it was changed")
        return opened

    def parent(self, version: str) -> dict[str, Any] | None:
        """The unstamped adapter training goes on from, None for the base; checked to fit the base and the settings.

        Raises VaultDamaged, AdapterRefused.
        """
        from models.predictor import Predictor
        from models.vault import read_vault

        if version == self.lineage().registered_base()["version"]:
            return None
        body = self.lineage().versions[version]
        tensors = read_vault(self.store / body["vault"], body["vault_sha256"])
        Predictor(self.task, self.base, tensors, self.policies.adapter)
        return tensors

    def formats(self) -> Mapping[str, ValueFormat]:
        """Topic -> how its values are read."""
        return formats_of(self.topics, self.task.event, self.task.label, self.policies.formats)

    def examples(self, window: str) -> pa.Table:
        """The window's examples, checked against the journalled hash. LookupError before they are joined."""
        found = find_examples(self.history.refresh(), window)
        if found is None:
            raise LookupError(f"window {window} has no examples yet: run the step `examples` first")
        return read_examples(self.store, found)

    def body(self, kind: str, window: str) -> Mapping[str, Any] | None:
        """What the journal says of `kind` for `window`; None when the step has not run."""
        entry = self.history.refresh().find(kind, window)
        return None if entry is None else entry.body

    def finished(self, window: str) -> bool:
        """Whether the last step of the window is done: a repeated step then tells nobody anything again."""
        return self.body(FINISHED, window) is not None

