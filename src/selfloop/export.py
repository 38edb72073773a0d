"""From a run to a folder that plain transformers loads, with a model card that claims no more
than was measured.

What was promoted is in run/best as the engine saved it. Any other version that still has a
checkpoint can be put over the base model's weights.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import selfloop
from selfloop.report import sections
from selfloop.report.card import card
from selfloop.report.facts import Findings, gather
from selfloop.roles import SelfloopError
from selfloop.store import put_folder, put_json

_ADAPTER = "adapter_config.json"


def export(folder: str | Path, out: str | Path, *, merge: bool = False, model: str | None = None,
           version: int | None = None, role: str = "solver", dtype: str = "auto") -> Path:
    """Write a run's promoted weights to `out`, as a from_pretrained folder; returns it.

    With adapters, `merge` writes full weights in `dtype` (auto: the base model's own); without
    it the PEFT adapter folder is written. `model` is the base model, where the run does not name
    it. `version` exports a version that was not promoted, from its checkpoint. Raises
    SelfloopError when nothing was promoted, when the base model is needed and not known, and
    when `out` is not empty.
    """
    found = gather(folder)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SelfloopError(f"{out} is not empty: give another folder, or empty it first")
    last = found.iterations[-1] if found.iterations else None
    chosen = version if version is not None else last.best if last else 0
    promoted = bool(last and last.best and chosen == last.best)
    source = _best(found, role) if promoted else _checkpoint(found, version, role)
    base = model or _recorded(found, source)

    def fill(aside: Path) -> None:
        if promoted:
            _copy_or_merge(source, aside, base, merge, dtype)
        else:
            _over_base(found, source, aside, base, merge, role)
        adapter = (aside / _ADAPTER).exists()
        if adapter and base:
            _name_base(aside / _ADAPTER, base)
        (aside / "README.md").write_text(
            card(found, base=base, adapter=adapter, version=chosen, promoted=promoted),
            encoding="utf-8")
        put_json(aside / "selfloop.json", _manifest(found, aside, chosen, promoted, role, base))

    put_folder(out.absolute(), fill)
    return out


# -- where the weights are ------------------------------------------------------------------------

def _best(found: Findings, role: str) -> Path:
    """run/best/<role>; a single engine that plays every role is stored under one of them."""
    best = found.run.path / "best"
    there = sorted(p.name for p in best.iterdir() if p.is_dir()) if best.is_dir() else []
    name = role if role in there else there[0] if len(there) == 1 else None
    if name is None:
        raise SelfloopError(f"{best} has no weights of the role {role!r}" + (
            f": there are {', '.join(there)}, give one of them as role=" if there else
            ": the promoted weights were removed; export a checkpoint with version="))
    return best / name


def _checkpoint(found: Findings, version: int | None, role: str) -> Path:
    there = found.run.checkpoints()
    if version is None:
        held = [v for v in there if v]
        mend = (f"to export what was held, give version={held[-1]} (--version {held[-1]})"
                if held else "and no trained version has a checkpoint: run more iterations")
        why = found.iterations[-1].decision.why if found.iterations else "no iteration finished"
        raise SelfloopError(f"{found.run.path}: no version was promoted ({why}); {mend}")
    if version not in there:
        raise SelfloopError(
            f"{found.run.path} has no checkpoint of version {version}: there are "
            f"{', '.join(map(str, there)) or 'none'}")
    folder = found.run.checkpoint(version)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if role not in names and len(names) != 1:
        raise SelfloopError(f"{folder} has no role {role!r}: there are {', '.join(names)}")
    return folder / (role if role in names else names[0])


def _recorded(found: Findings, source: Path) -> str | None:
    """The base model as the run names it: in loop.json, run.yaml, or the adapters' own config."""
    import yaml

    for place in (found.run.path, found.folder):
        try:
            named = yaml.safe_load((place / "run.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            named = None
        for known in (found.about, named):
            if isinstance(known, dict) and isinstance(known.get("model"), str):
                return str(known["model"])
    try:
        config = json.loads((source / _ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(config.get("base_model_name_or_path") or "") or None


# -- writing --------------------------------------------------------------------------------------

def _copy_or_merge(source: Path, aside: Path, base: str | None, merge: bool, dtype: str) -> None:
    adapter = (source / _ADAPTER).exists()
    if not adapter and not (source / "config.json").exists():
        raise SelfloopError(f"{source} is no from_pretrained folder: its engine (a toy?) saves no "
                            "model that transformers could load")
    if adapter and merge:
        _merge(source, aside, _needed(base, "to merge its adapters"), dtype)
    else:
        shutil.copytree(source, aside, dirs_exist_ok=True)


def _needed(base: str | None, what: str) -> str:
    if base is None:
        raise SelfloopError(f"the run does not name its base model, which is needed {what}: "
                            "give model=, the folder or hub id that the run started from")
    return base


def _place(base: str) -> str:
    """What `load` takes for a base model as run.yaml names it."""
    seed = Path(selfloop.__file__).parent / "testbeds" / "seed"
    return str(seed) if base == "embedded" else base


def _merge(adapter: Path, aside: Path, base: str, dtype: str) -> None:
    """Base + adapters, added in float32 so that the sum is rounded once."""
    import torch
    from peft import PeftModel

    from selfloop.engines.hf_load import load

    loaded = load(_place(base), dtype=dtype, device="cpu")
    own = next(loaded.model.parameters()).dtype
    merged: Any = PeftModel.from_pretrained(loaded.model.to(torch.float32), str(adapter))
    merged = merged.merge_and_unload().to(own)
    merged.save_pretrained(aside)
    loaded.processor.save_pretrained(aside)


def _over_base(found: Findings, source: Path, aside: Path, base: str | None, merge: bool,
               role: str) -> None:
    """A checkpoint's trainable weights over the base model's."""
    tensors = _trainable(source)
    if "lora_" in "".join(tensors):
        _adapters(found, tensors, source, aside, _needed(base, "under its adapters"), merge, role)
        return
    from selfloop.engines.hf_load import load

    dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors.values()}
    named = _needed(base, "for its config and processor")
    loaded = load(_place(named), dtype=dtypes.pop(), device="cpu")
    _put(loaded.model, tensors, source)
    loaded.model.save_pretrained(aside)
    loaded.processor.save_pretrained(aside)


def _trainable(source: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    path = source / "trainable.safetensors"
    if not path.exists():
        raise SelfloopError(f"{path} is missing: this checkpoint is not of an engine that learns")
    found: dict[str, Any] = load_file(path)
    return found


def _put(net: Any, tensors: dict[str, Any], source: Path) -> None:
    import torch

    own = dict(net.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise SelfloopError(
                f"{source} has the weight {name} {tuple(tensor.shape)}, which the base model "
                "lacks or has in another shape: give the model= that the run started from")
        with torch.no_grad():
            own[name].copy_(tensor)


def _adapters(found: Findings, tensors: dict[str, Any], source: Path, aside: Path, base: str,
              merge: bool, role: str) -> None:
    """A checkpoint's adapters under the settings that are stored with them."""
    from peft import LoraConfig, get_peft_model

    from selfloop.engines.hf_load import load

    settings = source if (source / _ADAPTER).exists() else _best(found, role)
    try:
        like: Any = LoraConfig.from_pretrained(str(settings))
    except (ValueError, OSError):
        raise SelfloopError(
            f"{source} holds LoRA adapters without their {_ADAPTER}: load the checkpoint with the "
            "run's own engine (engine.load_state) and save it (engine.save)") from None
    loaded = load(_place(base), device="cpu")
    peft: Any = get_peft_model(loaded.model, like)
    _put(loaded.model, tensors, source)
    if merge:
        peft = peft.merge_and_unload()
    peft.save_pretrained(aside)
    loaded.processor.save_pretrained(aside)


def _name_base(path: Path, base: str) -> None:
    """Adapters point at their base model; a path of the training machine would be of no use."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _manifest(found: Findings, aside: Path, version: int, promoted: bool, role: str,
              base: str | None) -> dict[str, Any]:
    """What the weights came from, for machines."""
    about = found.about
    return {
        "name": found.name, "base_model": base, "role": role, "version": version,
        "promoted": promoted, "fingerprint": about.get("fingerprint"),
        "loop": about.get("loop"), "printed": about.get("printed"), "data": about.get("data"),
        "dev": about.get("dev"), "engines": about.get("engines"),
        "iterations": [i.model_dump(mode="json") for i in found.iterations],
        "summary": found.summary, "cost": [list(row) for row in sections.cost(found)],
        "versions": {"run": about.get("selfloop"), "selfloop": selfloop.__version__,
                     "python": platform.python_version(), **_versions()},
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
                  for p in sorted(aside.iterdir()) if p.is_file()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "peft", "safetensors", "numpy"):
        try:
            found[package] = installed(package)
        except PackageNotFoundError:
            continue
    return found
