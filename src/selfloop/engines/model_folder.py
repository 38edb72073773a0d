"""Whether a folder holds a vision-language model, told without torch: what `check` can know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from selfloop.roles import SelfloopError

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
"""What weights are loaded as; auto: as they were saved."""
DTYPES: tuple[str, ...] = get_args(Dtype)


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
