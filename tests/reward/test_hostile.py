"""Answers made to run code, to hang, to fill memory or to break the parser: all plainly wrong."""

import importlib
import json
import os
import pkgutil
import random
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from polaris_jax import reward
from polaris_jax.reward import Grader

pytestmark = pytest.mark.xdist_group("hostile")  # one worker makes what its tests share

# One pair without a deadline: far above the worst seen (0.3 s), far below a hang.
LONGEST_S = 4.0

HOSTILE = {
    "import": '__import__("os").system("touch EXECUTED")',
    "open": 'open("EXECUTED", "w")',
    "exec": "exec(\"open('EXECUTED','w')\")",
    "attributes": "().__class__.__bases__[0].__subclasses__()",
    "lambda": "(lambda: 0)()",
    "input": r"\input{/etc/passwd}",
    "write18": r"\immediate\write18{touch EXECUTED}",
    "recursive macro": r"\def\x{\x}\x",
    "format": "%s%n{0.__class__}{{7*7}}",
    "power tower": "9^{9^{9^9}}",
    "python power tower": "9**9**9**9",
    "negative tower": "2^{-2^{10^{10}}}",
    "small base": "(1/3)^{10^{8}}",
    "irrational base": r"\pi^{10^{9}}",
    "variable power": "x^{10^{9}}",
    "binomial power": "(x+1)^{10^5}",
    "exponential tower": "e^{e^{e^{e^{e}}}}",
    "factorial": "(10^6)!",
    "factorial tower": "((((9!)!)!)!)!",
    "many factorials": "x" + "!" * 3000,
    "binomial": r"\binom{10^9}{5\cdot10^8}",
    "root of a huge degree": r"\sqrt[10^{10}]{2}",
    "huge sum": r"\sum_{k=1}^{10^{100}} k",
    "huge sine": r"\sin(10^{10^{10}})",
    "huge exponent": "1e99999999999",
    "tiny exponent": "1e-999999",
    "nested sums": r"\sum_{i=1}^{1000}\sum_{j=1}^{1000}\sum_{k=1}^{1000} ijk",
    "a sum of powers": r"\sum_{k=1}^{1000} k^{k^{k}}",
    "a product": r"\prod_{k=1}^{2000} k!",
    "a sum to a symbol": r"\sum_{k=1}^{n^{n^n}} k",
    "a sum over nothing": r"\sum_{=}^{} ",
    "a matrix power": r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{10^9}",
    "a sum of complex factorials": r"\sum_{k=1}^{2000} (k+i)!",
    "a sum of binomials of a name": r"\sum_{k=1}^{2000}\binom{x}{k}k!",
    "numbers as small as any": r"\pi\cdot 10^{-9999}",
    "products of matrices": (
        r"\begin{pmatrix}a&b^2&c&d\\e&f&g&h\\j&k&l&m\\n&o&p&q\end{pmatrix}" * 8
    ),
    "matrices in a row": r"\begin{pmatrix}x&1\\1&y\end{pmatrix}" * 60,
    "a matrix of ten thousand": r"\begin{pmatrix}"
    + r"\\".join(["1&" * 99 + "1"] * 100)
    + r"\end{pmatrix}",
    "number words": "one hundred and " * 300,
    "hyphens": "twenty-" * 700,
    "ordinals": "5th" * 1900,
    "months": "May 5, " * 700,
    "colons": "1:" * 2900,
    "braces deep": "{" * 10**6,
    "five megabytes of digits": "7" * 5_000_000,
    "digits": "9" * 5000,
    "a megabyte of digits": "1" * 1_000_000,
    "a megabyte of braces": "{" * 500_000 + "}" * 500_000,
    "braces": "{" * 2000 + "1" + "}" * 2000,
    "brackets": "(" * 2900 + "1" + ")" * 2900,
    "nested roots": r"\sqrt{" * 800 + "2" + "}" * 800,
    "nested fractions": r"\frac{1}{1+" * 400 + "1" + "}" * 400,
    "open fractions": r"\frac{" * 800,
    "nested powers": "x^{" * 900 + "2" + "}" * 900,
    "text in text": r"\text{" * 900,
    "minus signs": "-" * 5000 + "1",
    "division chain": "1/2" * 1500,
    "plus-minus": r"1\pm1" * 900,
    "bars": "|x" * 2000,
    "subscripts": "x_{1}" * 900,
    "primes": "x" + "'" * 4000,
    "carets": "^" * 5000,
    "percents": "5" + "%" * 4000,
    "commas": "1," * 2900,
    "thousands": "1,111" * 1100,
    "repeating": r"0.\overline{1}" * 400,
    "letters": "a" * 5900,
    "spaced letters": "a " * 2900,
    "spaces": "1" + " " * 5900,
    "joined spaces": "1 " * 2900 + "111",
    "magnitudes far apart": r"x+10^{-600}+" + "+".join(rf"\sin({k}x)" for k in range(1, 150)),
    "factorials far apart": r"n!+10^{-600}+(n+1)!+(n+2)!+(2n)!+(3n)!",
    "bends far apart": "+".join(rf"|x-10^{{{k}}}|" for k in range(1, 150)),
    "floors close together": "+".join(rf"\lfloor x+10^{{-{k}}}\rfloor" for k in range(1, 150)),
    "minima in minima": r"\min(x,10^{90}+" * 25 + "1" + ")" * 25,
    "brackets of one": "[" * 900 + "5" + "]" * 900,
    "invisible characters": "\u200b".join("x" * 2000),
    "matrix": r"\begin{pmatrix}" + "&".join("1" * 2000) + r"\end{pmatrix}",
    "ragged matrix": r"\begin{pmatrix}1&2\\3\end{pmatrix}",
    "wide set": r"\{" + ",".join(f"x_{{{i}}}" for i in range(250)) + r"\}",
    "unions": r"(0,1)\cup" * 500 + "(0,1)",
    "null": "\x00",
    "surrogate": "\ud800",
    "right to left": "\u202e6\u202c",
    "combining": "6\u0301" * 1000,
    "other digits": "٦",
    "backslashes": "\\" * 5999,
    "lone commands": r"\frac\sqrt\binom\left\right\text\overline\begin\end",
    "division by zero": "1/0",
    "zero to the zero": r"\frac{0}{0}",
    "infinity minus infinity": r"\infty-\infty",
    "log of zero": r"\log 0+\ln 0+\log_1 5",
    "tangent at a pole": r"\tan\frac{\pi}{2}",
}

