"""What a text's dress leaves of it: trailing spaces, fonts, colours, braces for the spacing."""

import pytest

from polaris_jax.reward import answers_match, score_response

TRAILING = ["\\ ", "\\\\", "\\\\ ", ".\\ ", "\\\n", "\\\\\\\\", "\\ \\ "]
EQUAL = [
    *(("3", text) for text in (r"3{\rm cm}", r"3 \rm{cm}", r"3\rm cm", r"3{\text{ cm}}")),
    *((r"3\text{ cm}", text) for text in (r"3 {\rm ~cm}", r"3\mathrm{cm}", r"3\,\rm cm")),
    (r"3\text{ m}", r"3 {\rm m}"),
    ("1.5", r"\frac{3}{2}{\rm cm}"),
    (r"3\text{ cm}^2", r"3{\rm cm}^2"),
    ("Tuesday", r"{\rm Tuesday}"),
    *(("42", text) for text in (r"\color{red}{42}", r"\textcolor{blue}{42}", r"{\color{red} 42}")),
    ("10:30", "10{:}30"),
    (r"x\equiv 3\pmod{7}", r"x\equiv 3\pmod 7"),
    ("3", r"\min\{3,5\}"),
    ("9", r"\max\{3,5,9\}"),
    ("5", "5¢"),
    *(("1/3", text) for text in (r"0.333\ldots", "0.333...", "0.333…")),
    (r"\frac16", r"0.1666\dots"),
    ("1/7", r"0.142857142857\ldots"),
    ("0.333", "0.333..."),
    ("12", r"1\textcolor{red}{2}"),
    ("12", r"\textcolor{red}{1}2"),
    ("12", r"{\color{red}1}\textcolor{blue}{2}"),
    ("1.5", r"1.\textcolor{red}{5}"),
    ("I, II", r"{\rm I}, {\rm II}"),
    ("5", r"5{\rm N}"),
    (r"1+\sqrt3i", r"2\operatorname{cis}60^\circ"),
]
DIFFERENT = [
    (r"3{\rm m}", r"3{\rm cm}"),
    ("3", r"3{\rm x}"),
    ("red", r"\color{red}{42}"),
    ("5", r"\min\{3,5\}"),
    (r"\$5", "5¢"),
    *(("2", text) for text in (r"1\textcolor{red}{2}", r"1{\color{red}2}", "1{2}")),
    *(("6", text) for text in (r"2\textcolor{red}{3}", r"\color{red}{2}\color{blue}{3}")),
    ("5", r"1.\textcolor{red}{5}"),
    ("0", r"3\textcolor{blue}{0}"),
    *(("5", rf"\{name}\{{\}}") for name in ("min", "max", "gcd", "lcm")),
    ("5", r"x=\min\{\}"),
    ("(1,2)", r"(1,\max\left\{\right\})"),
    ("3", r"3\pmod 7"),
    (r"3\pmod 5", r"3\pmod 7"),
    ("e", r"2.71828\ldots"),
    ("3", r"3.14159\ldots"),
    ("0.3", r"0.33\ldots"),
]


@pytest.mark.parametrize("space", TRAILING)
@pytest.mark.parametrize("answer", ["5", r"\frac{1}{2}", "x+1"])
def test_a_space_or_line_break_behind_an_answer_says_nothing(answer: str, space: str) -> None:
    assert score_response(rf"\boxed{{{answer}{space}}}", answer, mode="eval") == 1.0
    assert answers_match(answer, answer + space)
    assert not answers_match("7", answer + space)


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_the_same_in_another_dress(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_what_a_dress_does_not_hide(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
