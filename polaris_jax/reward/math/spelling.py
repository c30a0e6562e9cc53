r"""Text of an answer -> the same text in plain LaTeX, in each way that its commas and units can be
read.

Unicode signs become commands, invisible characters go, thousands and repeating decimals become
plain numbers. Nothing here knows what an expression is.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from types import MappingProxyType

from polaris_jax.reward.math.vocabulary import SINGLE_LETTER_UNITS, unit_name

_UNICODE = MappingProxyType(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ",
        "⋅": r"\cdot ",
        "·": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "√": r"\sqrt ",
        "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ",
        "∓": r"\mp ",
        "°": r"^\circ ", "º": r"^\circ ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}",
        "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
        "γ": r"\gamma ", "δ": r"\delta ", "λ": r"\lambda ", "μ": r"\mu ", "σ": r"\sigma ",
        "φ": r"\phi ", "ω": r"\omega ", "ρ": r"\rho ", "τ": r"\tau ", "ε": r"\epsilon ",
        "Δ": r"\Delta ", "Ω": r"\Omega ", "¼": r"\frac{1}{4}", "½": r"\frac{1}{2}",
        "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "²": "^{2}", "³": "^{3}",
        "¹": "^{1}", "⁴": "^{4}", "⁵": "^{5}", "⁶": "^{6}", "⁷": "^{7}", "⁸": "^{8}", "⁹": "^{9}",
        "⁰": "^{0}", "₀": "_{0}", "₁": "_{1}", "₂": "_{2}", "₃": "_{3}", "₄": "_{4}", "₅": "_{5}",
        "₆": "_{6}", "₇": "_{7}", "₈": "_{8}", "₉": "_{9}", "€": r"\text{ euro }", "£": r"\pounds ",
        "¢": r"\text{ cents }", "¥": r"\text{ yen }",
        "’": "'", "′": "'", "″": "''", "“": '"', "”": '"', "∖": r"\setminus ", "→": r"\to ",
        "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
        "⌉": r"\rceil ", "，": ",", "。": ".", "：": ":", "；": ";", "∧": r"\wedge ",
        "…": r"\dots ",
    }
)  # fmt: skip

_JOINED = re.compile(
    r"(?<![\d.])[1-9]\d{0,2}(?:(?:\{,\}|,\\!|\\,|\\ |[ ~\u2009\u202f])\s{0,3}\d{3})+(?![\d])"
)
_THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:,\d{3})+(?!\d)")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(0|\d{4,15}),(\d{2,15})(?![\d,])")
_BRACKET = re.compile(r"\\[A-Za-z]+|\\.|[()\[\]]", re.DOTALL)
_OPENERS = frozenset({"(", "[", "\\{", "\\lbrace", "\\langle"})
_CLOSERS = frozenset({")", "]", "\\}", "\\rbrace", "\\rangle"})
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z(\[])")  # `\\\\frac`, escaped once too often
_REPEATING = re.compile(
    r"(?<![\d.])(\d{0,20})\.(\d{0,20})\s{0,2}\\(?:overline|bar|dot)\s{0,2}\{?(\d{1,20})\}?"
)
# `0.333\\ldots`: one digit three times, or more of them over again for six digits.
_ON_AND_ON = re.compile(
    r"(?<![\d.])(\d{0,20})\.(\d{0,12}?)(?=\d{6}|(\d)\3\3)(\d{1,6}?)\4{1,12}"
    r"\s?(?:\\(?:ldots|dots|cdots)(?![A-Za-z])|\.\.\.)(?!\s?\d)"
)
_LONE_SIGN = re.compile(r"(?<![\^_])\{([:=<>])\}")  # `10{:}30`, braces for the spacing alone
_COLOURS = r"\\(?:text)?color\s?\{[#A-Za-z0-9!]{1,40}\}\s?"
_COLOURED = re.compile(rf"{_COLOURS}\{{\s?([\d.]+)\s?\}}|\{{\s?{_COLOURS}([\d.]+)\s?\}}")
_COLOURED_DIGITS = re.compile(rf"(?:[\d.]|{_COLOURED.pattern})+")
_NOT_DIGIT = re.compile(r"\D+")
# `5th`, `5` and th in text, raised or not: the place is the number.
_ORDINAL = re.compile(
    r"(?<=\d)\s?(?:\^\s?\{\\(?:text|mathrm)\{(?:st|nd|rd|th)\}\}|\^\s?\{(?:st|nd|rd|th)\}"
    r"|\^?\s?\\(?:text|mathrm)\{\s?(?:st|nd|rd|th)\}|(?:st|nd|rd|th)(?![A-Za-z]))"
)


# Units behind a number without \text: `80 km/h`, `9.8 m/s^2`, `12 sq cm`; `m^2` in answers alone.
_POWER = r"(?:\^(?:\d|\{\d\}))?"
_PLAIN_UNITS = re.compile(
    r"(?:(?<=\d)|(?<=\d\}))(?P<gap>(?:[ ~]|\\[ ,;:]){0,4})"
    rf"(?:(?P<top>[A-Za-z]{{1,14}}){_POWER}/(?P<bottom>[A-Za-z]{{1,14}}){_POWER}"
    rf"|sq\.?[ ~](?P<squared>[A-Za-z]{{1,14}})|(?P<area>m\^(?:[23]|\{{[23]\}})))(?![A-Za-z])"
)
# Other quotients of two letters may be quotients of two unknowns.
_RATES = frozenset({"m/s", "m/h", "g/L", "L/s", "L/h"})


def readings(text: str, *, is_gold: bool = True) -> list[str]:
    """The ways to read the commas and units of an answer: the most usual first, at most five.

    `1,234` may be one number or two; `0,25` and `1000,99` may be decimals of other countries. A
    comma within brackets parts the entries of a point, an interval or a set: `(1,200)` is no 1200.
    `0.333...` may continue for ever. `5 m/s` may be a speed.

    Args:
        text: plain text of an answer.
        is_gold: False: `12 m^2` may be an area. A gold may have an unknown m.
    """
    text = _ORDINAL.sub("", text)
    text = _REPEATING.sub(_repeating_fraction, text)
    text = _JOINED.sub(lambda match: _NOT_DIGIT.sub("", match.group()), text)
    found = [text]
    thousands = _outside_brackets(_THOUSANDS, "", text)
    if thousands != text:
        found.insert(0, thousands)
    decimals = _outside_brackets(_DECIMAL_COMMA, ".", text)
    if decimals != text:
        found.append(decimals)
    recurring = _ON_AND_ON.sub(lambda match: _repeating_fraction(match, (1, 2, 4)), text)
    if recurring != text:
        found.append(recurring)
    measured = _PLAIN_UNITS.sub(lambda match: _unit_in_text(match, is_gold=is_gold), text)
    if measured != text:
        found.append(measured)
    return found


def _unit_in_text(match: re.Match[str], *, is_gold: bool) -> str:
    """A plain unit behind a number as \\text; unchanged if it may be a product of letters."""
    gap, top, bottom, squared, area = match.groups()
    unit = match.group()[len(gap) :]
    if area is not None:
        is_unit = bool(gap) and not is_gold
    elif squared is not None:
        is_unit = _is_unit(squared)
    elif len(top) == len(bottom) == 1:
        is_unit = bool(gap) and f"{top}/{bottom}" in _RATES
    else:
        is_unit = _is_unit(top) and _is_unit(bottom) and (bool(gap) or len(top) > 1)
    return rf"\text{{ {unit}}}" if is_unit else match.group()


def _is_unit(word: str) -> bool:
    return word in SINGLE_LETTER_UNITS if len(word) == 1 else unit_name(word) is not None


def _outside_brackets(pattern: re.Pattern[str], mark: str, text: str) -> str:
    """The text with `mark` for the commas of every match that stands in no brackets.

    TeX's own braces are no brackets.
    """
    if pattern.search(text) is None:
        return text
    borders: list[int] = []  # where brackets open and close, in turn
    depth = 0
    for bracket in _BRACKET.finditer(text):
        if bracket.group() in _OPENERS:
            depth += 1
            if depth == 1:
                borders.append(bracket.start())
        elif bracket.group() in _CLOSERS and depth:
            depth -= 1
            if depth == 0:
                borders.append(bracket.start())

    def changed(match: re.Match[str]) -> str:
        inside = bisect.bisect(borders, match.start()) % 2 == 1
        return match.group() if inside else match.group().replace(",", mark)

    return pattern.sub(changed, text)


def _repeating_fraction(match: re.Match[str], groups: tuple[int, int, int] = (1, 2, 3)) -> str:
    r"""`0.1\overline{6}` -> `\frac{15}{90}`."""
    whole, fixed, repeated = match.group(*groups)
    head = int(whole + fixed or "0")
    bottom = 10 ** len(fixed) * (10 ** len(repeated) - 1)
    top = int((whole + fixed + repeated) or "0") - head
    return rf"\frac{{{top}}}{{{bottom}}}"


def plain_text(text: str) -> str:
    """The answer in the letters of LaTeX: Unicode signs spelt out, invisible characters gone."""
    if "\\\\" in text and "begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = _LONE_SIGN.sub(r"\1", text)
    if "color" in text and _COLOURED_DIGITS.fullmatch(text.strip()):
        text = _COLOURED.sub(r"\1\2", text)
    text = _shown(text)
    if text.isascii():
        return text
    out: list[str] = []
    for char in text:
        if char in _UNICODE:
            out.append(_UNICODE[char])
        elif char.isascii():
            out.append(char)
        else:
            wide = unicodedata.normalize("NFKC", char)
            out.append(wide if len(wide) == 1 else char)
    return "".join(out).strip()


_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_REORDERING = frozenset("\u202d\u202e")  # what follows is shown in one direction, whatever it is


def _shown(text: str) -> str:
    """The answer without what shows nothing; "" if a reader and a program would read two answers.

    Formatting characters (joiners, marks of direction, soft hyphens, BOM) and NUL go at either end;
    within the answer formatting characters become a space. Nothing is left if they part two digits
    or turn several characters around, nor if a control character stands within the answer, or half
    a surrogate pair anywhere.
    """
    if text.isascii() and not _CONTROL.search(text):
        return text.strip()
    first, last = 0, len(text)
    while first < last and _shows_nothing(text[first]):
        first += 1
    while last > first and _shows_nothing(text[last - 1]):
        last -= 1
    inner = text[first:last]
    if _CONTROL.search(inner) or (last - first > 1 and not _REORDERING.isdisjoint(text)):
        return ""
    out: list[str] = []
    seen, hidden = "", False  # the last character with a shape; whether one without came after it
    for char in inner:
        formatting = unicodedata.category(char) == "Cf"
        if hidden and _is_numeric(seen) and _is_numeric(char):
            return ""
        hidden = formatting or (hidden and char.isspace())
        seen = seen if formatting or char.isspace() else char
        out.append(" " if formatting else char)
    return "".join(out)


def _shows_nothing(char: str) -> bool:
    return char == "\x00" or char.isspace() or unicodedata.category(char) == "Cf"


def _is_numeric(char: str) -> bool:
    return char.isnumeric() or char == "."
