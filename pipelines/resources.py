"""The workspace as a Dagster resource: opened once in a process, when the first asset asks for it."""

from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

import dagster as dg

from assets.workspace import Workspace
from pipelines.opening import opened
from pipelines.settings import load_settings

_open_for_good = ExitStack()  # closed with the process


@lru_cache(maxsize=4)
def _workspace(settings_file: str) -> Workspace:
    return _open_for_good.enter_context(opened(load_settings(Path(settings_file)), actor="dagster"))


class WorkspaceResource(dg.ConfigurableResource):
    """`settings_file`: the headgate.toml of the installation."""

    settings_file: str

    def get(self) -> Workspace:
        """The process's workspace. Raises SettingsError, StreamUnreachable, JournalUnreachable."""
        return _workspace(self.settings_file)
