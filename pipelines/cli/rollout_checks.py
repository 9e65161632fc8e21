"""`headgate rollout lint|simulate|verify`: can this policy decide, when will it, and does every decision follow.

They only read. What they find is worked out in `monitoring/`; here it is printed.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import settings_from

if TYPE_CHECKING:
    from models.release_policy import RolloutPolicy
    from monitoring.block_history import BlockHistory
    from monitoring.gate_power import Circumstances
    from monitoring.gate_rehearsal import Rehearsal
    from monitoring.rollout_audit import Audit
    from pipelines.settings import Settings
    from security.journal import Journal, Verification

RUNS = 200
LEAST_SPAN = timedelta(days=14)  # of a journal, to tell attempts a year from it


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def lint(ctx: click.Context, as_json: bool) -> None:
    """Can this policy decide at all? Works without a journal too. Exit code 1 when a check fails."""
    from monitoring.gate_power import Level, check

    settings = settings_from(ctx)
    journal, task = _journal(settings)
    found = check(settings.rollout, _circumstances(settings, journal, task))
    failed = sum(one.level is Level.FAIL for one in found)
    if as_json:
        findings = [{"level": one.level.value, "check": one.check, "text": one.text} for one in found]
        click.echo(json.dumps({"task": task, "journal": journal is not None, "failed": failed, "findings": findings}))
    else:
        for one in found:
            begin = f"{one.level.value:<8}{one.check:<15}"
            click.echo(click.wrap_text(one.text, 120, begin, " " * len(begin)))
        click.echo(f"{failed} of {len(found)} checks fail" if failed else "this policy can decide")
    ctx.exit(1 if failed else 0)


@click.command()
@click.option(
    "--effect", type=float, default=None,
    help="A true gain to try too: a block's, in units of the gate loss; a unit's, where outcomes decide.",
)
@click.option("--runs", type=click.IntRange(1), default=RUNS, show_default=True, help="Rollouts for each effect.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def simulate(ctx: click.Context, effect: float | None, runs: int, seed: int, as_json: bool) -> None:
    """Days to a decision under this policy, on the noise of your own windows."""
    from monitoring.block_history import block_history
    from monitoring.evidence import Evidence
    from monitoring.gate_rehearsal import rehearse
    from pipelines.reading import read_evidence

    settings = settings_from(ctx)
    journal, task = _journal(settings)
    history = block_history(read_evidence(journal, task) if journal else Evidence(), settings.rollout.block)
    by_outcome = settings.rollout.evidence == "outcome"
    tried = {"equal": 0.0, "observed": None if by_outcome else history.gain, "given": effect}
    played = {
        name: rehearse(settings.rollout, settings.window.every, history, gain, runs=runs, seed=seed)
        for name, gain in tried.items() if gain is not None
    }
    about, text = _noise(history, settings.rollout)
    if as_json:
        about |= {"task": task, "runs": runs, "seed": seed}
        click.echo(json.dumps(about | {"effects": {name: _played(one) for name, one in played.items()}}))
        return
    click.echo(f"{text}; {runs} rollouts each")
    for name, one in played.items():
        click.echo(f"true gain {one.gain:+.4f} ({name}): {_told(one)}")


def _noise(history: BlockHistory, policy: RolloutPolicy) -> tuple[dict[str, Any], str]:
    """What the rollouts are rehearsed on, as figures and as a sentence."""
    from monitoring.gate_rehearsal import ASSUMED_SD, cost_of, units_of

    if policy.evidence == "outcome":
        units, cost = units_of(history, policy), cost_of(history)
        assumed = "" if history.cost is not None else " (assumed: no outcome is known yet)"
        return {"units": units, "cost": cost}, f"{units} units a window that cost {cost:.3f} each with stable{assumed}"
    sd = history.sd or ASSUMED_SD * policy.cap
    about = {"blocks": history.blocks, "pairs": len(history.means), "sd": sd}
    if history.blocks:
        return about, f"noise of {history.blocks} blocks of {len(history.means)} pairs, sd {sd:.4f}"
    return about, f"no pair has enough scored blocks: normal noise with sd {sd:.4f} assumed"


def _played(one: Rehearsal) -> dict[str, Any]:
    ends = {
        end.replace(" ", "_"): {"share": one.share(end), "median": one.quantile(end, 0.5), "p90": one.quantile(end, 0.9)}
        for end in one.days
    }
    return {"gain": one.gain, **ends}


def _told(one: Rehearsal) -> str:
    ends = [end for end in one.days if one.share(end)]
    return "; ".join(
        f"{end} {one.share(end):.1%}, median {one.quantile(end, 0.5):.0f} d, 90 % by {one.quantile(end, 0.9):.0f} d"
        for end in ends
    )


def _journal(settings: Settings) -> tuple[Journal | None, str]:
    """The journal, None where there is none yet, and the task's name."""
    from models.task import load_task
    from pipelines.journals import NoJournal, existing_journal

    task = load_task(settings.task).name
    try:
        return existing_journal(settings), task
    except NoJournal:
        return None, task


