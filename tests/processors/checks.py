"""What a folder must pass, whatever its family: placeholders, several pictures, nothing cut,
nothing drawn that stands for a picture, both paths equal, and a clean bill from the doctor."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from hf_models import asked, open_picture
from processors.folders import Folder, make
from selfloop.doctor import diagnose
from selfloop.engines.hf import HFEngine
from selfloop.optimize.fork import stateful
from selfloop.roles import Request, Sampling
from selfloop.types import Branch, Context

QUESTIONS = ((1, 1), (2, 2), (5, 1), (4, 0))
"""(first picture, how many)."""


def engine(folder: Path) -> HFEngine:
    found = HFEngine(folder, dtype="float32", device="cpu", threads=1)
    found.bind(open_picture)
    return found


def contexts(recipe: Folder) -> list[Context]:
    return [asked(first, f"what is {first}?", pictures=n) for first, n in QUESTIONS
            if n or recipe.pictureless]


def placeholders(found: HFEngine, recipe: Folder) -> None:
    """As many as there are picture features, in every prompt; transformers counts them too."""
    image = found.processor.tokenizer.convert_tokens_to_ids(recipe.placeholder)
    assert image in found.prompts.placeholders and image in found.never
    counts = []
    for context in contexts(recipe):
        ids, media = found.render(context)
        counts.append(ids.count(image))
        assert (counts[-1] > 0) == bool(media)
        with torch.no_grad():
            logits = found.model(**found.prompts.inputs([(ids, media)])).logits
        assert logits.shape[1] == len(ids) and bool(torch.isfinite(logits).all())
    assert counts[0] and counts[1]


def nothing_cut(found: HFEngine) -> None:
    """A long question is all there, after its picture."""
    words = " ".join(f"word{i}" for i in range(30))
    ids, _ = found.render(asked(1, words))
    assert words in found.decode(ids)


def pictures_matter(found: HFEngine) -> None:
    """Another picture, another distribution."""
    last = []
    for number in (1, 5):
        ids, media = found.render(asked(number, "same words"))
        with torch.no_grad():
            last.append(found.model(**found.prompts.inputs([(ids, media)])).logits[0, -1])
    assert not torch.allclose(last[0], last[1], atol=1e-3)


def paths_agree(found: HFEngine, recipe: Folder) -> None:
    """Draws avoid what may not be drawn; both training paths give their log-probs."""
    mine = contexts(recipe)
    turns = found.generate([Request(context=c, key=f"k{i}", n=4,
                                    sampling=Sampling(max_new_tokens=12))
                            for i, c in enumerate(mine)], 0)
    drawn = [t for row in turns for t in row]
    assert not {token for t in drawn for token in t.token_ids} & set(found.never)
    rows = [found.rows(Branch(context=c, turns=(t,)))[0]
            for c, row in zip(mine, turns, strict=True) for t in row]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = found.logps(rows)[0]
    assert found.training_path == "shared prefix" and found.scorer.checked
    plain = found.scorer.plain(rows)[0]
    # Linear attention adds up states in float32: either path is 2e-4 from float64 here.
    noisy = stateful(found.model.config.get_text_config(decoder=True))
    for a, b, turn in zip(shared, plain, drawn, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-3 if noisy else 1e-5)
        assert torch.allclose(a, torch.tensor(turn.logprobs), rtol=0, atol=1e-3 if noisy else 1e-4)


def healthy(folder: Path) -> None:
    """`selfloop doctor FOLDER` finds no error."""
    wrong = [f for f in diagnose(str(folder)) if f.level == "error"]
    assert not wrong, wrong


def everything(name: str, recipe: Folder, folder: Path) -> None:
    """All of the above, on a folder made here."""
    make(name, recipe, folder)
    found = engine(folder)
    placeholders(found, recipe)
    nothing_cut(found)
    pictures_matter(found)
    paths_agree(found, recipe)
    healthy(folder)
