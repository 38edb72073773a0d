r"""LaTeX as models and keys write it, brought to one spelling.

Afterwards words stand in \text{...}, pieces of an answer are parted by ";", and layout, brackets'
sizes, environments and Unicode signs are gone.
"""

from __future__ import annotations

import re

from selfloop.organize.verify.boxed import closing
from selfloop.organize.verify.units import parse

_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", re.findall(
    r"\w+", "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho "
    "sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"),
    strict=True))
_SIGNS = {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "−": "-", "–": "-", "≈": r"\approx ",
          "≤": r"\leq ", "≥": r"\geq ", "∝": r"\propto ", "∞": r"\infty ", "±": r"\pm ",
          "′": "'", "″": "''", "’": "'", "√": r"\sqrt", "ħ": r"\hbar ", "∼": r"\sim ",
          "→": r"\to ", "≠": r"\neq ", "µ": r"\mu ", "∂": r"\partial ", "Å": "Å", "…": r"\ldots ",
          "\ufeff": "", "\xa0": " ", "\u2009": " ", "\u202f": " "}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_LAYOUT = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align|alignat|alignedat|array|gathered|gather|equation|split|"
    r"displaymath|itemize|enumerate|center)\*?\}(?:\s*\[[a-z]\])?(?:\s*\{[lcr|@\d ]*\})?"
    r"|\\(?:left|right|middle|displaystyle|textstyle|limits|nolimits|bullet|circ(?=\s*&)|label)"
    r"(?![A-Za-z])\.?|\\[Bb]igg?[lrm]?(?![A-Za-z])|\\(?:hspace|vspace|kern)\*?\s*\{[^{}]*\}")
_WORDS = re.compile(r"\\(?:text|textrm|textit|textsf|texttt|mbox|hbox|mathrm|operatorname|rm|"
                    r"textnormal|textup)\s*\{")
_BOLD = re.compile(r"\\(?:mathbf|textbf|boldsymbol|bm|bf|emph|underline|circled)\s*\{")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|exp|"
                       r"ln|log|sqrt)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+)\s*\\text\{°\}\s*(\d+(?:\.\d+)?)\s*\\text\{'\}"
                      r"(?:\s*(\d+(?:\.\d+)?)\s*\\text\{\"\})?")


def tidy(latex: str) -> str:
    """The text in one spelling; never raises."""
    text = _unicode(latex)
    text = _LAYOUT.sub(" ", text)
    text = re.sub(r"\\\\\s*(?:\[[^\]]*\])?|\\qquad|\\quad|\\newline|\\par(?![A-Za-z])|\n\s*\n",
                  " ; ", text)
    text = re.sub(r"\$+|\\[()\[\]]|\\displaylines|(?<!\\)&", " ", text)
    text = re.sub(r"\\[,:!> ]|\\;|~", " ", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = text.replace(r"\{", r"\lbrace ").replace(r"\}", r"\rbrace ").replace(r"\&", "&")
    text = re.sub(r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})|(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"{\\text{\1}}", text)
    text = _unit_signs(_unwrapped(text + "}" * _unclosed(text)))
    return " ".join(_outside_words(_FUNCTION, r"\\\1 ", text).split()).strip(" .;,")


def _unclosed(text: str) -> int:
    """How many braces are open at the end: keys and boxes were cut off there when extracted."""
    return min(8, max(0, text.count("{") - text.count("}")))


def _unicode(text: str) -> str:
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    text = "".join(f"\\{_GREEK[ch]} " if ch in _GREEK else ch for ch in text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    return re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_LOWERED)}}}", text)


def _unwrapped(text: str) -> str:
    r"""Bold print off, words into \text{...}; a text that holds a number gives it back."""
    for pattern, shape in ((_BOLD, _bold), (_WORDS, _worded)):
        at, found = 0, ""
        while (match := pattern.search(text, at)) is not None:
            end = closing(text, match.end())
            if end is None:
                break
            found += text[at:match.start()] + shape(text[match.end():end])
            at = end + 1
        text = found + text[at:]
    return text


def _bold(inner: str) -> str:
    if re.fullmatch(r"\s*(?:[A-Za-z]|\\[A-Za-z]+)\s*", inner):
        return f" {inner} "
    plain_words = re.search(r"[A-Za-z]{3}", inner) and not re.search(r"[\\\d=]", inner)
    return f"\\text{{{inner}}}" if plain_words or re.fullmatch(r"\(\w\)", inner) else inner


def _worded(inner: str) -> str:
    inner = re.sub(r"\\AA(?![A-Za-z])|\\text\{|[{}$\\]", lambda m: "Å" if "AA" in m[0] else "",
                   inner)
    if inner.strip() in ("sin", "cos", "tan", "exp", "ln", "log", "arcsin", "arctan", "arccos"):
        return f"\\{inner.strip()} "
    number = re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*(\S.*)?", inner)
    if number and (not number[2] or parse(number[2]) is not None):
        return number[1] + (f" \\text{{{number[2]}}}" if number[2] else "")
    return f"\\text{{{inner}}}"


def _unit_signs(text: str) -> str:
    r"""Degrees, minutes, seconds, per cent and Ångström as \text{...}; 28°26' as one number."""
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|(?<!\{)°(?!\})",
                  r"\\text{°}", text)
    text = re.sub(r"\\text\{°\}\s*(?:\\text\{\s*C\s*\}|C\b)", r"\\text{°C}", text)
    text = re.sub(r"\\%", r"\\text{%}", text)
    text = re.sub(r"\\AA(?![A-Za-z])|\\(?:overset|stackrel)\s*\{\s*\\circ\s*\}\s*"
                  r"\{\s*(?:\\text\{)?A\}?\s*\}|\\mathring\s*\{\s*A\s*\}", r"\\text{Å}", text)
    text = re.sub(r"(?<![_\w{}\\.])(\d+(?:\.\d+)?)\s*(?:''|\")", r'\1\\text{"}', text)
    text = re.sub(r"(?<![_\w{}\\.])(\d+(?:\.\d+)?)\s*'", r"\1\\text{'}", text)
    text = re.sub(r"(\\text\{°\}\s*\d+(?:\.\d+)?)\s*'", r"\1\\text{'}", text)
    return _DEGREES.sub(lambda m: f"{int(m[1]) + float(m[2]) / 60 + float(m[3] or 0) / 3600:.6f}"
                        r"\text{°}", text)


def _outside_words(pattern: re.Pattern[str], by: str, text: str) -> str:
    pieces = re.split(r"(\\text\{[^{}]*\})", text)
    return "".join(piece if piece.startswith("\\text{") else pattern.sub(by, piece)
                   for piece in pieces)
