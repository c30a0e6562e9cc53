"""Rules about one row: narrow, by name, and off if they are not asked for."""

import pytest

from polaris_jax.data.prepare.rules import ROW_RULES, RULE_OF, row_rules
from polaris_jax.data.prepare.terms import REASONS
from polaris_jax.records import Problem

ALL = row_rules(frozenset(ROW_RULES), math_reward=True)


def reason(text, answer="7", rule=ALL, **fields):
    return rule(Problem("p", text, answer), fields).reason


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Prove that there are infinitely many primes.", "see proof", "proof"),
        ("Let $n > 1$. Show that $n! < n^n$.", "\\blacksquare", "proof"),
        ("(a) Prove that $a+b \\ge 2\\sqrt{ab}$.", "1", "proof"),
        ("Prove that $k$ exists and find its least value.", "7", ""),
        ("Show that you can solve it: what is 3 + 4?", "7", ""),
        ("Which is the largest?", "C", "choice_without_options"),
        ("Which is the largest? (A) 1 (B) 2 (C) 3", "C", ""),
        ("Which? $\\textbf{(A)}\\ 1 \\qquad \\textbf{(B)}\\ 2$", "\\text{(B)}", ""),
        ("Which? (a) 1 (b) 2 (c) 3", "C", ""),
        ("Points $A$, $B$ and $C$ lie on a line. Which lies between?", "B", ""),
        ("The 100th letter of ABCABC...?", "A", ""),
        ("As shown in the figure, find $x$.", "7", "needs_image"),
        ("Find the area of the shaded region in the figure below.", "7", "needs_image"),
        ("![](img_3.png) Find $x$.", "7", "needs_image"),
        ("In the figure below, find $x$. [asy]draw((0,0)--(1,1));[/asy]", "7", ""),
        ("The rows of a triangle are shown below.\n1\n1 1\nWhat is the sum?", "7", ""),
        ("In the diagram, $AB = 3$ and $BC = 4$. Find $AC$ if $ABC$ is right.", "5", ""),
        ("Write a program.", "def f(x):\n    return x", "answer_unreadable"),
        ("What is it?", "a " * 4000, "answer_too_long"),
        ("What time is it?", "8\\!:\\!34 \\text{ p.m.}", ""),
        ("What?", ["7", "seven"], ""),
        ("What is $f$?", "\\frac{x^2+1}{2}", ""),
    ],
)
def test_reasons(text, answer, expected):
    assert reason(text, answer) == expected


def test_image_columns():
    assert reason("What is it?", image={"bytes": b"x"}) == "needs_image"
    assert reason("What is it?", images=[]) == ""


def test_rules_that_are_not_asked_for_do_not_apply():
    off = row_rules(frozenset(), math_reward=True)
    assert reason("As shown in the figure, prove that it is so.", "see proof", off) == ""
    assert RULE_OF.keys() <= set(REASONS)
    assert set(RULE_OF.values()) == set(ROW_RULES)


def test_a_reward_of_the_users_own_reads_any_answer():
    own = row_rules(frozenset(ROW_RULES), math_reward=False)
    verdict = own(Problem("p", "Write a program.", "def f(x):\n    return x"), {})
    assert (verdict.reason, verdict.readable) == ("", True)
    assert not ALL(Problem("p", "When?", "8\\!:\\!34 \\text{ p.m.}"), {}).readable
