"""Which known objects a text names: words, plural forms, synonyms and compounds of several words.

No tagger and no word vectors: a list of words, rules of English plurals, and the longest compound
that fits. What the list does not hold is not seen, so a list belongs to every figure made with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

from selfloop.roles import SelfloopError

NOTHING = ""
"""What a compound stands for that names none of the objects ("train station" is no train)."""

_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "oxen": "ox", "feet": "foot", "teeth": "tooth", "wolves": "wolf",
    "calves": "calf", "halves": "half", "hooves": "hoof", "buses": "bus", "busses": "bus",
    "lenses": "lens", "gases": "gas", "leaves": "leaf",
}
_BEFORE = "a an the one another this that each every his her its their my"
_AFTER = ("a an the and or but nor of in on at by to from with without near behind beside between "
          "under over above below into onto is are was were be been being that which who it this "
          "these those as while there next for")
_DETERMINERS, _FUNCTION = frozenset(_BEFORE.split()), frozenset(_AFTER.split())
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[.,;:!?()\n]")


def singular_forms(word: str) -> list[str]:
    """The word, and what its singular may be; several where spelling does not decide.

    "knives" gives knives, knive, knif, knife; only those that a list holds matter.
    """
    found = [word]
    if word.endswith("men") and word not in _IRREGULAR:
        found.append(word[:-2] + "an")
    if word in _IRREGULAR:
        found.append(_IRREGULAR[word])
    if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        found.append(word[:-1])
    if len(word) > 3 and word.endswith("es"):
        found.append(word[:-2])
    if word.endswith("ies"):
        found.append(word[:-3] + "y")
    if word.endswith("ves"):
        found += [word[:-3] + "f", word[:-3] + "fe"]
    return found


def tokens(text: str) -> list[str]:
    """Words in lower case, without possessive endings; marks that end a phrase stay between them.

    A hyphen parts words: "teddy-bear" is two, as "teddy bear".
    """
    plain = text.lower().replace("’", "'")
    return [re.sub(r"'s?$", "", token) for token in _TOKEN.findall(plain)]


@dataclass(frozen=True)
class Lexicon:
    """A list of objects and of the words that name them."""

    names: Mapping[str, str]
    """{words in the singular: the object, or NOTHING for a compound that only looks like one}."""
    unsure: frozenset[str] = frozenset()
    """Words that are as often an adjective or a verb ("orange", "can"). They count in the plural,
    or after an article where no noun follows ("an orange on a plate", not "an orange cat")."""
    qualifiers: frozenset[str] = frozenset()
    """Words that say of which kind the object behind them is: "baby elephant" names no person."""

    def __post_init__(self) -> None:
        odd = next((n for n in self.names if " ".join(tokens(n)) != n), None)
        if odd is not None:
            raise SelfloopError(f"object list: {odd!r} is not written as it is looked up; write "
                                f"{' '.join(tokens(odd))!r}")

    @classmethod
    def of(cls, objects: Mapping[str, Iterable[str]], **more: frozenset[str]) -> Lexicon:
        """From {object: its further names}; every object names itself."""
        names = {" ".join(tokens(n)): name for name, others in objects.items() for n in others}
        return cls({**names, **{" ".join(tokens(o)): o for o in objects}}, **more)

    @cached_property
    def longest(self) -> int:
        """Words in the longest name."""
        return max((name.count(" ") + 1 for name in self.names), default=0)

    def mentions(self, text: str) -> list[str]:
        """The objects that the text names, in its order, each as often as it is named."""
        words, at, found = tokens(text), 0, list[str]()
        while at < len(words):
            size, name = self._at(words, at)
            if name != NOTHING and not self._qualifies(words, at, size):
                found.append(name)
            at += max(size, 1)
        return found

    def _at(self, words: list[str], at: int) -> tuple[int, str]:
        """(words taken, object) of the longest name that begins here; (0, NOTHING) for none."""
        for size in range(min(self.longest, len(words) - at), 0, -1):
            head = words[at:at + size - 1]
            for last in singular_forms(words[at + size - 1]):
                name = " ".join([*head, last])
                if name in self.names and self._sure(words, at, size, name):
                    return size, self.names[name]
        return 0, NOTHING

    def _sure(self, words: list[str], at: int, size: int, name: str) -> bool:
        if name not in self.unsure or words[at + size - 1] != name.split(" ")[-1]:
            return True
        after = words[at + size] if at + size < len(words) else "."
        ends = not after[0].isalpha() or after in _FUNCTION
        return ends and at > 0 and words[at - 1] in _DETERMINERS

    def _qualifies(self, words: list[str], at: int, size: int) -> bool:
        if words[at] not in self.qualifiers:
            return False
        own, behind = self._at(words, at)[1], self._at(words, at + size)[1]
        return behind not in (NOTHING, own)


@cache
def coco() -> Lexicon:
    """COCO's 80 categories (Lin et al. 2014, arXiv 1405.0312) with a list of synonyms of our own.

    Words that fit several categories, or none quite, are left out of it: "seat", "glass", "desk",
    "computer". The list is `coco_objects.json` in the package.
    """
    found = json.loads(files("selfloop.evaluate").joinpath("coco_objects.json")
                       .read_text(encoding="utf-8"))
    made = Lexicon.of(found["objects"])
    return Lexicon({**made.names, **dict.fromkeys(found["nothing"], NOTHING)},
                   frozenset(found["unsure"]), frozenset(found["qualifiers"]))


@cache
def coco_names() -> frozenset[str]:
    """The 80 category names as COCO spells them."""
    return frozenset(coco().names.values()) - {NOTHING}
