"""Whether a model folder is fit for the loop: what `selfloop doctor MODEL` looks at.

Each check tries the thing itself on the loaded model: a picture, a draw, a gradient.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from selfloop.roles import Request, Sampling, SelfloopError
from selfloop.types import Branch, Context, Media, Message, Part


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found and, where it is not well, how to mend it."""

    level: Literal["ok", "warning", "error"]
    what: str
    mend: str = ""


def guarded(what: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A check's findings; one more if it breaks off."""
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)
    except SelfloopError as error:
        found.append(Finding("error", f"{what}: {error}", "as the message says"))
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        found.append(Finding("error", f"{what}: {type(error).__name__}: {first}",
                             "load the folder with plain transformers to see the whole error"))
    return found


def of_model(model: str) -> Iterator[Finding]:
    """Load a folder or hub id and try all of `_CHECKS` on it."""
    from selfloop.engines.hearing import extractor_of
    from selfloop.engines.hf import HFEngine

    engine = HFEngine(model)
    engine.bind(_picture)
    yield Finding("ok", f"{engine.loaded.folder}: {type(engine.model).__name__} with "
                  f"{type(engine.processor).__name__}, "
                  f"{sum(p.numel() for p in engine.model.parameters()):,} parameters")
    for what, check in _CHECKS.items():
        yield from guarded(what, lambda check=check: check(engine))  # type: ignore[misc]
    if (hears := extractor_of(engine.processor)) is not None:
        yield Finding("ok", f"it takes sound, {hears.sampling_rate:,} samples a second")


def _weights(engine: Any) -> Iterator[Finding]:
    """Numbers that are none; how many positions the model's rotations are good for."""
    from selfloop.engines.hf_size import longrope_from

    broken = [name for name, p in engine.model.named_parameters()
              if p.is_floating_point() and not bool(p.isfinite().all())]
    if broken:
        yield Finding("error", f"{len(broken)} weights hold numbers that are not finite, "
                      f"{broken[0]} the first", "save the model again from a sound checkpoint")
    border = longrope_from(engine.model.config.get_text_config(decoder=True))
    if border is not None and border == engine.limit:
        yield Finding("warning", f"longrope: prompts and answers are kept to {border} positions, "
                      "from where on its rotations would depend on what else is in the batch",
                      "use fewer or smaller pictures where prompts are longer")


def _template(engine: Any) -> Iterator[Finding]:
    tokenizer = engine.processor.tokenizer
    end = tokenizer.convert_ids_to_tokens(list(engine.prompts.chat.end))
    yield Finding("ok", f"chat template: an answer ends with {' '.join(end)}")
    asked = Message(role="user", content=(Part(text="a b c"),))
    text = engine.prompts.chat.render([asked], generate=True)
    if "a b c" not in text or "'type'" in text:
        yield Finding("error", "the chat template does not write text parts as text",
                      "use a template that loops over message['content'] parts")


def _pictures(engine: Any) -> Iterator[Finding]:
    import torch

    contexts = [_asked("one"), _asked("two")]
    with torch.no_grad():
        logits = [engine.model(**engine.prompts.inputs([engine.render(c)]),
                               logits_to_keep=1).logits for c in contexts]
    ids, _ = engine.render(contexts[0])
    count = sum(t in engine.prompts.placeholders for t in ids)
    if not count:
        yield Finding("error", "a prompt with a picture holds no image tokens",
                      "the chat template must write the image token for parts of type image")
    else:
        yield Finding("ok", f"a picture becomes {count} tokens, as many as the model expects")
    pairs = [_asked("one", "two"), _asked("two", "one"), _asked("one", "three")]
    with torch.no_grad():
        both, swapped, other = (engine.model(**engine.prompts.inputs([engine.render(c)]),
                                             logits_to_keep=1).logits for c in pairs)
    if torch.equal(both, other):
        yield Finding("error", "the second of two pictures makes no difference",
                      "the chat template must write every picture of a message")
    elif torch.equal(both, swapped):
        yield Finding("warning", "the order of two pictures makes no difference",
                      "ask about one picture at a time")
    else:
        twice = sum(t in engine.prompts.placeholders for t in engine.render(pairs[0])[0])
        yield Finding("ok", f"two pictures in one prompt become {twice} tokens, in their order")
    if torch.equal(logits[0], logits[1]):
        yield Finding("warning", "two different pictures give the very same prediction",
                      "the pictures do not reach the language model: check the processor")


def _suppressed(engine: Any) -> Iterator[Finding]:
    from selfloop.engines.tokens import not_followed

    tokenizer, reasons = engine.processor.tokenizer, dict[str, list[str]]()
    for token, why in sorted(engine.never.items()):
        reasons.setdefault(why.split(": ")[0], []).append(
            str(tokenizer.convert_ids_to_tokens(token)))
    for why, names in reasons.items():
        some = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield Finding("ok", f"never sampled ({why}): {some}")
    if left := not_followed(engine.model.generation_config):
        yield Finding("warning", "generation_config.json sets " + ", ".join(left) + ", which "
                      "model.generate follows and draws do not: what is trained is the model's "
                      "own distribution", "leave them out of generation_config.json if answers "
                      "shall be the same elsewhere")
    if not engine.prompts.placeholders:
        yield Finding("warning", "no token of this model looks like an image placeholder",
                      "name it image_token_id in config.json")


