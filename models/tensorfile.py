"""Adapter tensors as safetensors bytes, and back again without trusting them.

The format's own reader refuses overlaps, holes and trailing bytes but accepts duplicate names and non-finite values
(measured with 0.8.0), so the header is read here, strictly, before the reader sees the same bytes. Knows nothing of
manifests or signatures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

HEADER_BYTES = 1 << 20
CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}


class TensorsRefused(Exception):
    """These bytes are not the tensors they should be; the message names the tensor, what was found and what was
    wanted.
    """


def encode(tensors: Mapping[str, np.ndarray]) -> bytes:
    """safetensors bytes; equal tensors give equal bytes. Raises TensorsRefused for a value that is not finite."""
    describe(tensors)
    return bytes(safetensors.numpy.save({key: np.asarray(tensors[key], order="C") for key in sorted(tensors)}))


def describe(tensors: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """[{name, dtype, shape, absmax}] in order of name, as a manifest lists them. Raises TensorsRefused as `encode`
    does.
    """
    listed = []
    for key in sorted(tensors):
        value = tensors[key]
        if value.dtype.name not in CODES:
            raise TensorsRefused(f"{key} has type {value.dtype}; an adapter may hold {', '.join(CODES)}")
        dtype = CODES[value.dtype.name]
        listed.append({"name": key, "dtype": dtype, "shape": list(value.shape), "absmax": _absmax(key, value)})
    return listed


def decode(raw: bytes, listed: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The tensors in `raw`, exactly those of `listed` (as `describe` gives them). Raises TensorsRefused on any
    difference.
    """
    header = _header(raw)
    wanted = {entry["name"]: entry for entry in listed}
    if set(header) != set(wanted):
        raise TensorsRefused(f"tensor names differ: missing {sorted(set(wanted) - set(header)) or 'none'}, "
                             f"unknown {sorted(set(header) - set(wanted)) or 'none'}")
    for key, entry in wanted.items():
        found = (header[key].get("dtype"), header[key].get("shape"))
        if found != (entry["dtype"], entry["shape"]) or entry["dtype"] not in CODES.values():
            raise TensorsRefused(f"{key} is {found[0]} {found[1]}; the manifest says {entry['dtype']} {entry['shape']}")
    try:
        tensors: dict[str, np.ndarray] = safetensors.numpy.load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise TensorsRefused(f"not a safetensors file: {error}") from error
    for key, entry in wanted.items():
        largest = _absmax(key, tensors[key])
        if largest > entry["absmax"]:
            raise TensorsRefused(f"{key}: |value| {largest:g} > absmax {entry['absmax']:g} of the manifest")
    return tensors


def _absmax(key: str, value: np.ndarray) -> float:
    if not np.isfinite(value).all():
        raise TensorsRefused(f"{key} holds {int((~np.isfinite(value)).sum())} non-finite values; 0 are allowed")
    return float(np.abs(value.astype(np.float64)).max()) if value.size else 0.0


def _header(raw: bytes) -> dict[str, dict[str, Any]]:
    length = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else -1
    if not 0 <= length <= min(HEADER_BYTES, len(raw) - 8):
        raise TensorsRefused(f"safetensors header of {length} bytes in a file of {len(raw)}; at most {HEADER_BYTES}")
    try:
        header = json.loads(raw[8 : 8 + length], object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TensorsRefused(f"safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise TensorsRefused("safetensors header is not a table of tensors")
    if "__metadata__" in header:
        raise TensorsRefused("safetensors header carries __metadata__; an adapter file has none")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise TensorsRefused("safetensors header names a key twice: two readers would see two files")
    return made
