"""`headgate`: one command line for everything. It only finds the command; each lives in a module of its own.

Commands are imported when they run, so that `headgate --help` loads neither torch nor a database (0.3 CPU s).
Answers go to stdout, everything else to stderr. An expected error is one sentence and exit code 1, never a traceback.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.expected import expected

if TYPE_CHECKING:
    from pipelines.settings import Settings

# name -> (module, help). The table is the command line; a test compares it with what the modules offer.
COMMANDS = {
    "init": ("pipelines.cli.init", "Write a commented headgate.toml and make the keys."),
    "check": ("pipelines.cli.check", "Try a task, rule by rule, before anything runs."),
    "demo": ("pipelines.cli.demo", "A summer of flights through the whole loop, on a real Kafka."),
    "broker": ("pipelines.cli.broker", "Start or stop the local Apache Kafka."),
    "base": ("pipelines.cli.base", "Train and register the frozen base."),
    "run-window": ("pipelines.cli.window", "Run every step of one window."),
    "worker": ("pipelines.cli.window", "Run due windows as they come, in one process."),
    "window": ("pipelines.cli.window", "List and show sealed windows."),
    "gateway": ("pipelines.cli.gateway", "Serve predictions."),
    "token": ("pipelines.cli.gateway", "Issue and revoke access tokens."),
    "controller": ("pipelines.cli.controller", "Stop and step releases between windows, within seconds."),
    "dashboard": ("pipelines.cli.dashboard", "Serve the operations page, or write it to a file."),
    "up": ("pipelines.cli.up", "Worker, gateway, controller and dashboard in one go, for one machine."),
    "status": ("pipelines.cli.status", "Where everything stands, in a few lines."),
    "rollout": ("pipelines.cli.rollout", "Watch and steer the release of a version."),
    "alarm": ("pipelines.cli.alarm", "List and acknowledge alarms."),
    "version": ("pipelines.cli.version", "List and show versions."),
    "privacy": ("pipelines.cli.privacy", "Show and export what was spent of the privacy budget; audit the private step."),
    "journal": ("pipelines.cli.journal", "Verify and read the journal."),
    "config": ("pipelines.cli.config", "Show the effective settings."),
    "bench": ("pipelines.cli.bench", "Measure one part against its peer (from a checkout)."),
}


class _Commands(click.Group):
    """Looks a command up in the table and imports its module only then."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        return getattr(module, cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Commands)
@click.option("--config", type=click.Path(path_type=Path), default=None, help="Settings file. [default: headgate.toml]")
@click.version_option(package_name="headgate", message="%(version)s")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Keep a deployed model learning from a Kafka stream, and release each version only through a gate that has proof."""
    ctx.obj = config


def settings_from(ctx: click.Context, **overrides: Any) -> Settings:
    """The settings the command line names; read when a command asks, once."""
    from pipelines.settings import load_settings

    return load_settings(ctx.find_root().obj, overrides=overrides or None)


def main(words: Sequence[str] | None = None) -> None:
    """The console script; `words` instead of the command line's. Always leaves by SystemExit."""
    sys.path.insert(0, str(Path.cwd()))  # a user's own task is found in the folder the command is typed in
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters of it comes as errors of our own
    try:
        code = cli.main(words, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if not expected(error):
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
