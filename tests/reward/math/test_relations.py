"""Equations, inequalities, and the names that they give to values."""

from __future__ import annotations

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    ("(2,1)", "y=1, x=2"),
    ("(1,2)", "x=1, y=2"),
    ("(4,3)", "x_2=3, x_1=4"),
    ("(3,2)", "m=3, k=2"),  # no order is usual for these: as they are written
    ("(x,y)=(1,2)", "(y,x)=(2,1)"),
    ("(x,y)=(1,2)", "y=2, x=1"),
    ("(x,y)=(1,2)", "(1,2)"),
    ("x:y=1:2", "y:x=2:1"),
    ("x:y=1:2", "2:4"),
    ("y=x", "x=y"),
    ("p=2q", r"q=\frac{p}{2}"),
    ("y=2x", "f(x)=2x"),
    (r"\text{Area}=5", "A=5"),
    ("4+1=5", "5"),
    (r"\frac13 = 0.333", "0.333"),
]
DIFFERENT = [
    ("(1,2)", "y=1, x=2"),
    ("(x,y)=(1,2)", "(y,x)=(1,2)"),
    ("(x,y)=(1,2)", "(a,b)=(1,2)"),
    ("(x,y)=(1,2)", "y=1, x=2"),
    ("x:y=1:2", "y:x=1:2"),
    ("f(x)=2x", "g(x)=2x"),
    ("x=5", "f(x)=5"),
    ("f(2)=5", "f(3)=5"),
    ("AB=5", "CD=5"),
    (r"\overline{AB}=5", r"\overline{CD}=5"),
    ("10=5", "5"),
    ("(3,1)", r"3 \text{ or } 1"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_the_same_names_and_values(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_other_names_or_values(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)


VALUES = [
    *(("x^2+1", rf"{name}=x^2+1") for name in ("P(x)", "p(x)", "f(x)", "f_n(x)", r"\phi(x)")),
    *(("n^2", rf"{name}=n^2") for name in ("T(n)", "S(n)", "a(n)", r"\tau(n)", "x(n)")),
    *(("5", rf"{name}=5") for name in ("P(2)", "f(2)", "f_1(2)", "S(n)", "f'(2)", "N(2,3)")),
    *(("5", rf"{name}=5") for name in ("f^{-1}(2)", r"\phi(12)", r"n(A\cup B)", "y'(0)")),
    *((r"\frac12", rf"{name}=\frac12") for name in ("P(A)", "P(X=2)", r"P(A\cap B)")),
    *((r"\frac12", rf"{name}=\frac12") for name in ("P(A|B)", r"\Pr(A)", r"\mathbb{P}(A)")),
    *(("3", rf"{name}=3") for name in ("E[X]", r"\mathbb{E}[X]", r"\operatorname{Var}(X)")),
    *(("40", rf"{name}=40") for name in (r"\angle A", r"m\angle A", r"m\angle ABC")),
]
PRODUCTS = [
    *(("6", f"{side}=6") for side in ("x(x+1)", "A(x+1)", "a(b+c)", "2(x)", "y(x+1)")),
    *(("5", f"{side}=5") for side in ("x(y)", "a(2)", "k(2)", r"\text{not}(A)")),
]
SAME = [
    ("f'(x)=2x", "y'=2x"),
    ("f'(x)=2x", "2x=f'(x)"),
    (r"f^{-1}(x)=\frac{x-1}{2}", r"y=\frac{x-1}{2}"),
    ("P(x)=x^2", "y=x^2"),
    (r"\mathbb{P}(A)=\frac12", r"P(A)=\frac12"),
    (r"\vec{v}=(1,2)", "v=(1,2)"),
    (r"\overline{AB}=5", "AB=5"),
    (r"m\angle A=40", r"\angle A=40"),
    (r"\angle A=40", "A=40"),
    ("P(0)=1, P(1)=2", "P(1)=2, P(0)=1"),
    ("x_1=2, x_2=3", "x=2, x=3"),
    (r"x=\pm2", "x_1=2, x_2=-2"),
    (r"x=\pm2", r"x \in \{2,-2\}"),
    (r"\angleBEA=90", r"\angle BEA=90"),
    (r"\hat{y}=2x+1", "y=2x+1"),
    # A name that one answer calls is called in the other one too.
    ("5=P(2)", "P(2)=5"),
    ("5=f_1(2)", "f_1(2)=5"),
    (r"5=\phi(2)", r"\phi(2)=5"),
    ("x^2-1=P(x)", "P(x)=x^2-1"),
    ("P(x)=2Q(x)", "2Q(x)=P(x)"),
    *(("P(2)=5", other) for other in ("2P(2)=10", "P(2)-5=0", "P(1+1)=5")),
    ("P(0)=5", "2P(0)=10"),
    ("A(3)=6", "2A(3)=12"),
    (r"P(\frac12)=3", "P(0.5)=3"),
    # Or in none of them: then it is a product beside a product.
    *(("R(3)=12", other) for other in ("3R=12", "R=4")),
    ("A(2)=B", "2A=B"),
    ("I(R)=V", "V=IR"),
    ("p(V)=nRT", "pV=nRT"),
    ("u(v)=w", "w=uv"),
    ("p(q)=5", "pq=5"),
    (r"\omega(t)=5", r"\omega t=5"),
    ("A(3)=12, B=2", "3A=12, B=2"),
    # A letter with a subscript is not the function.
    *(("V(t)=V_0e^{-kt}", other) for other in ("V_0e^{-kt}", "V=V_0e^{-kt}")),
    ("T(t)=T_0+5t", "T_0+5t"),
    ("x(t)=x_0+vt", "x_0+vt"),
    ("f(x)=3", "f(t)=3"),
]
OTHER = [
    *(("f(x)=2x", f"{name}=2x") for name in ("f^{-1}(x)", "f'(x)", "f^{2}(x)", "f(f(x))", "P(x)")),
    *(("f'(x)=2x", f"{name}=2x") for name in ("f''(x)", "g'(x)", "g(x)", "y", "f^{-1}(x)")),
    *(("f(2)=5", f"{name}=5") for name in ("f'(2)", "f^{-1}(2)", "f_1(2)", "P(2)")),
    *(("x=5", f"{name}=5") for name in ("x'", r"\dot{x}", r"\bar{x}", r"\overline{x}", r"\hat{x}")),
    *((f"{name}({value})=12", f"{name}=12") for name in "Aqu" for value in ("3", "t")),
    (r"\sigma(5)=4", r"\sigma=4"),
    ("P(2)=5", "y=5"),
    *(("5", f"{name}()=5") for name in "Pf"),
    ("P(x)=x^2", "P(y)=x^2"),
    ("P(0)=1", "Q(0)=1"),
    ("P(0)=5", "2P(0)=8"),
    ("y=2x", "y'=2x"),
    ("y'=2x", "y''=2x"),
    ("P(x)=2x", "P'(x)=2x"),
    ("P(1)=5", "P(2)=5"),
    (r"P(A)=\frac12", r"P(B)=\frac12"),
    (r"P(A|B)=\frac12", r"P(B|A)=\frac12"),
    (r"P(X=2)=\frac12", r"P(X=3)=\frac12"),
    ("E[X]=3", "E[Y]=3"),
    ("P(x,y)=3", "P(y,x)=3"),
    ("P(A)=5", "AB=5"),
    (r"\overline{AB}=5", "CD=5"),
    (r"m\angle A=40", r"m\angle B=40"),
    ("x=1, y=2", "x'=1, y'=2"),
    ("x=1, y=2", "a=1, b=2"),
    ("x=2, x=3", "y=2, y=3"),
    (r"x=\pm2", r"y=\pm2"),
]


@pytest.mark.parametrize(("answer", "gold"), VALUES + SAME)
def test_a_name_may_be_left_out_or_written_in_another_way(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), PRODUCTS + OTHER)
def test_products_and_other_functions_are_no_such_name(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
