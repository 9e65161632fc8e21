"""The privacy audit: is the promise of the private step kept, and would this audit have noticed if it were not?

Runs the three tiers on the step that training runs, and on planted defects around it, and says what was found. What is
audited is given (`models/audit/subject.py`); how each tier looks is told in its own file, and in docs/audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from models import compute
from models.audit import canary as audit_canary
from models.audit import job as audit_job
from models.audit import mutants as audit_mutants
from models.audit.canary import CLAIM, FALSE_ALARM, SEEN
from models.audit.checks import Bench, Check, checked
from models.audit.job import Job
from models.audit.subject import COMPANY, Subject, worst_neighbours
from models.private.private_sgd import Gradients, PrivateStep
from security.privacy import Reservation

Said = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Caught:
    """What became of one planted defect: `figure` is what gave it away, a bound or a check's figure."""

    name: str
    tier: int
    figure: float
    caught: bool


@dataclass(frozen=True, slots=True)
class Audit:
    """`lower_bound`: what was proved of mu of one step at noise multiplier 0.5, of which the promise is `claim`."""

    subject: str
    claim: float
    lower_bound: float
    checks: tuple[Check, ...]
    job: Job
    mutants: tuple[Caught, ...]

    @property
    def mutants_missed(self) -> list[str]:
        """Defects that passed for sound."""
        return [mutant.name for mutant in self.mutants if not mutant.caught]

    @property
    def faults(self) -> list[str]:
        """Everything that is wrong, a sentence each; none when the audit passed."""
        found = [f"{check.name}: {check.figure:.4g} is not in [{check.low:.4g}, {check.high:.4g}]"
                 for check in self.checks if not check.passed]
        if self.lower_bound > self.claim:
            found.append(f"mu of one step is at least {self.lower_bound:.3f} > {self.claim:.3f} claimed")
        elif self.lower_bound < SEEN * self.claim:
            found.append(f"mu of one step: only {self.lower_bound:.3f} of {self.claim:.3f} was seen, less than "
                         f"{SEEN * self.claim:.3f}: the attack is blind here, its silence proves nothing")
        if self.job.lower_bound > self.job.claim:
            found.append(f"epsilon of a whole update is at least {self.job.lower_bound:.2f} > {self.job.claim:.2f} claimed")
        return found + [f"planted defect not caught: {name}" for name in self.mutants_missed]

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain JSON values; `mutants` are names."""
        return {
            "subject": self.subject, "claim": self.claim, "lower_bound": round(self.lower_bound, 4),
            "false_alarm": FALSE_ALARM, "mutants": [mutant.name for mutant in self.mutants],
            "mutants_missed": self.mutants_missed, "faults": self.faults,
            "checks": [{"name": c.name, "passed": c.passed, "false_alarm": c.false_alarm} for c in self.checks],
            "job": asdict(self.job), "caught": [asdict(mutant) for mutant in self.mutants],
        }  # fmt: skip


def audit(subject: Subject, said: Said = lambda _: None, runs: int = audit_canary.RUNS) -> Audit:
    """All three tiers; about 40 CPU s on the small task. `said` gets a word before each part."""
    with compute.one_thread():
        with subject.source(subject.task, subject.module) as gradients:
            bench = bench_of(subject, gradients)
            said("tier 0: the rules of one step")
            checks = tuple(checked(bench))
            said(f"tier 1: {2 * runs} steps with a canary and without")
            bound = audit_canary.attack(bench, runs).lower_bound
            said("planted defects in a step")
            mutants = list(steps_caught(bench))
        said("tier 2: whole updates")
        job = audit_job.attack()
        mutants += jobs_caught()
    return Audit(subject.task.name, CLAIM, bound, checks, job, tuple(mutants))


def bench_of(subject: Subject, gradients: Gradients) -> Bench:
    """The product's step at noise multiplier 0.5 on every example, beside the worst pair of neighbours."""
    pair = worst_neighbours(subject, gradients)
    law = Reservation(
        update="audit", windows=("audit",), noise_multiplier=audit_canary.NOISE, sampling_rate=1.0, steps=1,
        max_grad_norm=pair.clip, epsilon=math.inf, delta=0.0, expected_batch=float(COMPANY),
    )  # fmt: skip
    return Bench(subject, gradients, pair, law, PrivateStep)


def steps_caught(bench: Bench) -> Iterator[Caught]:
    """Every planted defect of a step, looked for where it must be found."""
    for mutant in audit_mutants.planted(bench.subject):
        broken = audit_mutants.infected(mutant, bench)
        bound = audit_canary.attack(broken, audit_canary.MUTANT_RUNS).lower_bound if mutant.tier == 1 else 0.0
        if bound > CLAIM or mutant.check is None or (found := mutant.check(broken)) is None:
            yield Caught(mutant.name, 1, bound, bound > CLAIM)
        else:
            yield Caught(mutant.name, 0, found.figure, not found.passed)


def jobs_caught() -> Iterator[Caught]:
    """Every planted defect of a whole update."""
    for name, law in audit_job.MUTANTS.items():
        job = audit_job.attack(law)
        yield Caught(name, 2, job.lower_bound, job.lower_bound > job.claim)
