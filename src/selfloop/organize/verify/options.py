"""Which options an answer names: by letter, in all the ways that people write one, or by text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from selfloop.organize.verify.final import (
    explained,
    final_answer,
    normal,
    unthought,
    unwrapped,
)

_LEAD = re.compile(
    r"[\s*_`]*(?:(?:so|thus|hence|therefore|then|i (?:think|believe|would say)(?: that)?|"
    r"(?:i|we) (?:choose|select|pick|would choose|go with)|it is|it['’]s|it must be|"
    r"(?:the |my )?(?:(?:correct|right|best|final|most likely) )?(?:options?|choices?|answers?|"
    r"letters?)(?: (?:is|are|would be|must be))?)\b[\s:,*_`]*)", re.I)
_LETTER = re.compile(r"(?P<open>[\W_]*)(?P<letter>[A-Za-z])(?![\w'’])(?P<rest>.*)", re.S)
_DENIED = re.compile(r"\W*\s*(?:(?:is|was|are|can|could|does|would|will)\s*(?:not\b|n['’]t\b)|"
                     r"cannot\b|"
                     r"(?:is|was|seems|looks)\s+(?:wrong|incorrect|false|ruled out|unlikely)\b|"
                     r"(?:can|could) be (?:ruled out|excluded|eliminated)\b)", re.I)
_CHOSEN = re.compile(r"\s+(?:is (?:the |my )?(?:\w+ )?(?:correct|right|best|true|answer|choice|"
                     r"option)\b|because\b|since\b)", re.I)
_NOT = re.compile(r"(?:\b(?:not|nor|never|than|instead of|except)|n['’]t)\s+"
                  r"(?:(?:the )?(?:option|answer|choice)s?\s+)?[(\"'*]*$", re.I)
_NEAR = 60
_JOINS = re.compile(r"(?:^|\b(?:or|and|also|but|because|since|as|while|maybe|perhaps|possibly|"
                    r"either|both|option|choice|answer|then|is|even|nor|to|actually|no|wait)|"
                    r"[,/&+;|(])[\s\"'*(]*$", re.I)


def option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer finally names: our own, fair rule.

    A letter counts at the start of the final answer ("B", "(b)", "B. a cat", "Option B"); "A" and
    "I" are also words, so before a space they count only if their option's text follows, or "is the
    answer". Naming a second letter is no answer, unless it is denied ("B, not A") or belongs to the
    option's text; so is a letter that is denied itself. Else the text of exactly one option. Where
    the final part names none and nothing is announced, the first line may, if no later one names
    another.
    """
    for said in (final_answer(text), unthought(text).strip().rsplit("\n", 1)[-1]):
        found = _named(said, options) if said else None
        if found is not None:
            return found
    return _answered_first(explained(text) or "", options)


def _answered_first(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the first line, which the lines below explain; None where they name another."""
    first, _, below = text.partition("\n")
    letter = _named(first, options)
    if letter is None or not below.strip() or _others("\n" + below, letter, options):
        return None
    for line in below.splitlines():
        lead = _LETTER.match(_bare(line))
        if lead is None or lead["letter"].upper() not in {*options} - {letter}:
            continue
        article = lead["letter"] in "AI" and re.match(r"\s+[a-z]", lead["rest"]) is not None
        if not article and not _DENIED.match(lead["rest"]):
            return None
    return letter


def letters(text: str, most: str = "ABCDEFGHIJ") -> tuple[str, ...]:
    """The letters of an answer that is nothing but a list of them: "A, C", "A and C", "AC"."""
    found = final_answer(text)
    bare = _bare(found) if found else ""
    one = rf"[(\[]?[{most}{most.lower()}][)\].]?"
    if re.fullmatch(rf"[{most}]{{1,10}}", bare) and len(set(bare)) == len(bare):
        return tuple(sorted(bare))
    if not re.fullmatch(rf"{one}(?:(?:\s*[,;/&+]\s*(?:and\s+)?|\s+and\s+|\s+){one}){{0,9}}", bare):
        return ()
    return tuple(sorted({c.upper() for c in re.findall(rf"\b[{most}{most.lower()}]\b", bare)}))


def _bare(said: str) -> str:
    """Without LaTeX's and Markdown's dress, and without "the correct option is"."""
    said = re.sub(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}", r"\1", unwrapped(said))
    said = re.sub(r"[*`$]|\\[()\[\],;!]", "", said).strip()
    for _ in range(4):
        lead = _LEAD.match(said)
        if lead is None or not said[lead.end():].strip():
            break
        said = said[lead.end():]
    return said.strip().strip("\"'“”").strip()


def _named(whole: str, options: Mapping[str, str]) -> str | None:
    said = _bare(whole)
    lead = _LETTER.match(said)
    if lead and (letter := lead["letter"].upper()) in options:
        rest = lead["rest"]
        own = options[letter]
        if not re.search(r"\w", rest) or (own and normal(rest) == normal(own)):
            return letter
        if _DENIED.match(rest):
            return None
        if _leads(lead["open"], lead["letter"], rest) and not _others(rest, letter, options):
            return letter
    same = [letter for letter, other in options.items() if other and normal(other) == normal(whole)]
    return same[0] if len(same) == 1 else None


def _leads(opened: str, letter: str, rest: str) -> bool:
    """Whether a letter before other words is an option, and no word of a sentence."""
    if _CHOSEN.match(rest):
        return True
    if rest[:1].isspace() and not re.match(r"\s+[-–—:(=]", rest):
        return letter.isupper() and letter not in "AI" and not opened.strip()
    return not (letter in "aI" and rest[:1] == ",") or bool(opened.strip())


def _others(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows names another option: as a letter that is joined or marked as one."""
    for m in re.finditer(r"(?<![\w'’])([A-Za-z])(?![\w'’])", rest):
        other, before, after = m[1].upper(), rest[max(0, m.start() - _NEAR):m.start()], \
            rest[m.end():m.end() + _NEAR]
        if other == letter or other not in options or _NOT.search(before):
            continue
        marked = after[:1] in tuple(").:]") and (after[:1] != "." or re.match(r"\.\s+\w", after))
        joined = _JOINS.search(before) is not None or not re.search(r"\w", before)
        article = m[1] in "aAI" and re.match(r"\s+[a-z]", after) is not None
        if (marked and (m[1].isupper() or before.endswith("("))) or (joined and not article):
            return True
    return False
