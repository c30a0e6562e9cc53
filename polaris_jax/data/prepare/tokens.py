r"""A problem's text as words, numbers and signs that do not depend on how TeX was written.

`\dfrac12` and `\frac{1}{2}`, `\le` and `\leq`, `$x$` and `\(x\)`, spaces, line breaks, brackets and
full stops make no difference. Near duplicates and benchmark problems are found by these tokens.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from polaris_jax.config.data import PROMPT_SUFFIX

# Macros that mean the same, by the one that stands for them.
_SAME = {
    "frac": "dfrac tfrac cfrac",
    "binom": "dbinom tbinom choose",
    "le": "leq leqslant leqq",
    "ge": "geq geqslant geqq",
    "ne": "neq",
    "dots": "ldots cdots dotsc dotsb dotsm dotsi",
    "times": "cdot ast",
    "to": "rightarrow longrightarrow",
    "in": "isin",
    "emptyset": "varnothing",
    "epsilon": "varepsilon",
    "phi": "varphi",
    "theta": "vartheta",
    "overline": "bar",
    "degree": "circ",
    "mid": "vert lvert rvert",
    "mod": "bmod pmod pod",
}
_CANONICAL = {other: name for name, others in _SAME.items() for other in others.split()}
# Macros of looks alone.
_LOOKS_TEXT = """
    Big Bigg Biggl Biggr Bigl Bigr begin bf big bigg biggl biggr bigl bigr bigskip
    boldsymbol cal centering displaystyle emph end enspace ensuremath fbox hbox hfill hline
    hspace it label lbrace lbrack left limits mathbb mathbf mathcal mathfrak mathit mathrm
    mathsf mathtt mbox medskip medspace middle newline noindent nolimits operatorname par
    phantom qquad quad rbrace rbrack right rm scriptstyle sf smallskip space text textbf
    textit textnormal textrm textsf textstyle texttt textup thinspace underline vspace
"""
_LOOKS = frozenset(_LOOKS_TEXT.split())
_SIGNS = str.maketrans(
    {
        "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", "·": r"\times ", "⋅": r"\times ",
        "∗": r"\times ", "*": r"\times ", "−": "-", "–": "-", "—": "-", "…": r"\dots ",
        "°": r"\degree ", "√": r"\sqrt ", "π": r"\pi ", "∠": r"\angle ", "△": r"\triangle ",
        "∈": r"\in ", "∞": r"\infty ", "→": r"\to ", "|": r"\mid ", "’": "'", "‘": "'",
    }
)  # fmt: skip
_DOTS = re.compile(r"\.\s?\.\s?\.")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\,|,)(?=\d{3}(?!\d))")
_SHORT_FRACTION = re.compile(r"(\\[dtc]?frac)\s{0,4}(\d)\s{0,4}(\d)")
_DEGREE = re.compile(r"\^\s{0,4}(?:\{\s{0,4}\\circ\s{0,4}\}|\\circ\b)")
_EMPTY = re.compile(r"[\^_]\{\s{0,4}\}")  # of `$C^{}_{}$`, which looks like $C$
_TOKEN = re.compile(r"\\[A-Za-z]+|[^\W\d_]+|\d+|[-+/=<>^_!%]")
_SUFFIX = re.compile(r"\s+".join(map(re.escape, PROMPT_SUFFIX.split())))


def math_tokens(text: str) -> list[str]:
    """The tokens of a problem's text, in order, without the instruction suffix."""
    text = unicodedata.normalize("NFKC", _SUFFIX.sub(" ", text).translate(_SIGNS))
    text = _THOUSANDS.sub(
        "", _DOTS.sub(r"\\dots ", _EMPTY.sub("", _DEGREE.sub(r"\\degree ", text)))
    )
    text = _SHORT_FRACTION.sub(r"\1 \2 \3", text)
    tokens = []
    for token in _TOKEN.findall(text):
        if token[0] != "\\":
            tokens.append(token.casefold())
            continue
        name = token[1:]
        if name not in _LOOKS:
            tokens.append(f"\\{_CANONICAL.get(name, name)}")
    return tokens


def answer_key(answer: Any) -> str:
    r"""A text that is equal for answers of one form: 072 and 72, \dfrac12 and \frac12."""
    answers = [answer] if isinstance(answer, str | int | float) else answer
    return "|".join(sorted(map(_one_key, answers)))


def _one_key(answer: Any) -> str:
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    tokens = math_tokens(str(answer))
    return " ".join(t.lstrip("0") or "0" if t.isdigit() else t for t in tokens) or str(answer)


def numbers_key(tokens: list[str]) -> str:
    """The numbers among the tokens, sorted."""
    return " ".join(sorted(t for t in tokens if t.isdigit()))
