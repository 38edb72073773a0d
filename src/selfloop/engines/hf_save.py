"""Folders that plain from_pretrained loads, and the identity of a model."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from selfloop.engines import hf_adapters
from selfloop.engines.hf_load import Loaded, no_progress_bars
from selfloop.optimize.sharding import is_cut, whole
from selfloop.roles import SelfloopError


def save(loaded: Loaded, folder: Path) -> None:
    """Model (or PEFT adapter), processor, chat template and generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        if loaded.peft is not None:
            hf_adapters.save(loaded.peft, loaded.adapter, folder)
            _in_order(folder / "adapter_config.json")
        else:
            cut = [n for n, x in loaded.model.state_dict().items() if is_cut(x)]
            pieces = {n: whole(loaded.model.state_dict()[n]) for n in cut}
            if None not in pieces.values():  # else another process writes
                state = {"state_dict": {**loaded.model.state_dict(), **pieces}} if cut else {}
                loaded.model.save_pretrained(folder, **state)
    loaded.processor.save_pretrained(folder)


def save_adapter_settings(loaded: Loaded, folder: Path) -> None:
    """The adapters' settings alone, as PEFT writes them beside adapters."""
    loaded.peft.peft_config[loaded.adapter].save_pretrained(str(folder))
    _in_order(folder / "adapter_config.json")


def _in_order(path: Path) -> None:
    """PEFT lists a set in the order of the process's hash seed; equal settings are equal bytes."""
    config = json.loads(path.read_text())
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_merged(loaded: Loaded, folder: Path) -> None:
    """Full weights, adapters merged; the model in memory is left as it was."""
    if loaded.peft is None:
        save(loaded, folder)
        return
    if getattr(loaded.model, "is_loaded_in_4bit", False):
        raise SelfloopError(
            "a base in 4 bits cannot be merged into without rounding it for good: save the "
            "adapters, and merge them into the full base with `selfloop export RUN --merge`")
    if any(map(is_cut, loaded.model.parameters())):
        raise SelfloopError("adapters cannot be merged into layers that are cut (shard): save the "
                            "adapters, and merge them with `selfloop export RUN --merge`")
    folder.mkdir(parents=True, exist_ok=True)
    # Merged on a copy: unmerging again would leave rounding in the weights that go on learning.
    merged = copy.deepcopy(loaded.peft).merge_and_unload(adapter_names=[loaded.adapter])
    with no_progress_bars():
        merged.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)


def fingerprint(loaded: Loaded, settings: Sequence[str]) -> str:
    """Hash of the folder's weights, configs, processor and template files, and of settings."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(loaded.folder.iterdir()):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model"):
            found.update(path.name.encode() + b"\0")
            with open(path, "rb") as file:
                found.update(hashlib.file_digest(file, "blake2b").digest())
    for setting in settings:
        found.update(setting.encode() + b"\0")
    return found.hexdigest()