GOLDS = (
    "5", r"\frac{1}{2}", "x+1", "(1,2)", "[0,1)", r"\{1,2\}", "1,2", "x<3", r"\text{even}",
    r"\begin{pmatrix}1\\2\end{pmatrix}", r"\sqrt{2}", "2.50", r"5\%", "9^{9^{9^8}}", "204_5",
    "1:2", r"1\pm\sqrt2", "y=2x+1", r"(-\infty,1)\cup(2,3]",
)  # fmt: skip


SOUP = (
    r"\frac { } ( ) [ ] 1 2 12 x y + - * / ^ _ ! \sqrt \pi \pm \cup \cap \setminus , ; = < > \leq "
    r"\in \text{cm} \text{even} % ^\circ | \{ \} \infty i e \sin \log f \begin{pmatrix} "
    r"\end{pmatrix} & \\ \mathbb{R} . 5 0 : and or abcd \binom \lfloor \rfloor \overline \angle ' "
    r"\ne \approx 3.14 million \$ pm \sum \left \right \boxed 1,000 e5 \operatorname \hat \circ"
)

# Runs in a process of its own: the suite's annotation hook costs some hundred times the parser.
MEASURE = """
import json, sys, time
from polaris_jax.reward import answers_match
hostile, golds = json.load(sys.stdin)
found = {}
for name, text in hostile.items():
    for index, gold in enumerate(golds):
        for pair in ((text, gold), (gold, text))[: 1 + (index % 5 == 2)]:
            start_s = time.perf_counter()
            try:
                verdict = answers_match(*pair)
            except Exception as error:
                verdict = repr(error)
            worst = found.setdefault(name, [0.0, []])
            worst[0] = max(worst[0], time.perf_counter() - start_s)
            if verdict is not False:
                worst[1].append([*pair, verdict])
json.dump(found, sys.stdout)
"""


