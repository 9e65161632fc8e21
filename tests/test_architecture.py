"""The rules of the house, as tests: floors, sizes, who may read the environment, what a cold start may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipelines", "assets", "monitoring", "models", "security")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
HEAVY = ("torch", "opacus", "mlflow", "evidently", "dp_accounting")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "engine", "service", "processor"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after a fresh interpreter ran `code`."""
    show = "import sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_five_rooms_are_ours_and_not_somebody_elses_package():
    for room in ROOMS:
        found = subprocess.run(
            [sys.executable, "-c", f"import {room}; print({room}.__file__)"], capture_output=True, text=True, check=True
        )
        assert Path(found.stdout.strip()).is_relative_to(ROOT)


def test_the_package_list_names_every_folder_of_the_five_rooms():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert listed == there


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 400
    assert path.stem not in VAGUE
    assert ast.get_docstring(tree) or not text.strip(), "a file opens with what it is for"
    long = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_only_the_settings_read_the_environment():
    readers = [path for path in FILES if re.search(r"\bos\.(environ|getenv|putenv)\b", path.read_text())]
    assert readers == [ROOT / "pipelines" / "settings.py"]


def test_help_loads_nothing_heavy_and_no_database():
    loaded = loaded_by("from pipelines.cli import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass")
    assert not loaded & {*HEAVY, "sqlalchemy", "pydantic", "pandas", "pyarrow", "dagster"}


def test_every_command_of_the_table_exists_and_explains_itself():
    import click

    from pipelines.cli import COMMANDS, cli

    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None and command.help, name


def test_modules_that_define_assets_do_not_postpone_annotations():
    offenders = [
        path
        for path in FILES
        if re.search(r"@(dg\.)?(asset|asset_check|sensor|schedule)\b", path.read_text())
        and "from __future__ import annotations" in path.read_text()
    ]
    assert offenders == []
