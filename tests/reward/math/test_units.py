"""Percent signs and units behind values, and within expressions."""

from __future__ import annotations

import pytest

from polaris_jax.reward import answers_match

# (answer, gold, equal)
PERCENT = [
    (r"2+3\%", "2.03", True),
    (r"2+3\%", "0.05", False),
    (r"2+3\%", r"5\%", False),
    (r"50\%\cdot50\%", "0.25", True),
    (r"50\%\cdot50\%", r"25\%", True),
    (r"50\%\cdot50\%", "25", False),
    (r"1-95\%", "0.05", True),
    (r"1-95\%", r"5\%", True),
    (r"1-95\%", "-94", False),
    (r"100\%-95\%", r"5\%", True),
    (r"100\%-95\%", "0.05", True),
    (r"5\%+3\%", r"8\%", True),
    ("8", r"5\%+3\%", True),
    (r"5\%/2\%", "2.5", True),
    (r"5\%/2\%", r"2.5\%", False),
    (r"\frac{5\%}{2}", r"2.5\%", True),
    (r"20\cdot50\%", "10", True),
    (r"20\cdot50\%", "1000", False),
    (r"(5\%)^2", "0.0025", True),
    (r"1000(1+5\%)^3", "1157.625", True),
    (r"x(1+5\%)", "1.05x", True),
    (r"2x=5\%", "2x=0.05", True),
    (r"2x=5\%", "2x=5", False),
    (r"100/3\%", r"\frac13", True),  # a third, in percent
    (r"\frac{100}{3\%}", r"\frac13", False),
    (r"\frac{100}{3\%}", r"\frac{10000}{3}", True),
    (r"33\frac13\%", r"\frac13", True),
    (r"2\pi\%", r"\frac{\pi}{50}", True),
    (r"\pm5\%", r"\pm0.05", True),
    (r"5\%, 10\%", "0.05, 0.1", True),
    (r"5\%, 10\%", "5, 10", False),
]


@pytest.mark.parametrize(("answer", "gold", "equal"), PERCENT)
def test_a_percent_sign_is_a_hundredth(answer: str, gold: str, equal: bool) -> None:
    assert answers_match(answer, gold) is equal


UNITS = [
    ("80", "80 km/h", True),
    ("80 km/h", "80", True),
    ("80km/hr", r"80\text{ km/h}", True),
    ("80 km/h", "80 m/s", False),
    ("80 km/h", "80 mph", False),
    ("9.8", "9.8 m/s^2", True),
    (r"9.8\,m/s^{2}", "9.8", True),
    ("9.8 m/s", "9.8 m/s^2", False),
    (r"3\times10^8 m/s", "300000000", True),
    (r"\frac43 g/cm^3", r"\frac43", True),
    ("x = 5 m/s", "5", True),
    (r"(2 m/s, 3 m/s)", "(2, 3)", True),
    ("12 sq cm", "12", True),
    ("12", "12 sq. cm", True),
    ("12 sq cm", r"12\text{ cm}^2", True),
    ("12 sq ft", "12 sq cm", False),
    ("12 m^2", "12", True),
    ("12 m^2", r"12\text{ cm}^2", False),
    # Letters that may be unknowns stay such.
    ("12", "12 m^2", False),
    ("12m^2", "12", False),
    ("12 m^2", "12 n^2", False),
    ("12 m", "12", False),
    ("5m/s", "5", False),
    ("5 m/s", r"\frac{5m}{s}", True),
    ("3 g/l", "3", False),
    ("2 x/y", "2", False),
    ("2 x/y", r"\frac{2x}{y}", True),
    ("2 sqa", "2", False),
]


@pytest.mark.parametrize(("answer", "gold", "equal"), UNITS)
def test_plain_units_behind_a_number(answer: str, gold: str, equal: bool) -> None:
    assert answers_match(answer, gold) is equal
