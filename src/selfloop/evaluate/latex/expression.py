"""A LaTeX formula as a function of its symbols, evaluated at many points at once.

An own reader and not a symbolic package: latex2sympy2_extended 1.11 drops subscripts and primes,
folds the case of letters and reads I as the imaginary unit, so that I_max/I_0 becomes 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Values = Mapping[str, Array]
Function = Callable[[Values], Array]
SIGN = "±"
"""The symbol that carries the sign of every plus-minus: 1 or -1."""
DEEPEST = 40


class Unreadable(ValueError):
    """The text is no formula that can be evaluated."""


@dataclass(frozen=True)
class Formula:
    """A function of its symbols; `rounded` where it holds a decimal number."""

    value: Function
    symbols: frozenset[str]
    rounded: bool = False
    literal: str = ""
    """The text, where it is one plain number: its digits say how exact it is."""


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "arcsin": np.arcsin, "arccos": np.arccos,
    "arctan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "exp": np.exp,
    "ln": np.log, "log": np.log, "cot": lambda x: 1 / np.tan(x), "sec": lambda x: 1 / np.cos(x),
    "csc": lambda x: 1 / np.sin(x), "arctanh": np.arctanh, "arcsinh": np.arcsinh,
    "arccosh": np.arccosh, "coth": lambda x: 1 / np.tanh(x),
}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "sinh": "arcsinh",
            "cosh": "arccosh", "tanh": "arctanh"}
_GREEK = frozenset(re.findall(
    r"\w+", "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda "
    "mu nu xi rho varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi "
    "Sigma Upsilon Phi Psi Omega hbar ell infty partial nabla Re Im aleph"))
_SAME = {"varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi", "varrho": "rho",
         "partial": "d"}
_ACCENTS = {"dot": "dot", "ddot": "ddot", "dddot": "dddot", "bar": "bar", "overline": "bar",
            "hat": "hat", "tilde": "tilde", "widetilde": "tilde"}
_PLAIN = ("mathbf", "boldsymbol", "vec", "mathit", "mathcal", "mathscr", "bm", "mathsf",
          "overrightarrow", "mathbb")
_TOKEN = re.compile(r"\\text\{([^{}]*)\}|\\([A-Za-z]+)|(\d+\.?\d*|\.\d+)|(\S)")
_OPEN = {"(": ")", "[": "]", "\\lbrace": "\\rbrace"}


def tokens(text: str) -> list[str]:
    r"""Numbers, letters, signs, \commands; a text is one token that starts with a quote mark."""
    found = []
    for words, command, number, sign in _TOKEN.findall(text):
        found.append(f"\\{command}" if command else number or sign or f'"{words.strip()}')
    return found


def read(text: str, *, tight: bool = False) -> Formula:
    r"""The formula of a tidied LaTeX text. Raises Unreadable.

    With `tight` a slash divides by the whole product behind it: h/2\pi is h over two pi.
    """
    return _Reader(tokens(text), tight).whole()


def _number(text: str) -> Formula:
    number = float(text)
    return Formula(lambda _: np.asarray(number, dtype=complex), frozenset(), "." in text, text)


def _symbol(name: str) -> Formula:
    if name == "\\pi":
        return Formula(lambda _: np.asarray(np.pi, dtype=complex), frozenset())
    if name == "i":
        return Formula(lambda _: np.asarray(1j), frozenset())
    return Formula(lambda values: values[name], frozenset((name,)))


def _of(function: Callable[..., Array], *parts: Formula) -> Formula:
    return Formula(lambda values: function(*(p.value(values) for p in parts)),
                   frozenset().union(*(p.symbols for p in parts)), any(p.rounded for p in parts))


class _Reader:
    """Recursive descent: sum > product > signed power > atom."""

    def __init__(self, found: list[str], tight: bool) -> None:
        self.tokens, self.at, self.depth, self.tight = found, 0, 0, tight

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        found = self.peek()
        if not found or (expected and found not in expected):
            raise Unreadable(f"{found or 'the end'!r} where {expected or 'more'} was expected")
        self.at += 1
        return found

    def whole(self) -> Formula:
        found = self.sum()
        if self.peek():
            raise Unreadable(f"{self.peek()!r} is left over")
        return found

    def sum(self) -> Formula:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("nested too deep")
        found = self.product()
        while self.peek() in ("+", "-", "\\pm", "\\mp"):
            sign, term = self.take(), self.product()
            found = _of(np.add, found, _signed(sign, term))
        self.depth -= 1
        return found

    def product(self) -> Formula:
        if self.peek() in ("+", "-", "\\pm", "\\mp"):
            return _signed(self.take(), self.product())
        found = self.factor()
        while True:
            if self.peek() in ("*", "\\cdot", "\\times", "/"):
                divide, cross = self.peek() == "/", self.take() == "\\times"
                term = (_signed(self.take(), self.factor()) if self.peek() in ("-", "+")
                        else self.factor())
                while divide and self.tight and self.starts():
                    term = _of(np.multiply, term, self.factor())
                if cross and found.symbols and term.symbols:
                    raise Unreadable("a cross product")  # of vectors: its order matters
                found = _of(np.divide if divide else np.multiply, found, term)
            elif self.starts():
                found = _of(np.multiply, found, self.factor())
            else:
                return found

    def starts(self) -> bool:
        """Whether a factor may begin here, as in an implied product."""
        found = self.peek()
        return bool(found) and (found[0].isalnum() or found in ("(", "[", "{") or (
            found[0] == "\\" and found[1:] not in ("pm", "mp", "rbrace", "cdot", "times")))

    def factor(self) -> Formula:
        if self.peek()[:1] == "\\" and self.peek()[1:] in _FUNCTIONS:
            return self.applied()
        return self.raised(self.atom())

    def raised(self, found: Formula) -> Formula:
        while self.peek() == "^":
            self.take()
            found = _of(np.power, found, self.argument())
        return found

    def argument(self) -> Formula:
        """What a command or an exponent takes: a group in braces, or a single token."""
        if self.peek() == "{":
            return self.within("{", "}")
        if self.peek() in ("-", "+"):
            return _signed(self.take(), self.argument())
        if self.peek()[:1].isdigit() and len(self.peek()) > 1 and "." not in self.peek():
            digits = self.take()  # \frac12 and x^23 take one digit each
            self.at -= 1
            self.tokens[self.at:self.at + 1] = [digits[0], digits[1:]]
        return self.atom()

    def within(self, opening: str, closing: str) -> Formula:
        self.take(opening)
        found = self.sum()
        self.take(closing)
        return found

    def atom(self) -> Formula:
        found = self.peek()
        if not found:
            raise Unreadable("it ends too early")
        if found[0].isdigit() or found[0] == ".":
            return _number(self.take())
        if found == "{":
            return self.group()
        if found in _OPEN:
            return self.within(found, _OPEN[found])
        if found == "|":
            return _of(np.abs, self.within("|", "|"))
        if found == "\\frac":
            self.take()
            return _of(np.divide, self.argument(), self.argument())
        if found == "\\sqrt":
            return self.root()
        if found == "e" and self.peek(1) == "^":
            self.take()
            return Formula(lambda _: np.asarray(np.e, dtype=complex), frozenset())
        return _symbol(self.name())

    def group(self) -> Formula:
        """Braces: a group, or a name whose index stands behind them, as in {n}_{2}."""
        if self.peek(2) == "}" and self.peek(3) in ("_", "'") and self.peek(1)[0].isalpha():
            del self.tokens[self.at + 2], self.tokens[self.at]
            return _symbol(self.name())
        return self.within("{", "}")

    def root(self) -> Formula:
        self.take("\\sqrt")
        if self.peek() != "[":
            return _of(np.sqrt, self.argument())
        degree = self.within("[", "]")
        return _of(lambda x, n: np.power(x, 1 / n), self.argument(), degree)

    def applied(self) -> Formula:
        """A function, its exponent, and its argument: in brackets, or the product that follows."""
        name, power = self.take()[1:], None
        if self.peek() == "_":
            raise Unreadable("a logarithm of another base")
        if self.peek() == "^":
            self.take()
            power = self.argument()
            if not power.symbols and power.value({}) == -1 and name in _INVERSE:
                name, power = _INVERSE[name], None
        if self.peek() in _OPEN or self.peek() == "{":
            inner = self.atom()
        else:
            inner = self.raised(self.atom())
            while self.starts() and self.peek()[1:] not in _FUNCTIONS:
                inner = _of(np.multiply, inner, self.raised(self.atom()))
        found = self.raised(_of(_FUNCTIONS[name], inner))
        return found if power is None else _of(np.power, found, power)

    def name(self) -> str:
        """A symbol with its accents, indices and primes, as one name."""
        found = self.take()
        letter = found[1:] if found[0] in ('\\', '"') else found
        if found[0] == "\\" and (letter in _ACCENTS or letter in _PLAIN):
            braced = self.peek() == "{"
            inner = self.name() if not braced else self.braced_name()
            name = f"{_ACCENTS[letter]}({inner})" if letter in _ACCENTS else inner
        elif found == "\\pi":
            name = "\\pi"
        elif found[0] == "\\" and letter in _GREEK:
            name = _SAME.get(letter, letter)
        elif found[0] != "\\" and (letter.isalpha() and (len(letter) == 1 or found[0] == '"')):
            name = letter
        else:
            raise Unreadable(f"{found!r}")
        return self.indexed(name)

    def braced_name(self) -> str:
        self.take("{")
        found = self.name()
        self.take("}")
        return found

    def indexed(self, name: str) -> str:
        """The name with what stands under it and its primes; a power in between stays a power."""
        if self.peek() == "^" and self.peek(2) == "_":
            power = self.tokens[self.at:self.at + 2]
            del self.tokens[self.at:self.at + 2]
            name = self.indexed(name)
            self.tokens[self.at:self.at] = power
            return name
        while self.peek() in ("_", "'"):
            if self.take() == "'":
                name += "'"
                continue
            if self.peek() != "{":
                name += "_" + self.take().lstrip('\\"')
                continue
            depth, inner = 0, ""
            while True:
                piece = self.take()
                depth += {"{": 1, "}": -1}.get(piece, 0)
                if depth == 0:
                    break
                inner += "" if piece in "{},*" else piece.lstrip('\\"').replace(" ", "")
            name += "_" + re.sub("mathrm|rm|mathbf", "", inner)
        if self.peek() == "(" and self.peek(1).isdigit() and self.peek(2) == ")":
            name += "(" + self.peek(1) + ")"  # I(0) is a name: a product would be zero
            self.at += 3
        return name


def _signed(sign: str, term: Formula) -> Formula:
    if sign == "+":
        return term
    if sign == "-":
        negative = _of(np.negative, term)
        literal = f"-{term.literal}" if term.literal else ""
        return Formula(negative.value, negative.symbols, negative.rounded, literal)
    turn = 1.0 if sign == "\\pm" else -1.0
    return _of(lambda s, x: turn * s * x, Formula(lambda v: v[SIGN], frozenset((SIGN,))), term)
