"""The table of docs/conformance.md, measured: `python -m families.table ../docs/conformance.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import cache_utils

from families import FAMILIES, Family
from families.drawing import draw, drift, jobs, sampler
from families.measuring import Measured, apart, exactly, groups, measure

OPEN, CLOSE = "<!-- conformance -->", "<!-- /conformance -->"
COLUMNS = ("family", "class", "cache", "positions", "path", "tokens", "log-prob 32", "gradient 32",
           "noise 32", "log-prob 64", "gradient 64", "rollout 32")
_KINDS = {"DynamicLayer": "keys", "DynamicSlidingWindowLayer": "window",
          "LinearAttentionLayer": "state", "DummyLayer": "borrowed"}


def row(name: str) -> dict[str, str]:
    """One family, measured in both dtypes."""
    narrow, wide = FAMILIES[name](torch.float32), FAMILIES[name](torch.float64)
    at32 = measure(narrow, groups(narrow))
    with exactly(torch.float64):
        at64 = measure(wide, groups(wide))
    asked, mine = jobs(narrow), sampler(narrow)
    rolled = drift(narrow, asked, draw(mine, asked))
    return {"family": name, "class": type(narrow.model).__name__, "cache": cache(narrow.model),
            "positions": positions(narrow), "path": path(at32), "rollout 32": _number(rolled),
            **_gaps(at32, at64)}


def _gaps(at32: Measured, at64: Measured) -> dict[str, str]:
    """A family that is not shared has no gaps: both columns would be the plain path's."""
    noise = _number(apart(at32.plain.gradients, at64.plain.gradients)[0])
    if at32.why_not:
        return {"tokens": "1.0", "noise 32": noise, "log-prob 32": "", "gradient 32": "",
                "log-prob 64": "", "gradient 64": ""}
    return {"tokens": f"{at32.ratio:.1f}", "noise 32": noise,
            "log-prob 32": _number(at32.logp), "gradient 32": _number(at32.gradient),
            "log-prob 64": _number(at64.logp), "gradient 64": _number(at64.gradient)}


def path(found: Measured) -> str:
    return f"plain: {_short(found.why_not)}" if found.why_not else "shared"


def _short(why: str) -> str:
    """The reason without its numbers, which change from machine to machine."""
    return why.split(": ", 1)[-1].split(" by ")[0]


def cache(model: Any) -> str:
    """Kinds of cache layers, in transformers' words made short, with how many there are."""
    text = model.config.get_text_config(decoder=True)
    kinds = [_KINDS.get(type(layer).__name__, type(layer).__name__)
             for layer in cache_utils.DynamicCache(config=text).layers]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "made as needed"


def positions(family: Family) -> str:
    """What position ids the decoder is given for a prompt with a picture."""
    seen: list[Any] = []
    decoder = family.model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, args, named: seen.append(named.get("position_ids")), with_kwargs=True)
    row_ = family.rows((1,), 3, (2,))[0]
    with torch.no_grad():
        family.model(**family.reader.alone(row_))
    hook.remove()
    ids = seen[-1] if seen else None
    if ids is None or ids.dim() < 3:
        return "1-D" if ids is None or int(ids.min()) == 0 else f"1-D from {int(ids.min())}"
    return "M-RoPE"


def _number(value: float) -> str:
    return f"{value:.0e}"


def table() -> Iterator[str]:
    """Its lines."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for name in FAMILIES:
        found = row(name)
        yield f"| {' | '.join(found[column] for column in COLUMNS)} |"


def written(text: str) -> list[dict[str, str]]:
    """The rows that a document holds."""
    lines = text.split(OPEN)[1].split(CLOSE)[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def main(document: Path) -> None:
    """Write the table between its marks."""
    torch.set_num_threads(1)
    text = document.read_text()
    before, rest = text.split(OPEN)
    document.write_text(f"{before}{OPEN}\n" + "\n".join(table()) + f"\n{CLOSE}"
                        + rest.split(CLOSE)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
