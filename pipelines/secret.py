"""Text that must not be printed: passwords and the like.

It is text for whoever takes it (a Kafka client, a TLS library), and stars for whoever prints it. It knows no settings.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

STARS = "********"
FILE_MODES = (0o400, 0o600)


class Secret(str):
    """Text that prints as stars. `reveal()` gives the value to the one who needs it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(STARS) if self else "''"

    def __str__(self) -> str:
        return STARS if self else ""

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def reveal(self) -> str:
        """The value itself."""
        return str.__str__(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def read_secret(path: Path) -> Secret:
    """The text of a file that nobody but its owner may read. Raises OSError, and ValueError with the cure."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode not in FILE_MODES:
        raise ValueError(f"{path} has mode {mode:04o}, wanted 0400: run chmod 0400 {path}")
    return Secret(path.read_text().strip())
