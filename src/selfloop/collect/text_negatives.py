"""Worse texts: one named thing swapped for another, a cut, and prompts that ask for inventions.

Everything here is a pure function of (text or context, severity in [0, 1], key): severity 0
changes nothing, the same key gives the same text, and what a smaller severity changes a larger one
changes too. The words are those of a `lexicon`; a text that names nothing is left alone.
"""

from __future__ import annotations

import math
import re

from selfloop import keys
from selfloop.collect.guided import ending
from selfloop.collect.lexicon import ENGLISH, Lexicon, takes_an
from selfloop.collect.mentions import ARTICLE, SWAPS
from selfloop.roles import SelfloopError
from selfloop.types import Context


def checked(severity: float) -> float:
    """The severity, if it is one. Raises SelfloopError outside [0, 1]."""
    if not 0 <= severity <= 1:
        raise SelfloopError(f"severity is {severity}; expected a number from 0 to 1")
    return severity


def truncated(text: str, severity: float, key: str = "") -> str:
    """The text without the last `severity` of its words; white space within it stays as it was."""
    words = list(re.finditer(r"\S+", text))
    kept = len(words) - math.floor(checked(severity) * len(words) + 1e-9)
    return text if kept == len(words) else text[:words[kept - 1].end()] if kept else ""


# -- swaps ----------------------------------------------------------------------------------------

def swapped(text: str, kind: str, severity: float, key: str,
            vocabulary: frozenset[str] = frozenset(), lexicon: Lexicon = ENGLISH) -> str:
    """The text with a `severity` share of its mentions of one kind (rounded up) swapped.

    `kind` is one of `SWAPS`: entity, attribute, number, relation. A swap keeps case and plural,
    takes a word that the text does not name yet where its class has one left, and changes no other
    character; the article a or an is kept if a word fits it, and else put right. For a model of few
    words, `vocabulary` names those (and digits) that it can say; empty = any. What is swapped for
    what is in `lexicon`. Raises SelfloopError for another kind.
    """
    if kind not in SWAPS:
        raise SelfloopError(f"no text swap {kind!r}; there are: {', '.join(sorted(SWAPS))}")
    mentions = [m for m in SWAPS[kind](text, lexicon, vocabulary) if m.choices]
    # The tolerance: .7 * 10 is a little more than 7 in floating point.
    changed = math.ceil(checked(severity) * len(mentions) - 1e-9)
    picked = sorted(keys.shuffled(len(mentions), f"{key}/{kind}/order")[:changed])
    for i in reversed(picked):  # from the back, so that earlier positions stay true
        start, end, choices = mentions[i]
        new = choices[int(keys.generator(f"{key}/{kind}/{i}").integers(len(choices)))]
        before = _with_article(text[:start], text[start:end], new)
        text = before + _cased_like(text[start:end], new) + text[end:]
    return text


def _cased_like(old: str, new: str) -> str:
    if old.lower() in ("tv", "tvs"):  # these capitals are no emphasis
        return new
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[:1].isupper() else new


def _with_article(before: str, old: str, new: str) -> str:
    """What stands before a swapped word, its "a" or "an" put right if it was right before."""
    article = ARTICLE.search(before)
    if article is None or takes_an(new) == (len(article[1]) == 2) or (
            takes_an(old) != (len(article[1]) == 2)):
        return before
    right = article[1][0] + ("N" if article[1].isupper() and old.isupper() else "n") * takes_an(new)
    return before[:article.start(1)] + right + before[article.end(1):]


# -- prompts --------------------------------------------------------------------------------------

ELICITING: tuple[str, ...] = (
    "Also tell of {amount} that might well be there but cannot be seen.",
    "Add {amount} that would suit such a scene, as if it were in the picture.",
    "Mention {amount} just outside the frame as though it were visible.",
    "Fill in {amount} from what you know of similar pictures.",
    "Make it livelier with {amount} of your own invention, told as fact.",
    "Say what people nearby are doing, with {amount}, even if there is nobody.",
    "Guess {amount} that is too small to make out, and state it without doubt.",
    "Name {amount} that usually goes with what is shown, whether or not it is there.",
)
"""Eight ways to ask for hallucinations (the idea is STIC's, arXiv 2405.19716; own words)."""

AMOUNTS = ("one small thing", "a few things", "many things")


def eliciting(context: Context, severity: float, key: str) -> Context:
    """The context with a request for inventions: few, some or many, in one of eight wordings."""
    if checked(severity) == 0:
        return context
    wording = ELICITING[int(keys.generator(f"{key}/eliciting").integers(len(ELICITING)))]
    return ending(context, wording.format(amount=AMOUNTS[math.ceil(3 * severity - 1e-9) - 1]))


def injecting(context: Context, text: str, severity: float) -> Context:
    """The conversation in which the model put `text` and is asked to put errors into it (BPO,
    arXiv 2403.08730; own words).

    The number of errors is `severity` of the sentences, rounded up. What comes back is the
    model's; that it is wrong has to be verified (`auditing.audit`).
    """
    sentences = max(1, len(re.findall(r"[.!?](?=\s|$)", text)))
    errors = math.ceil(checked(severity) * sentences - 1e-9)
    if not errors:
        return context
    return context.said("assistant", text).said("user", (
        f"Write this once more with {errors} of its facts about the picture made wrong (what is "
        "there, how many, what it is like, or where). Keep its length and style, and write "
        "nothing else."))
