r"""An answer cut into claims: "m = 12 g, \beta = 0.2" holds two, each a name and its values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selfloop.evaluate.latex.expression import Formula, Unreadable, read
from selfloop.evaluate.latex.tidying import tidy
from selfloop.organize.verify.units import Unit, parse

_RELATIONS = {
    "=": r"=|\\approx|\\simeq|\\equiv|\\cong|\\doteq|\\to|\\rightarrow|\\longrightarrow|≡",
    "∝": r"\\propto",
    "~": r"\\sim",
    "<": r"<+|\\leqslant|\\leq|\\le|\\ll|\\lesssim|\\lt",
    ">": r">+|\\geqslant|\\geq|\\ge|\\gg|\\gtrsim|\\gt",
}
# A command ends where no letter follows; a sign ends anywhere.
_RELATION = re.compile("|".join(rf"(?:{p})(?:(?<![A-Za-z])|(?![A-Za-z]))"
                                for p in _RELATIONS.values()))
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_JOINT = re.compile(r"\s*(?:and|or|&|,)\s*", re.I)
_ASIDE = re.compile(r"\s*\(?\s*(?:for|where|if|when|with|provided|assuming|i\.e|since)\b.*", re.I)
_NUMBERING = r"(?:part\s*)?\(?(?:[a-h]|i{1,3}|iv|v|\d)\)\s*[:.]?\s*"
_LABEL = re.compile(rf"^\s*(?:{_NUMBERING}|\\text\{{\s*{_NUMBERING}\}}"
                    r"|\\text\{[^{}]*:\s*\}\s*:?|\\text\{[^{}]*\}\s*:)\s*", re.I)
_OPTION = re.compile(r"\([a-h]\)", re.I)
_CONSTANT = re.compile(r"\\text\{\s*(?:a\s+)?const(?:ant|\.)?\s*\}\.?", re.I)
LONGEST, MOST = 1200, 24
"""Characters of an answer that are read, and claims that it may hold."""


@dataclass(frozen=True)
class Side:
    """One side of a claim in every way that it can be read."""

    text: str
    readings: tuple[tuple[Formula, Unit | None], ...]
    """(formula, unit or None where none is named)."""
    comment: str = ""
    """Words behind the value: "to the left of the lens"."""


@dataclass(frozen=True)
class Claim:
    """`sides[0] relation sides[1] = ...`; a bare value has one side."""

    relation: str
    """"=", "∝", "~" (of that order, or proportional), "<", ">", "c" (constant, whatever its
    value); of a bare value "="."""
    sides: tuple[Side, ...]
    words: str = field(default="")
    """The words of a claim that holds nothing else."""

    @property
    def name(self) -> str:
        """What stands left, without spaces; "" for a bare value."""
        return re.sub(r"[\s{}]|\\text|\\,", "", self.sides[0].text) if len(self.sides) > 1 else ""

    @property
    def values(self) -> tuple[Side, ...]:
        """The sides that say what it is worth: those right of the first relation, or all."""
        right = self.sides[1:] or self.sides
        lone = [s for s in right if not any(len(f.symbols) == 1 and s.text.strip("\\ ").isalpha()
                                            for f, _ in s.readings)]
        return tuple(lone) or right[-1:]


def claims(latex: str) -> list[Claim]:
    """The claims of an answer in order; words beside formulas are comments and left out."""
    text = tidy(latex[:LONGEST + 1])
    if len(latex) > LONGEST:
        return [Claim("=", (), words=text)]
    text = re.split(r"\\(?:implies|Rightarrow|Longrightarrow|therefore|iff)(?![A-Za-z])",
                    text)[-1]
    found = [claim for piece in _pieces(text)[:MOST] if (claim := _claim(piece)) is not None]
    solid = [c for c in found if not c.words]
    return solid or ([Claim("=", (), words=_words(text))] if found else [])


def _pieces(text: str) -> list[str]:
    """Cut at ";", at commas and joining words outside of brackets; what follows "where" goes."""
    found, depth, at, start = [], 0, 0, 0
    for match in re.finditer(r"\\text\{[^{}]*\}|\\[A-Za-z]+|[()\[\]{},;]", text):
        sign, at = match[0], match.start()
        if sign in ("(", "[", "{", "\\lbrace"):
            depth += 1
        elif sign in (")", "]", "}", "\\rbrace"):
            depth = max(0, depth - 1)
        if depth:
            continue
        inner = _TEXT.fullmatch(sign)
        if inner and _ASIDE.fullmatch(inner[1]) and text[:at].strip():
            found.append(text[start:at])
            return _without_ranges(found)
        if sign in ",;" or (inner and _JOINT.fullmatch(inner[1])):
            found.append(text[start:at])
            start = match.end()
    return _without_ranges([*found, text[start:]])


def _without_ranges(pieces: list[str]) -> list[str]:
    r"""Without "k = 0, 1, 2, \ldots": which numbers an index runs over is no answer of its own."""
    if any(re.search(r"\\[lc]?dots|\.\.\.", piece) for piece in pieces):
        related = [i for i, piece in enumerate(pieces) if _RELATION.search(piece)]
        if len(related) > 1:
            pieces = pieces[:related[-1]]
    return [piece for piece in pieces if piece.strip()]


def _claim(piece: str) -> Claim | None:
    """One piece as a claim. None for a mere label such as "(a)" before the next piece."""
    whole, option = piece, re.sub(r"\\text\{|[{}\s]", "", piece)
    if _OPTION.fullmatch(option):
        return Claim("=", (), words=option.lower())
    piece = re.sub(rf"^(\s*\\text\{{)\s*{_NUMBERING}(?=[^\s}}])", r"\1", piece)
    bare = _LABEL.sub("", _LABEL.sub("", piece)).strip(" :.")
    if not bare:
        return None
    if not re.sub(r"[\s.:()\-]", "", _TEXT.sub("", bare)):
        return Claim("=", (), words=_words(whole))
    cuts = list(_RELATION.finditer(bare))
    cuts = [c for c in cuts if _depth(bare[:c.start()]) == 0]
    kinds = [next(k for k, p in _RELATIONS.items() if re.fullmatch(p, c[0])) for c in cuts]
    starts, ends = [0, *(c.end() for c in cuts)], [*(c.start() for c in cuts), len(bare)]
    sides = [_side(bare[a:b].strip()) for a, b in zip(starts, ends, strict=True)]
    kind = next((k for k in kinds if k != "="), "=")
    if len(sides) > 1 and _CONSTANT.fullmatch(sides[-1].text):
        return Claim("c", tuple(sides[-2:-1]))
    if kind in "<>" and len(sides) == 2 and not _single(sides[0]) and _single(sides[1]):
        sides, kind = sides[::-1], "<" if kind == ">" else ">"
    return Claim(kind, tuple(sides))


def _depth(text: str) -> int:
    return sum(text.count(a) - text.count(b) for a, b in ("()", "[]", "{}"))


def _single(side: Side) -> bool:
    return any(len(f.symbols) == 1 for f, unit in side.readings if unit is None) and (
        len(side.text) < 12)


def _words(text: str) -> str:
    """The words of a text in lower case, without signs."""
    plain = text.replace("\\text{", "").replace("}", "")
    plain = re.sub(r"\\[A-Za-z]+|[{$\\;]", " ", plain)
    return " ".join(re.findall(r"[^\W_]+|\([a-h]\)", plain.lower()))


def _side(text: str) -> Side:
    """A side with its readings: as a formula, as a number with its unit, without a comment."""
    readings: list[tuple[Formula, Unit | None]] = []
    for cut in _unit_places(text):
        unit = parse(_spelled(text[cut:]))
        if unit is not None and (head := _read(text[:cut])) is not None:
            readings.append((head, unit))
            break
    whole = _read(text) if not _named_text(text) else None
    if whole is not None:
        readings.append((whole, None))
        # a/bc is written for (a/b)c and for a/(bc); which one, the text does not say
        if "/" in text and (other := _read(text, tight=True)) is not None:
            readings.append((other, None))
    if readings:
        return Side(text, tuple(readings))
    return _commented(text)


def _commented(text: str) -> Side:
    r"""A value followed by words: the value is read, and the words are kept beside it."""
    for match in _TEXT.finditer(text):
        inner = match[1].strip()
        if match.start() and parse(inner) is None and re.search(r"[A-Za-z]{2}", inner):
            head = _side(text[:match.start()].rstrip(" ("))
            aside = inner.startswith("(") or text[:match.start()].rstrip().endswith("(")
            return Side(text, head.readings, "" if aside else _words(text[match.start():]))
    return Side(text, ())


def _unit_places(text: str) -> list[int]:
    r"""Where a unit may begin: at a \text, or at the first letter behind a plain number."""
    places = [m.start() for m in re.finditer(r"\\text\{", text)]
    number = re.match(r"[-+]?\s*[\d.]+(?:\s*(?:\\times|\\cdot)\s*10\s*(?:\^\s*(?:\{[^{}]*\}|\d))?)?"
                      r"\s*(?=[A-Za-z]|\\mu|\\Omega)(?!\\times)", text)
    return sorted({*places, *([number.end()] if number else [])})


def _spelled(text: str) -> str:
    text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"\\mu\s*", "μ", text)
    text = re.sub(r"\\Omega\s*", "Ω", text)
    text = re.sub(r"\\cdot\s*|\\times\s*", "·", text)
    fraction = re.fullmatch(r"\s*\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}\s*", text)
    text = f"{fraction[1]}/{fraction[2]}" if fraction else text
    return re.sub(r"μ\s+", "μ", re.sub(r"\s*\^\s*", "^", text)).strip()


def _named_text(text: str) -> bool:
    """Whether words stand in it that are no part of a name (an index, one letter)."""
    return any(len(m[1].strip()) > 1 and text[:m.start()].rstrip(" {")[-1:] != "_"
               for m in _TEXT.finditer(text))


def _read(text: str, *, tight: bool = False) -> Formula | None:
    try:
        return read(text, tight=tight)
    except (Unreadable, ValueError, RecursionError, IndexError):
        return None
