r"""Text of an answer -> canonical tokens, the form in which answers are first compared.

Spacing, sizes, fonts and dialects go (`\dfrac`, `\left(`, `\,`, `$`, `\text{...}`, Unicode signs);
what carries meaning stays. Two answers with the same tokens are equal without any mathematics.

A token is a pair (kind, value):
    num    digits, with at most one point, or `1.5e-3`     let   one letter
    tlet   one letter out of \text{...}                    word  a lower-case word out of text
    run    four or more plain letters, or a known word     cmd   a LaTeX command's name
    op     one sign: + - * / ^ _ ( ) [ ] { } S{ S} | , ; : = < > ! ' % & \\ and names like "leq"
    begin, end   a matrix environment
"""

from __future__ import annotations

import re
from types import MappingProxyType

from polaris_jax.reward.math.vocabulary import (
    FUNCTIONS,
    GREEK,
    INVERSE,
    SEPARATORS,
    SHORT_WORDS,
    is_unit_word,
    word_set,
)
from polaris_jax.reward.tex import closing_brace

Token = tuple[str, str]

MAX_ANSWER_CHARS = 6000
MAX_TOKENS = 3000
MAX_TEXT_DEPTH = 8


class Unreadable(ValueError):
    """The text is no answer that we can read; it may still equal another by its characters."""


# Commands that change how a formula looks and not what it says.
_SILENT = word_set(
    "left right middle big Big bigl bigr Bigl Bigr bigg Bigg biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle limits nolimits quad qquad hline boxed fbox it bf sf tt large Large "
    "normalsize small nonumber notag thinspace , ; : ! > / hspace space enspace"
) | {" ", "\n", "\t"}

# Commands whose argument is words.
_TEXT = word_set(
    "text textbf textit textrm textsf texttt textnormal textup textsc mbox hbox mathrm mathbf "
    "mathit mathsf mathtt mathnormal boldsymbol bm operatorname emph underline pmb rom"
)

_ALIASES = MappingProxyType(
    {
        "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
        "choose": "choose", "le": "leq", "leqslant": "leq", "leqq": "leq", "ge": "geq",
        "geqslant": "geq", "geqq": "geq", "ne": "neq", "to": "to", "rightarrow": "to",
        "infin": "infty", "varnothing": "emptyset", "empty": "emptyset", "backslash": "setminus",
        "smallsetminus": "setminus", "simeq": "approx", "sim": "approx", "cong": "approx",
        "arcsec": "arcsec", "ldots": "dots", "cdots": "dots", "dotsc": "dots", "dotsb": "dots",
        "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "degree": "circ",
        "lparen": "(", "rparen": ")", "isin": "in", "land": "wedge", "imath": "i",
        "overrightarrow": "vec", "overleftrightarrow": "overline", "widehat": "hat",
        "varpi": "pi", "Reals": "R", "R": "R", "ang": "angle", "implies": "to", "iff": "iff",
        "measuredangle": "angle",
    }
)  # fmt: skip

_OPS = MappingProxyType(
    {
        "times": "*", "cdot": "*", "ast": "*", "div": "/", "leq": "leq", "geq": "geq",
        "neq": "neq", "lt": "<", "gt": ">", "in": "in", "approx": "approx", "pm": "pm", "mp": "mp",
        "cup": "cup", "cap": "cap", "setminus": "setminus", "{": "S{", "}": "S}", "lbrace": "S{",
        "rbrace": "S}", "vert": "|", "lvert": "|", "rvert": "|", "mid": "|", "|": "||",
        "Vert": "||", "lVert": "||", "rVert": "||", "%": "%", "colon": ":", "prime": "'",
        "(": "", ")": "", "[": "", "]": "", "\\": "\\\\", "&": "&", "_": "_", "#": "#",
        "to": "to", "lbrack": "[", "rbrack": "]", "parallel": "||",
    }
)  # fmt: skip

_SPLIT_PREFIXES = tuple(
    sorted(
        FUNCTIONS
        | GREEK
        | {"sqrt", "frac", "infty", "cdot", "times", "lfloor", "lceil", "angle", "triangle"},
        key=len,
        reverse=True,
    )
)
_ENVIRONMENTS = word_set(
    "pmatrix bmatrix matrix vmatrix Vmatrix Bmatrix smallmatrix array cases aligned align* align "
    "gathered split"
)