def measure(hostile: dict[str, str], golds: tuple[str, ...], directory: Path) -> dict:
    """name -> (longest seconds of one pair, the pairs that were not simply False)."""
    root = str(Path(__file__).resolve().parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps([hostile, golds]),
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": root},
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    directory = tmp_path_factory.mktemp("hostile")
    found = measure(HOSTILE, GOLDS, directory)
    found["files"] = [path.name for path in directory.iterdir()]
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_wrong_and_quick(name: str, measured: dict) -> None:
    longest_s, others = measured[name]
    assert not others
    assert longest_s < LONGEST_S


def test_long_lists_of_sums_share_one_budget(tmp_path: Path) -> None:
    texts = [
        ", ".join(rf"\sum_{{k=1}}^{{{last}}}\sin(k+{i})" for i in range(49)) for last in (998, 999)
    ]
    longest_s, others = measure({"sums": texts[0]}, (texts[1],), tmp_path)["sums"]
    assert not others
    assert longest_s < LONGEST_S


def patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Every regular expression of the package's modules."""
    found = []
    for module in pkgutil.walk_packages(reward.__path__, "polaris_jax.reward."):
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern):
                found.append((f"{module.name}.{name}", value))
    return found


def bombs() -> list[str]:
    """Long repeats of each short piece that a pattern may take, and a tail that it may not."""
    pieces = [
        " ", "\n", "1", "1,", "1.", "1,111", ".", "-", "a", "ab ", "\\", "{", "}", "\\text{", "$",
        "\\[", "\\boxed", "^", "^{", "5th", "e5", "%", "the answer is ", ". ", "\n \n", "<|",
        "1 111", "1{,}111", "0.1\\overline{", "\\\\", "so ", ",",
        "% ", "\\verb|", "\\lstinline[", "<!-- ", "\\begin{", "I think ", "the final ", "i've ",
    ]  # fmt: skip
    return [piece * (80_000 // len(piece)) + "\x01" for piece in pieces]


def test_no_pattern_explodes() -> None:
    names = [name for name, _ in patterns()]
    assert len(names) > 15
    for name, pattern in patterns():
        for text in bombs():
            start_s = time.process_time()
            deque(pattern.finditer(text), maxlen=0)
            took_s = time.process_time() - start_s
            assert took_s < 5.0, (name, text[:10], took_s)  # some ms; a square of 80,000: 10 s


def test_nothing_was_executed(measured: dict) -> None:
    assert measured["files"] == []


def test_random_token_soup_raises_nothing(tmp_path: Path) -> None:
    source = random.Random(0)
    pieces, soup = SOUP.split(), {}
    for index in range(1500):
        soup[str(index)] = "".join(source.choice(pieces) for _ in range(source.randint(1, 12)))
    found = measure(soup, GOLDS[:6], tmp_path)
    errors = [pair for _, pairs in found.values() for pair in pairs if pair[2] is not True]
    assert not errors


def test_the_pool_answers_all_of_them_and_lives_on() -> None:
    texts = ["</think> \\boxed{" + text + "}" for text in HOSTILE.values()]
    with Grader(workers=2, timeout_s=3.0) as grader:
        assert not grader.score(texts, ["5"] * len(texts)).any()
        assert grader.score([r"</think> \boxed{\frac{10}{2}}"], ["5"]).tolist() == [1.0]
        stats = grader.stats()
    assert (stats["timeouts"], stats["crashes"], stats["errors"]) == (0, 0, 0)
