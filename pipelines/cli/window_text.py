"""What `headgate window show` prints: the journal's entries of one window as lines to read. It knows their bodies only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_Body = Mapping[str, Any]
_OF_ITS_OWN = ("cut.decided", "window.sealed", "examples.joined")


def lines(found: Mapping[str, _Body]) -> Iterator[str]:
    """found: kind of entry -> body, of one window."""
    cut, sealed, joined = (found.get(kind) for kind in _OF_ITS_OWN)
    if cut is not None:
        yield f"window      {cut['window']}  from {cut['start']} to {cut['end']}  cluster {cut['cluster_id']}"
        yield from _ranges(cut, sealed)
    if sealed is not None:
        yield from _sealed(sealed)
    if joined is not None:
        yield from _joined(joined)
    for kind, body in found.items():
        if kind not in _OF_ITS_OWN:
            yield kind
            for key, value in body.items():
                yield f"  {key}: {value if isinstance(value, str | int | float) else json.dumps(value)}"


def _ranges(cut: _Body, sealed: _Body | None) -> Iterator[str]:
    files = {(file["topic"], file["partition"]): file for file in (sealed["files"] if sealed else [])}
    for topic, where in cut["topics"].items():
        for part, (start, end) in where["partitions"].items():
            file = files.get((topic, int(part)))
            rows = "not sealed" if file is None else f"{file['rows']} rows  {_short(file.get('fingerprint', ''))}"
            yield f"  {topic:<16} partition {part}  offsets [{start}, {end})  {rows}"


def _sealed(sealed: _Body) -> Iterator[str]:
    rows = "  ".join(f"{topic} {count}" for topic, count in sealed["rows"].items())
    yield f"rows        {rows}"
    where = f"  in {sealed['rejects_file']['path']}" if sealed["rejects"] else ""
    yield f"rejects     {sealed['rejects']}{where}"
    empty = "  ".join(f"{topic} {count}" for topic, count in sealed["gaps"].items() if count)
    yield f"empty       {empty or 'no offset'}  (transaction markers, aborted records)"
    for topic, part, start, end in sealed.get("accepted", ()):
        yield f"LOST        {topic} partition {part} offsets [{start}, {end}): accepted as lost"
    for topic, ids in sealed.get("schema_ids", {}).items():
        yield f"schemas     {topic}: ids {', '.join(map(str, ids))}"
    yield f"cut         {sealed['cut_hash']}"


def _joined(joined: _Body) -> Iterator[str]:
    coverage = "no event was mature" if joined["coverage"] is None else f"{joined['coverage']:.1%} of them labelled"
    unknown = f", {joined['unknown']} unknown (their labels may be lost)" if joined.get("unknown") else ""
    golden = f", {joined['golden']} golden (never learnt from)" if joined.get("golden") else ""
    yield f"examples    {joined['examples']} of {joined['events_matured']} mature events, {coverage}{unknown}{golden}"
    lag = joined["lag_seconds"]
    if lag["p50"] is not None:
        yield "label lag   " + "  ".join(f"{name} {seconds:,.0f} s" for name, seconds in lag.items())
    for outcome, each in (joined.get("lag_by_outcome") or {}).items():
        known = [f"{name} {seconds:,.0f} s" for name, seconds in each.items() if seconds is not None]
        yield f"  outcome {outcome}  " + "  ".join(known)
    unused = ("duplicate_events", "duplicate_labels", "late_labels", "labels_without_event")
    yield "not used    " + "  ".join(f"{name.replace('_', ' ')} {joined[name]}" for name in unused)


def _short(fingerprint: str) -> str:
    kind, _, digest = fingerprint.partition(":")
    return f"fingerprint {kind}:{digest[:16]}" if digest else ""
