"""`headgate bench NAME`: run one benchmark of the checkout in a fresh process and print its figure beside its peer's.

The benchmarks live in tests/benchmarks, which is not installed; what they measure is theirs to know.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

FOLDER = Path("tests/benchmarks")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def bench(name: str, options: tuple[str, ...], as_json: bool) -> None:
    """Run benchmark NAME (tests/benchmarks/NAME.py) with its own OPTIONS. Works in the root of a checkout."""
    if not FOLDER.is_dir():
        raise click.ClickException(
            f"no folder {FOLDER} in {Path.cwd()}: benchmarks come with the source, run this in the root of a checkout"
        )
    known = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise click.ClickException(f"no benchmark {name!r} in {FOLDER}: there are {', '.join(known) or 'none'}")
    module = ".".join((*FOLDER.parts, name))
    done = subprocess.run([sys.executable, "-m", module, *options], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"benchmark {name} ended with code {done.returncode}; what it said is above")
    found = json.loads(done.stdout)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['name']}: {found['figure']:.4g} {found['unit']}; {found['samples']} samples")
    peers = found.get("peers") or ({found["peer"]: found["peer_figure"]} if found["peer"] else {})
    for peer, figure in peers.items():
        click.echo(f"  {peer}: " + (f"{figure:.4g}, ratio {found['figure'] / figure:.3g}" if figure else "no figure"))
