"""The verbs of a release, as the command line and HTTP offer them: one table, so that they cannot differ.

It says what a verb takes and whether it may be carried out twice; what it does is in `models/release_verbs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verb:
    """A verb as every way in offers it. `options`: what it takes besides a version and a reason, with the type.

    `onward`: it lets a version go further, or traffic come back to one, so a request that comes twice must not do it twice.
    Any other verb stops or consents: whatever happened meanwhile it is right, and repeating it changes nothing.
    """

    text: str
    onward: bool = False
    options: Mapping[str, type] = field(default_factory=dict)


VERBS: Mapping[str, Verb] = {
    "start": Verb("Queue a version whose update was blocked: it has to pass every gate.", onward=True),
    "promote": Verb("Skip what is left of the current step (never a proven harm).", onward=True, options={"full": bool}),
    "abort": Verb("Weight 0 at once; descendants are withdrawn."),
    "pause": Verb("Go no further until resumed; guardrails and the harm test work on."),
    "resume": Verb("Take back a pause.", onward=True),
    "approve": Verb("Consent as a second person."),
    "retry": Verb("A new attempt of a version that has ended; its evidence goes on, proven harm bars it.", onward=True),
    "undo": Verb("Back to the stable version before, or to another; at once within undo_window.", True, {"to_version": str}),
}
