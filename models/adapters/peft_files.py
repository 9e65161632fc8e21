"""A folder as PEFT writes and reads it: `adapter_model.safetensors` and `adapter_config.json`.

For adapters that come from elsewhere or go there; versions of ours are signed and stricter (version.py). An option that
would change the answers and is not built here is refused by name, never dropped. Knows no module: `lora.attach` and
`lora.load` find out whether the adapter fits one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from models import tensorfile
from models.adapters.part import AdapterRefused
from models.config import AdapterConfig
from security import disk

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Facts about the file, or defaults of options that are off, that change no answer.
WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "task_type",
})  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, LoftQ, ...) also change the base, which is not in the file.
BEGINNINGS = (True, False, "gaussian", "orthogonal")
CURES = {
    "lora_dropout": "set it to 0 in the file: answers stay the same, and training goes on without dropout",
    "rank_pattern": "train with one r for all layers",
    "alpha_pattern": "train with one lora_alpha for all layers",
    "bias": "train with bias \"none\", and name layers whose bias should learn in modules_to_save",
    "fan_in_fan_out": "replace Conv1D layers by nn.Linear in the base",
    "init_lora_weights": "that way to begin changes the base as well; convert it to a plain LoRA adapter with PEFT",
}


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, np.ndarray]]:
    """Settings and tensors, for `lora.attach` and `lora.load`. Never unpickles, never fetches.

    Raises AdapterRefused: files missing or damaged, an option that is not built here, numbers that are not finite.
    """
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterRefused(f"{folder.name} holds adapter_model.bin, a pickle, which can run code; save it as safetensors")
    try:
        said = json.loads((folder / CONFIG).read_bytes())
        tensors: dict[str, np.ndarray] = safetensors.numpy.load((folder / TENSORS).read_bytes())
        tensorfile.describe(tensors)
    except OSError as error:
        raise AdapterRefused(f"{folder.name} cannot be read as a PEFT adapter ({TENSORS}, {CONFIG}): {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError, tensorfile.TensorsRefused) as error:
        raise AdapterRefused(f"{folder.name} is damaged, or of a type other than float16 to float64: {error!r}") from error
    if whole := [key for key in tensors if ".base_layer." in key]:
        raise AdapterRefused(f"{folder.name} holds weights of the base ({whole[0]}); save with save_embedding_layers=False")
    return config_from_peft(said), tensors


def write_adapter(folder: Path, config: AdapterConfig, tensors: Mapping[str, np.ndarray], base_digest: str) -> None:
    """Write both files, each whole or not at all.

    Raises AdapterRefused for what PEFT has no word for, tensorfile.TensorsRefused for a value that is not finite.
    """
    said = config.as_peft(base_digest)
    if said["peft_type"] != "LORA":
        raise AdapterRefused("bottleneck_modules or prompt_modules are set, PEFT knows neither; export lora.merged() instead")
    if not config.target_modules:
        raise AdapterRefused("target_modules is empty, and PEFT loads no adapter of copies alone; export lora.merged() instead")
    tensorfile.describe(tensors)
    whole = {key: np.asarray(tensors[key], order="C") for key in sorted(tensors)}
    disk.put(folder / TENSORS, safetensors.numpy.save(whole), 0o644)
    disk.put(folder / CONFIG, json.dumps(said, indent=2, sort_keys=True).encode(), 0o644)


def config_from_peft(said: Mapping[str, Any]) -> AdapterConfig:
    """Settings from the content of an `adapter_config.json`. Raises AdapterRefused naming what cannot be honoured."""
    if not isinstance(said, Mapping) or said.get("peft_type") != "LORA":
        found = said.get("peft_type") if isinstance(said, Mapping) else said
        raise AdapterRefused(f"peft_type {found!r}: only 'LORA' is read")
    rest = {key: value for key, value in said.items() if key not in WITHOUT_EFFECT | {"peft_type"}}
    targets, saved = (_names(rest.pop(key, None), key) for key in ("target_modules", "modules_to_save"))
    r, alpha, rs = rest.pop("r", 8), rest.pop("lora_alpha", 8), rest.pop("use_rslora", False)
    if rest.get("bias") == "none":
        del rest["bias"]
    if rest.get("init_lora_weights") in BEGINNINGS:
        del rest["init_lora_weights"]
    for key, value in sorted(rest.items()):
        if value:  # None, False, 0, "" and empty lists are how options are off
            raise AdapterRefused(f"{CONFIG} sets {key} = {value!r}, which is not built here and would change what the adapter "
                                 f"answers or learns; {CURES.get(key, 'train without it')}")
    try:
        return AdapterConfig(r, alpha * math.sqrt(r) if rs else alpha, targets, saved)  # scale alpha / sqrt(r)
    except (TypeError, ValueError) as error:
        raise AdapterRefused(f"{CONFIG}: {error}") from error


def _names(value: Any, key: str) -> tuple[str, ...]:
    if value is not None and (not isinstance(value, list) or not all(isinstance(name, str) for name in value)):
        raise AdapterRefused(f"{CONFIG}: {key} = {value!r} is no list of names (a pattern?); list the layers' names")
    return tuple(sorted(value or ()))