_FORMULA = re.compile(r"[=+]|\\(?!text|mbox|mathrm|quad)[A-Za-z]")  # a formula put into \text{}
_SCAN = re.compile(
    r"(?P<space>\s+|~|\$)"
    r"|(?P<num>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6}(?![\dA-Za-z]))?)"
    r"|(?P<cmd>\\(?:[A-Za-z]+|.))"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<op>!=|<=|>=|==|\*\*|:=|[-+*/^_()\[\]{}|,;:=<>!'%&.?\"])"
    r"|(?P<other>.)",
    re.DOTALL,
)
_OP_SPELLINGS = MappingProxyType(
    {"!=": "neq", "<=": "leq", ">=": "geq", "==": "=", "**": "^", ":=": "="}
)
_ENVIRONMENT_ARG = re.compile(r"\s{0,8}\{([A-Za-z]{1,16}\*?)\}(?:\s{0,8}\{[lcr|\s]{0,40}\})?")
_COLOUR = re.compile(r"(?:\[[A-Za-z]{1,8}\])?\s{0,8}\{[#A-Za-z0-9!,. ]{1,40}\}")
_ONE_LETTER = re.compile(r"\s{0,8}\{?\s{0,8}([A-Za-z])\s{0,8}\}?")
_BRACE_ARG = re.compile(r"\s{0,8}\{")


def tokens(text: str) -> tuple[Token, ...]:
    """The canonical tokens of one reading of an answer.

    Raises:
        Unreadable: too long, too many tokens, or text nested too deep.
    """
    found: list[Token] = []
    _scan(text, found, in_text=False, depth=0)
    if _ends_in_dots(found):
        raise Unreadable("an answer that continues")
    while found and found[-1] in _TRAILING:
        found.pop()
    while found and found[0] == _LINE_BREAK:
        found.pop(0)
    if len(found) > 1 and found[0][1].lower() in _ABOUT and found[1][0] not in ("let", "tlet"):
        found.pop(0)
    return tuple(found)


_ABOUT = frozenset({"approx", "approximately", "about", "around", "roughly"})
_POINT = ("op", ".")
_LINE_BREAK = ("op", "\\\\")
# A lone backslash is what strip() leaves of a control space.
_TRAILING = frozenset(("op", sign) for sign in ".,;:") | {_LINE_BREAK, ("let", "\\")}


def _ends_in_dots(found: list[Token]) -> bool:
    """Whether three points end the answer, and no decimal stands before them.

    `1, 2, 3, ...`, never `0.333...`. Two points are a full stop behind an answer with its own.
    """
    rest = len(found)
    while rest and found[rest - 1] == _POINT:
        rest -= 1
    kind, value = found[rest - 1] if rest else _POINT
    points = len(found) - rest + (kind == "num")  # a number takes the first point
    return points >= 3 and not (kind == "num" and "." in value)


def canonical_key(found: tuple[Token, ...]) -> tuple[Token, ...]:
    """Tokens with text's letters as plain ones and `^{2}` as `^2`: what makes equal characters."""
    key: list[Token] = []
    index = 0
    while index < len(found):
        kind, value = found[index]
        single = found[index : index + 3]
        if key and key[-1] in _SCRIPTS and (kind, value) == ("op", "{") and _is_single(single):
            kind, value = single[1]
            index += 2
        key.append(("let" if kind == "tlet" else kind, value))
        index += 1
    return tuple(key)


_SCRIPTS = frozenset({("op", "^"), ("op", "_"), ("cmd", "pmod"), ("cmd", "mod"), ("cmd", "bmod")})


def _is_single(group: tuple[Token, ...]) -> bool:
    return len(group) == 3 and group[1][0] in ("num", "let", "tlet") and group[2] == ("op", "}")


def _scan(text: str, found: list[Token], *, in_text: bool, depth: int) -> None:
    if depth > MAX_TEXT_DEPTH:
        raise Unreadable("text nested too deep")
    position = 0
    while position < len(text):
        match = _SCAN.match(text, position)
        if match is None or len(found) > MAX_TOKENS:
            raise Unreadable("too many tokens")
        position = match.end()
        kind, value = match.lastgroup, match.group()
        if kind == "num":
            found.append(("num", _canonical_number(value)))
        elif kind == "letters":
            after_space = match.start() > 0 and text[match.start() - 1] in " ~}\n"
            _scan_letters(value, found, in_text=in_text, after_space=after_space)
        elif kind == "cmd":
            position = _scan_command(value[1:], text, position, found, in_text, depth)
        elif kind == "op":
            found.append(("op", _OP_SPELLINGS.get(value, value)))
        elif kind == "other":
            found.append(("let", value))


def _canonical_number(value: str) -> str:
    """`007` -> `7`, `.50` -> `0.50`, `3.` -> `3`: trailing zeros stay, they say the precision."""
    mantissa, mark, exponent = value.replace("E", "e").partition("e")
    whole, point, fraction = mantissa.partition(".")
    whole = whole.lstrip("0") or "0"
    mantissa = f"{whole}.{fraction}" if point and fraction else whole
    return f"{mantissa}e{int(exponent)}" if mark else mantissa


def _scan_letters(value: str, found: list[Token], *, in_text: bool, after_space: bool) -> None:
    lower = value.lower()
    if len(value) == 1:
        found.append(("tlet" if in_text else "let", value))
    elif value in INVERSE:
        found.append(("cmd", INVERSE[value]))
    elif value in FUNCTIONS and value != "deg" and not (value == "min" and _ends_number(found)):
        found.append(("cmd", value))
    elif lower in ("infty", "infinity", "inf", "oo") and lower == value:
        found.append(("cmd", "infty"))
    elif value == "pi":
        found.append(("cmd", "pi"))
    elif in_text and lower == "to" and _ends_number(found):  # `3 \\text{ to } 4`, a ratio
        found.append(("op", ":"))
    elif (
        lower in SEPARATORS
        or in_text
        or (
            is_unit_word(value)
            and (_ends_number(found) or (found and found[-1][0] in ("word", "run")))
        )
    ):
        found.append(("word", lower))
    elif lower in SHORT_WORDS or len(value) >= 4:
        for prefix in ("sqrt", "sin", "cos", "tan", "log"):
            if value.startswith(prefix) and len(value) <= len(prefix) + 2:
                found.append(("cmd", prefix))
                _scan_letters(value[len(prefix) :], found, in_text=False, after_space=False)
                return
        found.append(("run", value))
    else:
        found.extend(("let", letter) for letter in value)


def _ends_number(found: list[Token]) -> bool:
    return bool(found) and (found[-1][0] == "num" or found[-1][1] in (")", "}"))


def _scan_command(
    name: str, text: str, position: int, found: list[Token], in_text: bool, depth: int
) -> int:
    """Appends the tokens of a LaTeX command to `found`; returns the position after the command."""
    name = _ALIASES.get(name, name)
    if name in _SILENT:
        if name in ("left", "right") and text[position : position + 1] == ".":
            position += 1
        if name in ("boxed", "fbox") and not _BRACE_ARG.match(text, position):
            return position
    elif name in _TEXT or name == "rm":
        opened = _BRACE_ARG.match(text, position)
        if not opened and name == "rm":  # `{\\rm cm}`: up to the end of the group
            end = closing_brace(text, position)
            content = text[position:end]
            # Capitals are letters, `{\\rm I}`, but for units: `5{\\rm N}`.
            behind = found[:-1] if found and found[-1] == ("op", "{") else found
            in_words = not content.strip().isupper() or _ends_number(behind)
            in_words = in_words and not _FORMULA.search(content)
            _scan(content, found, in_text=in_words, depth=depth + 1)
            position = len(text) if end is None else end
        elif opened:
            end = closing_brace(text, opened.end())
            end = len(text) if end is None else end
            content = text[opened.end() : end]
            _scan(content, found, in_text=not _FORMULA.search(content), depth=depth + 1)
            position = end + 1
    elif name in ("color", "textcolor"):
        named = _COLOUR.match(text, position)
        position = named.end() if named else position
    elif name in ("begin", "end"):
        argument = _ENVIRONMENT_ARG.match(text, position)
        if argument and argument.group(1) in _ENVIRONMENTS:
            found.append((name, argument.group(1).rstrip("*")))
            position = argument.end()
        else:
            raise Unreadable(f"environment {text[position : position + 20]!r}")
    elif name in ("mathbb", "mathcal", "mathscr", "mathfrak"):
        argument = _ONE_LETTER.match(text, position)
        if argument:
            found.append(("cmd", f"{name}:{argument.group(1)}"))
            position = argument.end()
    elif name == "$":
        found.append(("op", "dollar"))
    elif name == "pounds":
        found.append(("op", "pounds"))
    elif name in _OPS:
        if _OPS[name]:
            found.append(("op", _OPS[name]))
    elif name == "i":
        found.append(("let", "i"))
    elif name.isalpha():
        _scan_named(name, found)
    else:
        found.append(("let", name))
    return position


_COMMANDS = (
    FUNCTIONS
    | GREEK
    | word_set(
        "frac sqrt binom choose infty emptyset circ angle triangle vec hat bar tilde dot ddot "
        "overline lfloor rfloor lceil rceil langle rangle sum prod int lim dots wedge perp cases "
        "pmod mod bmod equiv forall exists subset subseteq cup star dagger square Box not iff "
        "arcsec substack over stackrel overset underset underbrace overbrace oint iint R"
    )
)


def _scan_named(name: str, found: list[Token]) -> None:
    if name not in _COMMANDS:
        for prefix in _SPLIT_PREFIXES:  # `\cotx`, where a space was lost
            if name.startswith(prefix):
                spelt = _ALIASES.get(prefix, prefix)
                found.append(("op", _OPS[spelt]) if spelt in _OPS else ("cmd", spelt))
                found.extend(("let", letter) for letter in name[len(prefix) :])
                return
    found.append(("cmd", name))
