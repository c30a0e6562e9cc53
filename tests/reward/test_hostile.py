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
from tests.support.hostile_answers import GOLDS, HOSTILE

pytestmark = pytest.mark.xdist_group("hostile")  # one worker makes what its tests share

# One pair without a deadline: far above the worst seen (0.3 s), far below a hang.
LONGEST_S = 4.0

SOUP = (
    r"\frac { } ( ) [ ] 1 2 12 x y + - * / ^ _ ! \sqrt \pi \pm \cup \cap \setminus , ; = < > \leq "
    r"\in \text{cm} \text{even} % ^\circ | \{ \} \infty i e \sin \log f \begin{pmatrix} "
    r"\end{pmatrix} & \\ \mathbb{R} . 5 0 : and or abcd \binom \lfloor \rfloor \overline \angle ' "
    r"\ne \approx 3.14 million \$ pm \sum \left \right \boxed 1,000 e5 \operatorname \hat \circ"
)

# Runs in a process of its own: a text that takes all memory takes no other test with it.
MEASURE = """
import json, sys, time
from polaris_jax.reward import answers_match
hostile, golds, most = json.load(sys.stdin)
found = {}
for number, (name, text) in enumerate(hostile.items()):
    for index in range(min(most, len(golds))):
        gold = golds[(number + 3 * index) % len(golds)]
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


def measure(
    hostile: dict[str, str], golds: tuple[str, ...], directory: Path, *, most: int = 100
) -> dict:
    """name -> (longest seconds of one pair, the pairs that were not simply False).

    Each text is graded against at most `most` golds. Successive texts take successive golds, so
    that every gold is used.
    """
    root = str(Path(__file__).resolve().parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps([hostile, golds, most]),
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
    found = measure(HOSTILE, GOLDS, directory, most=6)
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
