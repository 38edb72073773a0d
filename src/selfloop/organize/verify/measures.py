"""Everyday units on top of the SI table: what a written unit measures, and how two compare.

Case counts ("MW" is not "mW"), and so do powers and divisions ("km/h", "m^2", "kg per litre").
Currencies are dimensions of their own: none is converted into another. Per cent is one, too.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from selfloop.organize.verify.units import ONE, Unit, named

_METRE, _GRAM, _SECOND, _KELVIN = (named(n) or ONE for n in ("m", "g", "s", "K"))
_CUBIC = Unit(1.0, ONE.dimension).times(_METRE, 3.0)
Kind = tuple[tuple[float, ...], tuple[tuple[str, float], ...]]
"""Exponents of the SI base units, and those of what has none: per cent, currencies, bytes."""


@dataclass(frozen=True)
class Measure:
    """One reading of a unit: `factor` base units of `kind`, `offset` added after that."""

    factor: float
    kind: Kind
    offset: float = 0.0

    @property
    def base(self) -> float:
        """In base units: m, kg, s and so on, and litres for a volume."""
        return self.factor * (1e3 if self.kind == (_CUBIC.dimension, ()) else 1.0)

    def times(self, other: Measure, power: float) -> Measure:
        """This one times another one to a power; offsets are for units that stand alone."""
        unit = Unit(self.factor, self.kind[0]).times(Unit(other.factor, other.kind[0]), power)
        more = dict(self.kind[1])
        for name, n in other.kind[1]:
            more[name] = more.get(name, 0.0) + n * power
        left = tuple(sorted((name, n) for name, n in more.items() if n))
        return Measure(unit.factor, (unit.dimension, left))


def _of(unit: Unit, size: float = 1.0, offset: float = 0.0) -> Measure:
    return Measure(unit.factor * size, (unit.dimension, ()), offset)


def _apart(name: str, size: float = 1.0) -> Measure:
    return Measure(size, (ONE.dimension, ((name, 1.0),)))


_ONE = _of(ONE)
_ANGLE = _of(named("deg") or ONE)
_CELSIUS, _FAHRENHEIT = _of(_KELVIN, 1.0, 273.15), _of(_KELVIN, 5 / 9, 459.67 * 5 / 9)
_DOLLAR, _EURO, _STERLING, _YEN, _RUPEE = (_apart(c) for c in "$€£¥₹")
_SIZES: tuple[tuple[str, Unit, float], ...] = (
    ("ft foot feet", _METRE, 0.3048), ("inch inches in in.", _METRE, 0.0254),
    ("yd yard", _METRE, 0.9144), ("mi mile", _METRE, 1609.344), ("micron", _METRE, 1e-6),
    ("t tonne", _GRAM, 1e6), ("lb lbs", _GRAM, 453.59237), ("gm", _GRAM, 1.0),
    ("kilo", _GRAM, 1e3),
    ("stone", _GRAM, 6350.29318), ("gr.", _GRAM, 1.0),
    ("sec secs second", _SECOND, 1), ("min mins minute", _SECOND, 60),
    ("h hr hrs hour", _SECOND, 3600), ("d day", _SECOND, 86400), ("wk week", _SECOND, 604800),
    ("month", _SECOND, 2629746), ("yr yrs year", _SECOND, 31556952),
    ("decade", _SECOND, 315569520), ("century centuries", _SECOND, 3155695200),
    ("l L liter litre ltr", _CUBIC, 1e-3), ("ml mL milliliter millilitre cc", _CUBIC, 1e-6),
    ("cl cL centiliter", _CUBIC, 1e-5), ("dl dL deciliter", _CUBIC, 1e-4),
    ("gal gallon", _CUBIC, 3.785411784e-3), ("quart", _CUBIC, 9.46352946e-4),
    ("pint", _CUBIC, 4.73176473e-4), ("floz", _CUBIC, 2.95735295625e-5))
_COMPOUND = {"mph": "mile/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h", "fps": "ft/s",
             "mps": "m/s", "Nm": "N·m", "Wh": "W·h", "kWh": "kW·h", "MWh": "MW·h",
             "Ah": "A·h", "mAh": "mA·h", "sqft": "ft^2", "sqm": "m^2"}
_TABLE: dict[str, tuple[Measure, ...]] = {
    **{word: (_of(unit, size),) for words, unit, size in _SIZES for word in words.split()},
    "%": (_apart("%"),), "percent": (_apart("%"),), "‰": (_apart("%", 0.1),),
    "°C": (_CELSIUS,), "℃": (_CELSIUS,), "celsius": (_CELSIUS,), "centigrade": (_CELSIUS,),
    "°F": (_FAHRENHEIT,), "℉": (_FAHRENHEIT,), "fahrenheit": (_FAHRENHEIT,),
    "°K": (_of(_KELVIN),),
    # What may be one thing or another has several readings: the one that fits the gold unit counts.
    "C": (_of(named("C") or ONE), _CELSIUS), "F": (_of(named("F") or ONE), _FAHRENHEIT),
    **dict.fromkeys(("°", "deg", "degree"), (_ANGLE, _CELSIUS, _FAHRENHEIT, _of(_KELVIN))),
    "rad": (_of(named("rad") or ONE),), "radian": (_of(named("rad") or ONE),),
    "'": (_of(_METRE, 0.3048), _of(named("arcmin") or ONE)),
    '"': (_of(_METRE, 0.0254), _of(named("arcsec") or ONE)),
    **dict.fromkeys(("oz", "ounce"), (_of(_GRAM, 28.349523125), _of(_CUBIC, 2.95735295625e-5))),
    "pound": (_of(_GRAM, 453.59237), _STERLING),
    **dict.fromkeys(("$", "USD", "US$", "dollar", "buck"), (_DOLLAR,)),
    **dict.fromkeys(("€", "EUR", "euro"), (_EURO,)),
    **dict.fromkeys(("£", "GBP", "quid"), (_STERLING,)),
    **dict.fromkeys(("¥", "JPY", "yen"), (_YEN,)),
    **dict.fromkeys(("₹", "INR", "rupee"), (_RUPEE,)),
    "knot": (_of(_METRE.times(_SECOND, -1.0), 1852 / 3600),),
    "ha": (_of(_METRE.times(_METRE), 1e4),), "hectare": (_of(_METRE.times(_METRE), 1e4),),
    "acre": (_of(_METRE.times(_METRE), 4046.8564224),),
    "psi": (_of(named("Pa") or ONE, 6894.757293),), "hp": (_of(named("HP") or ONE),),
    "kcal": (_of(named("cal") or ONE, 1e3),),
    **{f"{p}B": (_apart("byte", 10.0 ** n),) for p, n in zip(("", "k", "K", "M", "G", "T"),
                                                             (0, 3, 3, 6, 9, 12), strict=True)},
    "byte": (_apart("byte"),), "bit": (_apart("byte", 0.125),)}

_ATOM = r"(?:US\$|°\s?[CFK]\b|[°℃℉%‰$€£¥₹'\"]|[A-Za-zμÅΩ]+)"
_POWER = r"(?:\s?\^\s?\{?\(?([-+]?\d{1,2})\)?\}?|(?<=[A-Za-z])([-+]?[2-9])(?![\d.,]|\w))"
_FACTOR = re.compile(rf"({_ATOM}){_POWER}?")
_JOIN = re.compile(r"\s?([/*·⋅])\s?|\s(per)\s|\s(?=[A-Za-zμ]+\^\s?\{?\(?[-+]?\d)")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SAID = ((re.compile(r"\b(?:square|sq\.?)\s+([A-Za-z]+)", re.I), r"\1^2"),
         (re.compile(r"\b(?:cubic|cu\.?)\s+([A-Za-z]+)", re.I), r"\1^3"),
         (re.compile(r"\b(?:fluid ounces?|fl\.? ?oz)\b", re.I), "floz"),
         (re.compile(r"\bdeg(?:ree)?s?\.?\s+(celsius|centigrade|fahrenheit|[CF]\b)", re.I), r"\1"),
         (re.compile(r"\bdeg(?:ree)?s\b", re.I), "degree"),
         (re.compile(r"\bper cent\b", re.I), "percent"),
         (re.compile(r"\bms\s?\^\s?\{?\(?-([12])\)?\}?"), r"m/s^\1"),  # per second, as it is typed
         (re.compile(r"\bUS dollars?\b", re.I), "dollar"), (re.compile(r"\bsquared\b"), "^2"),
         (re.compile(r"\bcubed\b"), "^3"),
         (re.compile(r"([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"), lambda m: f"^{m[1].translate(_RAISED)}"))
_SENTENCE = (
    "a about after all alone also altogether am an and approximately are as at because before "
    "but by can could each for from had has have he here hence how i if is it its may more "
    "most my no not of on only or other our out over she since so some than that the their "
    "then there these they this those though thus to together too total under was we were "
    "what when where which while who will with would you your exactly times x ok okay correct "
    "final")
_NO_UNIT = frozenset(_SENTENCE.split())


def spelt(text: str) -> str:
    """Words and raised digits of units in one spelling: "square km" is "km^2", "m²" is "m^2"."""
    text = text.replace("µ", "μ").replace("Å", "Å").replace("Ω", "Ω")
    for shape, short in _SAID:
        text = shape.sub(short, text)
    return text


def unit_at(text: str, at: int) -> tuple[str, int]:
    """The unit that a text (see `spelt`) writes at a place, and where it ends; "" for none.

    A word that is no unit known here is given as it is; words such as "of" and "is" are none, and
    "in" is inches only where nothing follows.
    """
    gap = re.compile(r"[ \t]{0,3}|-").match(text, at)
    start = gap.end() if gap else at
    found = _FACTOR.match(text, start)
    if found is None or found[1].lower() in _NO_UNIT:
        return "", at
    if found[1] == "in" and found[2] is None and re.match(r"\s+\w", text[found.end():]):
        return "", at
    end = found.end()
    while (join := _JOIN.match(text, end)) is not None:
        more = _FACTOR.match(text, join.end())
        if more is None or more[1].lower() in _NO_UNIT:
            break
        end = more.end()
    return text[start:end], end


def measures(unit: str) -> tuple[Measure, ...]:
    """The readings of a written unit; () for what is no unit known here."""
    readings: list[tuple[Measure, ...]] = []
    powers: list[float] = []
    at, sign = 0, 1.0
    while at < len(unit):
        found = _FACTOR.match(unit, at)
        known = _atom(found[1]) if found else ()
        if found is None or not known:
            return ()
        power = float(found[2] or found[3] or 1)
        readings.append(known)
        powers.append(sign * power)
        at = found.end()
        if at == len(unit):
            break
        join = _JOIN.match(unit, at)
        if join is None:
            return ()
        sign, at = (-1.0 if join[1] == "/" or join[2] else 1.0), join.end()
    if len(readings) == 1 and powers == [1.0]:
        return readings[0]
    made = []
    for choice in itertools.islice(itertools.product(*readings), 32):
        one = _ONE
        for reading, power in zip(choice, powers, strict=True):
            one = one.times(reading, power)
        made.append(one)
    return tuple(made)


def _atom(word: str) -> tuple[Measure, ...]:
    word = re.sub(r"^°\s", "°", word)
    low = word.lower()
    long = (low, low.removesuffix("s"), low.removesuffix("es")) if len(word) > 2 else ()
    for name in (word, *long):
        if name in _TABLE:
            return _TABLE[name]
        if _COMPOUND.get(name):
            return measures(_COMPOUND[name])
    unit = named(word)
    return (_of(unit),) if unit is not None and unit.dimension != ONE.dimension else ()


def same_unit(a: str, b: str) -> bool:
    """Whether two units are one word, the s of a plural and, in longer words, case apart."""
    short = [u if len(u) < 4 else u.lower().removesuffix("s") for u in (a, b)]
    return short[0] == short[1]


def converted(value: float, unit: str, wanted: str) -> tuple[float, float] | None:
    """A value in the wanted unit, and how many base units that one is; NaN for another dimension.

    None where a unit is unknown, or may be several of which each says something else.
    """
    ours, theirs = measures(unit), measures(wanted)
    if not ours or not theirs:
        return None
    pairs = [(a, b) for a in ours for b in theirs if a.kind == b.kind]
    if not pairs:
        return float("nan"), 1.0
    a, b = pairs[0]
    return (value * a.factor + a.offset - b.offset) / b.factor, b.base