def _circumstances(settings: Settings, journal: Journal | None, task: str) -> Circumstances:
    """What lint looks at besides the policy."""
    from models.task import load_task, misfits
    from monitoring.block_history import block_history
    from monitoring.evidence import Evidence
    from monitoring.gate_power import YEAR, Circumstances
    from pipelines.opening import no_rows
    from pipelines.reading import read_evidence

    evidence = read_evidence(journal, task) if journal else Evidence()
    attempts, source = YEAR / settings.update.every, "[update] every"
    told = _attempts(journal, task) if journal else None
    if told is not None:
        attempts, source = told, "from the journal"
    history = block_history(evidence, settings.rollout.block)
    loaded = load_task(settings.task)
    return Circumstances(
        settings.window.every, attempts, source, history, _golden(settings, journal, task),
        misfits=misfits(loaded, settings.rollout, no_rows(loaded)),
    )


def _attempts(journal: Journal, task: str) -> float | None:
    """Tests begun a year: versions queued, and evidence begun again after a promotion."""
    from monitoring.gate_power import YEAR
    from security.journal import unstamp

    entries = journal.read(f"rollout/{task}")
    begun = [entry for entry in entries if entry.kind in ("rollout.queued", "rollout.restarted")]
    clocks = [unstamp(entry.body["clock"]) for entry in entries]
    span = max(clocks) - min(clocks) if clocks else timedelta(0)
    return len(begun) * (YEAR / span) if span >= LEAST_SPAN else None


def _golden(settings: Settings, journal: Journal | None, task: str) -> list[tuple[bool, bool, str]]:
    """(enough, protected, sentence) of each golden set of the task."""
    from models.golden import golden_sets
    from models.retention import newest, size_told
    from models.task import load_task
    from pipelines.reading import read_lineage

    measured = newest(read_lineage(journal, task).versions) if journal else {}
    sizes = {name: len(next(iter(rows.values()))) for name, rows in golden_sets(load_task(settings.task)).items()}
    sizes |= {name: figures.get("rows") or 0 for name, figures in measured.items() if name not in sizes}
    found = []
    for name, rows in sizes.items():
        if rows:
            enough, text = size_told(name, rows, settings.retention.floor, measured.get(name))
            found.append((enough, name in settings.retention.protected, text))
    return found


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Derive every decision again from the evidence before it. Exit code 1 when an entry does not follow."""
    from monitoring.approval_audit import blame_unproven
    from monitoring.rollout_audit import audit
    from pipelines.journals import journal_and_task

    settings = settings_from(ctx)
    journal, task = journal_and_task(settings)
    chain = journal.verify()
    streams = [f"{room}/{task}" for room in ("rollout", "routing", "lineage", "window")]
    found = audit(journal.tail(streams=streams), settings.rollout)
    blame_unproven(found, journal, task, settings.rollout)
    sound = found.sound and not chain.faults
    changed = _changed(found, settings.rollout)
    said = json.dumps(_audited(found, chain) | {"policies": changed}) if as_json else "\n".join(
        [*_audit_lines(found, chain), *(f"policy {digest} of the journal: {text}" for digest, text in changed.items())]
    )
    click.echo(said)
    ctx.exit(0 if sound else 1)


def _changed(found: Audit, policy: RolloutPolicy) -> dict[str, str]:
    """How each policy in the journal differs from the one of the settings: an auditor has to know what was decided by."""
    wanted = policy.to_body()
    told = {}
    for digest, one in found.policies.items():
        other = [f"{key} {value!r} (settings: {wanted[key]!r})" for key, value in one.to_body().items() if value != wanted[key]]
        told[digest] = ", ".join(other) or "as in the settings"
    return told


def _audited(found: Audit, chain: Verification) -> dict[str, object]:
    rollouts = [
        {"version": version, "entries": count, "ok": version not in found.faults}
        for version, count in sorted(found.entries.items())
    ]
    faults = [{"seq": fault.seq, "version": fault.version, "text": fault.text} for fault in found.faults.values()]
    return {"rollouts": rollouts, "looks": found.looks, "faults": faults, "chain": list(chain.faults), "head": chain.head}


def _audit_lines(found: Audit, chain: Verification) -> list[str]:
    lines = [f"chain: {fault}" for fault in chain.faults]
    for version in sorted({*found.entries, *found.faults}):
        fault = found.faults.get(version)
        name = version or "(the task)"
        if fault is None:
            lines.append(f"ok     {name}  {found.entries[version]} entries")
        else:
            lines.append(f"FAULT  {name}  entry {fault.seq} does not follow: {fault.text}")
    lines.append(
        f"{len(found.entries)} rollouts, {found.looks} looks of the gate, {len(found.faults)} faults; journal of "
        f"{chain.entries} entries, head {chain.head[:16]}, {len(chain.faults)} faults in its chain"
    )
    if found.faults:
        lines.append("Derived by the rules of this version of Headgate: other rules at the time show too.")
    return lines
