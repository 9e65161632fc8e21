"""What the privacy ledger writes: the bodies of POLICY, RESERVE and RELEASE. Pure; it knows no journal.

WINDOW, COMMIT, CRASH, REFUSE and RETIRE are a few fields, made where they are written (`privacy.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from security import accounting
from security.charges import Books, Charge, LedgerError
from security.journal import stamp
from security.reservation import SPARE_STEPS, PrivacyPolicy
from security.statement import NOT_COVERED, UNIT, Figures, Laws, laws_of


def policy_body(policy: PrivacyPolicy) -> dict[str, Any]:
    """POLICY: the promise and the law of the updates under it."""
    return {
        "unit": UNIT,
        "adjacency": accounting.ADJACENCY,
        "accountant": accounting.ACCOUNTANT,
        "filter": "Gaussian DP: sum of steps x (m_max / noise_multiplier)^2, for metered windows",
        "interval": accounting.INTERVAL,
        "target_epsilon": policy.target_epsilon,
        "target_delta": policy.target_delta,
        "sampling_rate": policy.sampling_rate,
        "steps": policy.steps,
        "spare_steps": SPARE_STEPS,
        "max_grad_norm": policy.max_grad_norm,
        "label_derived_public": policy.label_derived_public,
        "max_per_subject": policy.max_per_subject,
        "subject_epsilon": policy.subject_epsilon,
        "not_covered": list(NOT_COVERED),
    }


def reserve_body(charge: Charge, policy: PrivacyPolicy) -> dict[str, Any]:
    """RESERVE: `steps` is what is charged, `spare` of them are not to be taken unless a crash costs some."""
    return {
        "task": charge.task,
        "update": charge.update,
        "windows": list(charge.windows),
        "arrived": [stamp(moment) for moment in charge.arrived],
        "count": charge.count,
        **charge.law._asdict(),
        "spare": charge.spare,
        "metered": charge.metered,
        "max_grad_norm": charge.max_grad_norm,
        "sampling": "none" if charge.metered else "poisson",
        "clipping": "flat",
        "delta": policy.target_delta,
        **({} if charge.accounts is None else {"accounts": charge.accounts}),
    }


def release_body(
    books: Books, policy: PrivacyPolicy, version: str, artefact: str, updates: Sequence[str], parent: str | None
) -> dict[str, Any]:
    """RELEASE; its `updates` counts the lineage, which is told by following `parent`. Raises LedgerError."""
    charged = [books.charges[name] for name in updates if name in books.charges]
    wrong = [charge for charge in charged if charge.state != "committed" or charge.overrun]
    if updates[-1] not in books.charges or wrong:
        name, state = (wrong[0].update, wrong[0].state) if wrong else (updates[-1], "not reserved")
        raise LedgerError(
            f"version {version} must not be released: update {name} is {state}, wanted committed within its reserved steps; "
            "its weights stay in the vault, the next update goes on from the lineage head"
        )
    figures, parts = Figures(policy.target_delta), dict[Laws, dict[str, Any]]()
    for group in books.on_events_of([charge.update for charge in charged]):
        laws, metered = laws_of(group)
        parts[laws, metered] = {"laws": [list(law) for law in laws], "metered": metered, "epsilon": figures.epsilon(group)}
    return {
        "version": version,
        "artefact": artefact,
        "update": updates[-1],
        "parent": parent,
        "updates": len(updates),
        "not_charged": [name for name in updates if name not in books.charges],
        "epsilon": max(part["epsilon"] for part in parts.values()),
        "delta": policy.target_delta,
        "spent": list(parts.values()),
    }
