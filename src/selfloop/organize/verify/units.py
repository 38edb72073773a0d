"""Units of measurement as powers of SI base units and a factor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import pi

BASE = ("m", "kg", "s", "A", "K", "mol", "cd")
Dimension = tuple[float, ...]
"""Exponents of BASE; angles and counts have none."""


@dataclass(frozen=True)
class Unit:
    """`factor` SI units of `dimension`; `offset` is added after that (degrees Celsius)."""

    factor: float
    dimension: Dimension
    offset: float = 0.0

    def times(self, other: Unit, power: float = 1.0) -> Unit:
        """This unit times another one to a power."""
        dimension = tuple(a + power * b
                          for a, b in zip(self.dimension, other.dimension, strict=True))
        return Unit(self.factor * other.factor ** power, dimension)


def _unit(factor: float, **powers: float) -> Unit:
    return Unit(factor, tuple(float(powers.get(name, 0)) for name in BASE))


ONE = _unit(1.0)
_SI: dict[str, Unit] = {
    "m": _unit(1, m=1), "g": _unit(1e-3, kg=1), "s": _unit(1, s=1), "A": _unit(1, A=1),
    "K": _unit(1, K=1), "mol": _unit(1, mol=1), "cd": _unit(1, cd=1), "lm": _unit(1, cd=1),
    "lx": _unit(1, cd=1, m=-2), "N": _unit(1, kg=1, m=1, s=-2), "J": _unit(1, kg=1, m=2, s=-2),
    "W": _unit(1, kg=1, m=2, s=-3), "Pa": _unit(1, kg=1, m=-1, s=-2), "Hz": _unit(1, s=-1),
    "C": _unit(1, A=1, s=1), "V": _unit(1, kg=1, m=2, s=-3, A=-1),
    "F": _unit(1, kg=-1, m=-2, s=4, A=2), "H": _unit(1, kg=1, m=2, s=-2, A=-2),
    "T": _unit(1, kg=1, s=-2, A=-1), "Wb": _unit(1, kg=1, m=2, s=-2, A=-1),
    "Ω": _unit(1, kg=1, m=2, s=-3, A=-2), "S": _unit(1, kg=-1, m=-2, s=3, A=2),
    "eV": _unit(1.602176634e-19, kg=1, m=2, s=-2), "L": _unit(1e-3, m=3), "rad": ONE,
    "b": _unit(1e-28, m=2), "bar": _unit(1e5, kg=1, m=-1, s=-2), "pc": _unit(3.0857e16, m=1),
    "Bq": _unit(1, s=-1), "cal": _unit(4.184, kg=1, m=2, s=-2), "sr": ONE,
}
_PREFIXES = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "μ": 1e-6, "u": 1e-6, "m": 1e-3, "c": 1e-2,
             "d": 1e-1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_LONG_PREFIXES = {"femto": 1e-15, "pico": 1e-12, "nano": 1e-9, "micro": 1e-6, "milli": 1e-3,
                  "centi": 1e-2, "kilo": 1e3, "mega": 1e6, "giga": 1e9}
_DEGREE = Unit(pi / 180, ONE.dimension)
_OTHERS: dict[str, Unit] = {
    "Å": _unit(1e-10, m=1), "angstrom": _unit(1e-10, m=1), "fermi": _unit(1e-15, m=1),
    "dyn": _unit(1e-5, kg=1, m=1, s=-2), "dyne": _unit(1e-5, kg=1, m=1, s=-2),
    "erg": _unit(1e-7, kg=1, m=2, s=-2), "gauss": _unit(1e-4, kg=1, s=-2, A=-1),
    "Gs": _unit(1e-4, kg=1, s=-2, A=-1), "G": _unit(1e-4, kg=1, s=-2, A=-1),
    "°": _DEGREE, "deg": _DEGREE, "degree": _DEGREE, "arcmin": Unit(pi / 10800, ONE.dimension),
    "arcsec": Unit(pi / 648000, ONE.dimension), "'": Unit(pi / 10800, ONE.dimension),
    '"': Unit(pi / 648000, ONE.dimension), "%": Unit(1e-2, ONE.dimension),
    "°C": Unit(1.0, _unit(1, K=1).dimension, 273.15), "min": _unit(60, s=1),
    "minute": _unit(60, s=1), "h": _unit(3600, s=1), "hr": _unit(3600, s=1),
    "hour": _unit(3600, s=1), "day": _unit(86400, s=1), "year": _unit(3.156e7, s=1),
    "yr": _unit(3.156e7, s=1), "sec": _unit(1, s=1), "second": _unit(1, s=1),
    "ft": _unit(0.3048, m=1), "foot": _unit(0.3048, m=1), "feet": _unit(0.3048, m=1),
    "in": _unit(0.0254, m=1), "inch": _unit(0.0254, m=1), "mile": _unit(1609.344, m=1),
    "lb": _unit(0.45359237, kg=1), "atm": _unit(101325, kg=1, m=-1, s=-2),
    "Torr": _unit(133.322, kg=1, m=-1, s=-2), "mmHg": _unit(133.322, kg=1, m=-1, s=-2),
    "HP": _unit(745.7, kg=1, m=2, s=-3), "AU": _unit(1.495978707e11, m=1),
    "ly": _unit(9.4607e15, m=1), "c": _unit(299792458, m=1, s=-1), "amu": _unit(1.66054e-27, kg=1),
    "rpm": _unit(2 * pi / 60, s=-1), "RPM": _unit(2 * pi / 60, s=-1), "Ci": _unit(3.7e10, s=-1),
    "coulomb": _SI["C"], "joule": _SI["J"], "newton": _SI["N"], "watt": _SI["W"],
    "volt": _SI["V"], "tesla": _SI["T"], "ohm": _SI["Ω"], "farad": _SI["F"], "henry": _SI["H"],
    "kelvin": _SI["K"], "ampere": _SI["A"], "amp": _SI["A"], "hertz": _SI["Hz"],
    "pascal": _SI["Pa"], "meter": _SI["m"], "metre": _SI["m"], "gram": _SI["g"],
    "radian": ONE, "mole": _SI["mol"], "liter": _SI["L"], "electronvolt": _SI["eV"],
    **dict.fromkeys(("line", "ruling", "fringe", "turn", "particle", "photon", "electron",
                     "atom", "molecule", "slit", "time", "ion", "count", "event"), ONE),
}


def named(word: str) -> Unit | None:
    """The unit of one word ("cm", "kilometers", "°C"); None for what is none."""
    word = word.replace("µ", "μ").replace("Å", "Å").replace("Ω", "Ω")
    if word in _SI or word in _OTHERS:
        return _SI.get(word) or _OTHERS[word]
    if word[:1] in _PREFIXES and word[1:] in _SI:
        return Unit(_PREFIXES[word[0]] * _SI[word[1:]].factor, _SI[word[1:]].dimension)
    low = word.lower()
    for long, size in _LONG_PREFIXES.items():
        if low.startswith(long) and (rest := named(low.removeprefix(long))) is not None:
            return Unit(size * rest.factor, rest.dimension)
    singular = low.removesuffix("s")
    if len(singular) > 2 and (low in _OTHERS or singular in _OTHERS):
        return _OTHERS.get(low) or _OTHERS[singular]
    return None


_WORD = re.compile(r"°C|[A-Za-zμµÅΩÅΩ]+|[°'\"%]")
_POWER = re.compile(r"\s*\^?\s*\{?\s*([-−]?\d{1,2}(?:/[1-9])?)\s*\}?")


def parse(text: str) -> Unit | None:
    """The unit that a text spells: "kg m^{-3}", "W/cm^2", "dyn. cm". None for anything else.

    After a slash the next word divides, and only that one, as in "J/kg·K" read by its dots.
    """
    text = re.sub(r"H\.\s*P\.", "HP", text)
    text = re.sub(r"A\.\s*U\.", "AU", text).strip().rstrip(".").strip()
    found, at, sign = ONE, 0, 1.0
    while at < len(text):
        gap = re.compile(r"\s*(per\b|/|\*|·|⋅|\.)?\s*").match(text, at)
        if gap is not None:
            sign = -1.0 if gap[1] in ("/", "per") else sign if gap[1] is None and at == 0 else 1.0
            at = gap.end()
        word = _WORD.match(text, at)
        unit = named(word[0]) if word else None
        if word is None or unit is None:
            return None
        at, power = word.end(), 1.0
        if (raised := _POWER.match(text, at)) is not None:
            top, _, bottom = raised[1].replace("−", "-").partition("/")
            power, at = int(top) / int(bottom or 1), raised.end()
            if abs(power) > 12:
                return None
        alone = not text[at:].strip() and found == ONE and power == sign == 1
        found = unit if alone else found.times(Unit(unit.factor, unit.dimension), sign * power)
    return found if text else None