def _truncation(engine: Any) -> Iterator[Finding]:
    path = engine.loaded.folder / "tokenizer.json"
    setting = json.loads(path.read_text(encoding="utf-8")).get("truncation") \
        if path.is_file() else None
    if setting:
        yield Finding(
            "warning", f"tokenizer.json cuts texts at {setting.get('max_length')} tokens; selfloop "
            "switches that off, but other programs would cut image tokens",
            'set "truncation": null in tokenizer.json')
    else:
        yield Finding("ok", "the tokenizer cuts nothing off")


def _greedy(engine: Any) -> Iterator[Finding]:
    """Our decoding against model.generate, token for token."""
    import torch

    context = _asked("one")
    turn = engine.generate([Request(context=context, key="doctor", sampling=Sampling(
        temperature=0, max_new_tokens=12))], engine.version)[0][0]
    inputs = engine.prompts.inputs([engine.render(context)])
    with torch.no_grad():
        out = engine.model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=12,
            suppress_tokens=sorted(engine.never), eos_token_id=sorted(engine.sampler.ends))
    theirs = tuple(out[0, inputs["input_ids"].shape[1]:].tolist())
    if theirs == turn.token_ids:
        yield Finding("ok", f"greedy decoding equals model.generate ({len(theirs)} tokens)")
    else:
        yield Finding("warning", f"greedy decoding {turn.token_ids} differs from model.generate "
                      f"{theirs}", "look at generation_config.json (penalties, forced tokens); in "
                      "bfloat16 near-ties may differ, so repeat in float32")


def _agreement(engine: Any) -> Iterator[Finding]:
    """Log-probs while sampling against log-probs while learning; the path that learning takes."""
    request = Request(context=_asked("one"), key="doctor", n=4,
                      sampling=Sampling(max_new_tokens=12))
    turns = engine.generate([request], engine.version)[0]
    branches = [Branch(context=request.context, turns=(turn,)) for turn in turns]
    scored = engine.logprobs(branches)
    gap = max(abs(a - b) for turn, now in zip(turns, scored, strict=True)
              for a, b in zip(turn.logprobs, now, strict=True))
    limit = 1e-3 if "float32" in str(engine.model.dtype) else 0.2
    if gap <= limit:
        yield Finding("ok", f"sampler and learner log-probs agree to {gap:.1g}")
    else:
        yield Finding("error", f"sampler and learner log-probs differ by {gap:.3g}",
                      "this model's attention is not causal over the answer, or its positions "
                      "are not; importance ratios would be wrong: use another model")


def _paths(engine: Any) -> Iterator[Finding]:
    """What a prompt leaves behind, and whether its answers may share it: sampling, learning."""
    from transformers import DynamicCache

    from selfloop.engines.hf_windows import says

    text = engine.model.config.get_text_config(decoder=True)
    kinds = Counter(type(layer).__name__ for layer in DynamicCache(config=text).layers)
    yield Finding("ok", "cache: " + (", ".join(f"{name} x{n}" for name, n in sorted(kinds.items()))
                                     or "keys and values"))
    why = engine.sampler.why_not
    yield Finding("warning", f"sampling path: a copy of the prompt for each draw: {why}",
                  "sampling works, only slower") if why \
        else Finding("ok", "sampling path: one prompt for all draws")
    request = Request(context=_asked("one"), key="doctor", n=3,
                      sampling=Sampling(max_new_tokens=12))
    engine.sampler.recorder.after = 0  # at once
    turns = engine.generate([request], engine.version)[0]
    if not why:
        slow = engine.sampler.recorder.says
        yield Finding("ok", "sampling steps: " + (
            f"through the model's code: {slow}" if slow else "recorded"))
    if towers := says(engine.model):
        yield Finding("ok", f"windows of the vision tower: {towers}")
    rows = [row for turn in turns
            for row in engine.rows(Branch(context=request.context, turns=(turn,)))]
    gaps = engine.compare(rows)
    if (path := engine.training_path) == "shared prefix":
        yield Finding("ok", "training path: shared prefix; beside the plain path log-probs differ "
                      f"by {gaps[0]:.1g}, gradients by {gaps[1]:.1g} of their norm")
    else:
        yield Finding("warning", f"training path: {path}",
                      "training works, without shared prompts")


def _lora(engine: Any) -> Iterator[Finding]:
    from selfloop.engines.hf_load import language_linears

    found = {name: len(full) for name, full in language_linears(engine.model).items()}
    if found:
        names = ", ".join(f"{name} x{count}" for name, count in sorted(found.items()))
        yield Finding("ok", f"LoRA targets: {names}")
    else:
        yield Finding("warning", "no linear layers in the language model", "train without LoRA")


_CHECKS: dict[str, Callable[[Any], Iterator[Finding]]] = {
    "weights": _weights, "chat template": _template, "pictures": _pictures,
    "suppressed tokens": _suppressed,
    "truncation": _truncation, "greedy decoding": _greedy, "log-probs": _agreement,
    "shared prefix": _paths, "LoRA": _lora,
}


def _asked(*names: str) -> Context:
    media = tuple(Media(sha256=hashlib.sha256(name.encode()).hexdigest()) for name in names)
    return Context(prompt=(Message(role="user", content=(
        *(Part(type="image") for _ in media), Part(text="what is in this picture?"))),),
        media=media)


def _picture(medium: Media) -> Any:
    """A patchwork of colours made from the hash: every medium its own picture."""
    from PIL import Image

    colours = bytes.fromhex(medium.sha256)[:27]
    return Image.frombytes("RGB", (3, 3), colours).resize((96, 72), Image.Resampling.NEAREST)
