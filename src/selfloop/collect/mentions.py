"""Where a text names things, what they are like, how many there are and where: what may be swapped.

Rules for plain English captions, by word forms alone. What could be meant otherwise (an adjective
that is also a noun, "on Monday") is left out rather than swapped wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import NamedTuple

from selfloop.collect.lexicon import ENGLISH, LOOSE, TWO_SENSES, Lexicon, Named, plural, takes_an


class Mention(NamedTuple):
    """One named thing in a text: its characters, and what it may become."""

    start: int
    end: int
    choices: tuple[str, ...]


ARTICLE = re.compile(r"(?<!\w)(an?)\s+$", re.I)


"""An article just before what follows."""


def _sayable(words: str, vocabulary: AbstractSet[str]) -> bool:
    """Whether a model of these words (and digits) can say it; no words = any."""
    return not vocabulary or all(word in vocabulary or (word.isdigit() and set(word) <= vocabulary)
               for word in words.split())


def _found(text: str, forms: Iterable[str]) -> list[re.Match[str]]:
    """Whole-word occurrences, the longest first where several begin at one place."""
    return list(_pattern(tuple(forms)).finditer(text))


@lru_cache(maxsize=64)
def _pattern(forms: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(re.escape(f) for f in sorted(forms, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{either})(?![\w-])", re.I)


def _chosen(text: str, found: Sequence[tuple[re.Match[str], Named]], of: Mapping[str, Named],
            vocabulary: AbstractSet[str]) -> list[Mention]:
    """Mentions with those choices that can be said and that the text does not name; all of them,
    where it names every one ("small or large": two things may change places). Those that fit the
    article before them, if any do."""
    named = {known.thing for _, known in found}
    mentions = []
    for match, known in found:
        can = [c for c in known.choices if _sayable(c, vocabulary)]
        own = [c for c in can if of[c].thing not in named] or can
        article = ARTICLE.search(text[:match.start()])
        fits = [c for c in own if article and takes_an(c) == (len(article[1]) == 2)]
        mentions.append(Mention(match.start(), match.end(), tuple(fits or own)))
    return mentions


_SMALL = frozenset((
    "a", "an", "the", "this", "that", "these", "those", "his", "her", "its", "their", "my",
    "your", "our", "one", "some", "any", "no", "and", "or", "but", "with", "of", "on", "in",
    "at", "by", "to", "from", "under", "over", "near", "next", "beside", "behind", "above",
    "below", "into", "onto", "for", "as", "while", "is", "are", "was", "were", "be", "been",
    "has", "have", "had", "who", "which", "that", "sits", "sit", "stands", "stand", "lies",
    "lie", "hangs", "hang"))
_BEFORE = re.compile(r"([\w'-]+)\s+$")
_AFTER = re.compile(r"\s+([\w'-]+)")


def _like_a_noun(text: str, match: re.Match[str], lexicon: Lexicon) -> bool:
    """Whether a word of two senses stands like a noun: after an article, a number or an adjective,
    and not before a word that it may belong to ("an orange cat", "orange and white")."""
    before, after = _BEFORE.search(text[:match.start()]), _AFTER.match(text, match.end())
    last = before[1].lower() if before else ""
    if match[0].lower() in lexicon.nouns and not lexicon.nouns[match[0].lower()].plural and not (
            last in _DETERMINERS or last in lexicon.adjectives):
        return not last and not after
    if after is None:
        return True
    following = after[1].lower()
    if following in ("and", "or"):
        beyond = _AFTER.match(text, after.end())
        return beyond is None or beyond[1].lower() not in lexicon.adjectives
    return following in _SMALL or (following.endswith("ing") and following not in lexicon.nouns)


_DETERMINERS = frozenset((
    "a", "an", "the", "this", "that", "his", "her", "its", "their", "my", "your", "our", "one",
    "each", "every", "another", "no", "any", "some"))


def _entities(text: str, lexicon: Lexicon = ENGLISH, vocabulary: AbstractSet[str] = frozenset()
              ) -> list[Mention]:
    """Named things; not those that only say more of the next one ("a kitchen table")."""
    found = _found(text, lexicon.nouns)
    kept = []
    for i, match in enumerate(found):
        into = i + 1 < len(found) and text[match.end():found[i + 1].start()].isspace()
        word = match[0].lower()
        if into or (word in TWO_SENSES and not _like_a_noun(text, match, lexicon)):
            continue
        kept.append((match, _in_number(text, match, lexicon)))
    return _chosen(text, kept, lexicon.nouns, vocabulary)


_MANY = re.compile(r"(?<!\w)(?:\d+|many|several|few|some|both|of|these|those)\s+$", re.I)
_ARE = re.compile(r"\s+(?:are|were)\b", re.I)


def _in_number(text: str, match: re.Match[str], lexicon: Lexicon) -> Named:
    """The form that stands there; of one form for both (sheep), the plural where many are told."""
    known = lexicon.nouns[match[0].lower()]
    before = _BEFORE.search(text[:match.start()])
    many = _MANY.search(text[:match.start()]) or _ARE.match(text, match.end()) or (
        before is not None and before[1].lower() in lexicon.numbers)
    if known.plural or plural(known.thing) != known.thing or not many:
        return known
    return Named(known.thing, tuple(plural(c) for c in known.choices), plural=True)


def _attributes(text: str, lexicon: Lexicon = ENGLISH, vocabulary: AbstractSet[str] = frozenset()
                ) -> list[Mention]:
    """Adjectives; not those within a name ("hot dog"), nor a noun of the same letters."""
    names = [m.span() for m in _found(text, lexicon.nouns) if " " in m[0]]
    kept = []
    for match in _found(text, lexicon.adjectives):
        within = any(start <= match.start() < end for start, end in names)
        noun = match[0].lower() in TWO_SENSES and _is_the_noun(text, match, lexicon)
        if not within and not noun:
            kept.append((match, lexicon.adjectives[match[0].lower()]))
    return _chosen(text, kept, lexicon.adjectives, vocabulary)


def _is_the_noun(text: str, match: re.Match[str], lexicon: Lexicon) -> bool:
    """"an orange." and "a red square", but not "it is orange" or "an orange cat"."""
    before = _BEFORE.search(text[:match.start()])
    last = before[1].lower() if before else ""
    after = _AFTER.match(text, match.end())
    if match[0].lower() in lexicon.nouns:
        return _like_a_noun(text, match, lexicon)
    return last in ("of", "some") or (last in _DETERMINERS and (
        after is None or after[1].lower() in _SMALL))


def _relations(text: str, lexicon: Lexicon = ENGLISH, vocabulary: AbstractSet[str] = frozenset()
               ) -> list[Mention]:
    """Where things are and what they do; the loose ones (`LOOSE`) only before a thing."""
    found = [(m, lexicon.links[m[0].lower()]) for m in _found(text, lexicon.links)
             if m[0].lower() not in LOOSE or _before_a_thing(text, m.end(), lexicon)]
    return [Mention(m.start(), m.end(), tuple(
        c for c in known.choices if _sayable(c, vocabulary))) for m, known in found]


def _before_a_thing(text: str, at: int, lexicon: Lexicon) -> bool:
    """Whether a named thing follows, with no more than an article and three words between."""
    for thing in _found(text[at:at + 80], lexicon.nouns):
        words = text[at:at + thing.start()].lower()
        between = re.findall(r"[\w'-]+", words)
        if re.search(r"[.,;:!?]", words) or len(between) > 4:
            return False
        return all(w in _DETERMINERS or w not in _SMALL for w in between)
    return False


_FIGURES = re.compile(r"(?<![\w.,-])\d{1,9}(?![\w-]|[.,]\d)")
_ITEM = re.compile(r"^[ \t>*#-]*(\d{1,3})[.):](?=[ \t*]+\S)|(?<![\w(])(\d{1,3})\)(?=\s)", re.M)
_STEP = re.compile(r"\bstep[ \t]+(\d{1,3})\b", re.I)
_DOZEN = re.compile(r"(?<![\w-])(?:a dozen|a couple of|a pair of)(?=\s+(?!of\b)[\w-])", re.I)
_ONE = re.compile(r"(?<![\w-])one\s+", re.I)
_VERB = {"is": "are", "was": "were", "has": "have"}


def _numbers(text: str, lexicon: Lexicon = ENGLISH, vocabulary: AbstractSet[str] = frozenset()
             ) -> list[Mention]:
    """Number words from two, "a dozen" and "a couple of", "one" before a thing, and whole numbers
    in figures: no decimals, no "1,234", no "2nd", and no number of a list's item."""
    counting = _counting(text)
    shown = [m for m in _FIGURES.finditer(text) if m.start() not in counting]
    figures = {int(m[0]) for m in shown}
    words = _found(text, lexicon.numbers)
    named = {m[0].lower() for m in words}
    free = tuple(n for n in lexicon.numbers if n not in named)
    found = [Mention(m.start(), m.end(), free or tuple(
        n for n in lexicon.numbers if n != m[0].lower())) for m in words]
    found += [Mention(m.start(), m.end(), tuple(n for n in free if n not in ("two", "twelve")))
              for m in _DOZEN.finditer(text) if not _paired(text, m)]
    found += [one for m in _ONE.finditer(text) if (one := _one_thing(text, m, free, lexicon))]
    for m in shown:
        value = int(m[0])
        near = (value + step for step in (-3, -2, -1, 1, 2, 3))
        found.append(Mention(m.start(), m.end(), tuple(
            str(n) for n in near if n >= 0 and n not in figures)))
    return sorted(m._replace(choices=tuple(c for c in m.choices if _sayable(c, vocabulary)))
                  for m in found)


