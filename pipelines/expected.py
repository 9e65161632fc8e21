"""Which errors are told in one sentence, and which are a defect and keep their traceback.

It knows no command and no window, only where an error comes from.
"""

from __future__ import annotations

_ROOMS = ("pipelines", "assets", "monitoring", "models", "security")


def expected(error: BaseException) -> bool:
    """Errors of our own carry value, limit and cure, and a system's word on a file names it: permission, space, place."""
    return type(error).__module__.split(".")[0] in _ROOMS or (isinstance(error, OSError) and error.filename is not None)
