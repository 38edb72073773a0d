"""Whether a folder holds a vision-language model, told without torch: what `check` can know."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from selfloop.roles import SelfloopError

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
"""What weights are loaded as; auto: as they were saved."""
DTYPES: tuple[str, ...] = get_args(Dtype)

_HEADER = 100_000_000
"""The longest header that the format allows, in bytes."""


def local(model: str | Path) -> Path | None:
    """The folder that a model's name means; None for a hub id of which there is no such folder.

    Raises SelfloopError for what is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or str(model).startswith(("~", ".")) or str(model).count("/") != 1:
        raise SelfloopError(f"no model folder at {path}: give a folder that save_pretrained wrote, "
                            "or a hub id such as owner/name")
    return None


def check_files(folder: Path) -> None:
    """Raises SelfloopError naming the first file that a VLM folder lacks."""
    if not (folder / "config.json").is_file():
        raise SelfloopError(f"{folder} has no config.json: it is not a from_pretrained folder")
    if not any((folder / name).is_file()
               for name in ("processor_config.json", "preprocessor_config.json")):
        raise SelfloopError(f"{folder} has no processor (processor_config.json or "
                            "preprocessor_config.json): save it there with "
                            "AutoProcessor.from_pretrained(...).save_pretrained(folder)")
    if not list(folder.glob("*.safetensors")):
        raise SelfloopError(f"{folder} has no *.safetensors weights: selfloop reads no pickles; "
                            "convert them with save_pretrained(..., safe_serialization=True)")


def has_chat_template(folder: Path) -> bool:
    """Whether any file of the folder brings the template that turns a question into a prompt."""
    if (folder / "chat_template.jinja").is_file() or any(
            folder.glob("additional_chat_templates/*.jinja")):
        return True
    return any(_json(folder / name).get("chat_template") for name in (
        "chat_template.json", "processor_config.json", "tokenizer_config.json"))


def without_weights(folder: Path, targets: Iterable[str]) -> list[str]:
    """Those of the layers' names that no weight of the folder bears. A file that fuses layers may
    name them otherwise, so this is a doubt; the model itself tells when it is loaded."""
    names = {part for path in folder.glob("*.safetensors") for key in _header(path)
             for part in key.split(".")[-2:-1]}
    return [target for target in targets if target not in names]


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file holds, read from its beginning; empty for one that is broken."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            found = json.loads(file.read(min(length, _HEADER)))
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