def _counting(text: str) -> set[int]:
    """Where numbers stand that count the items of a list or the steps of a chain, and tell nothing
    of the picture. Items begin at 1 and leave none out: "7. That is the sum." is an answer."""
    items = [(int(m[1] or m[2]), m.start(1 if m[1] else 2)) for m in _ITEM.finditer(text)]
    values = {value for value, _ in items}
    return {at for value, at in items if value == 1 or value - 1 in values} | {
        m.start(1) for m in _STEP.finditer(text)}


def _paired(text: str, match: re.Match[str]) -> bool:
    """"a pair of scissors" is one thing."""
    return "pair" in match[0].lower() and re.match(
        r"\s+(?:\w+\s+)?(?:skis|scissors|glasses|sunglasses|goggles|jeans|pants|shoes|shorts)\b",
        text[match.end():], re.I) is not None


def _one_thing(text: str, match: re.Match[str], free: tuple[str, ...], lexicon: Lexicon
               ) -> Mention | None:
    """"one red dog is": the number with its thing and the verb, since both have to follow it."""
    thing = next(iter(_found(text[match.end():match.end() + 60], lexicon.nouns)), None)
    if thing is None or lexicon.nouns[thing[0].lower()].plural:
        return None
    between = text[match.end():match.end() + thing.start()]
    if not all(w.lower() in lexicon.adjectives for w in between.split()):
        return None
    end = match.end() + thing.end()
    after = _AFTER.match(text, end)
    verb = after[1].lower() if after else ""
    if verb.endswith("s") and verb not in _VERB:  # "one dog sits": the verb's plural is not known
        return None
    rest = f"{text[end:after.start(1)]}{_VERB[verb]}" if after and verb in _VERB else ""
    many = f"{match[0][3:]}{between}{plural(thing[0].lower())}{rest}"
    return Mention(match.start(), after.end() if rest and after else end, tuple(
        f"{n}{many}" for n in free[:8]))


SWAPS: dict[str, Callable[..., list[Mention]]] = {
    "entity": _entities, "attribute": _attributes, "number": _numbers, "relation": _relations,
}
"""Kind of swap -> what finds its mentions in (text, lexicon, vocabulary)."""
