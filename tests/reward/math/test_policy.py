"""Every decision of `policy`: what strict refuses, default takes, and lenient adds."""

import dataclasses

import pytest

from polaris_jax.reward import answers_match
from polaris_jax.reward.math.policy import DEFAULT, LENIENT, STRICT, Policy

# answer, gold, whether (strict, default, lenient) accept it
DECISIONS = {
    "a unit left out": ("5", r"5\text{ cm}", (False, True, True)),
    "a unit added": (r"5\text{ cm}", "5", (False, True, True)),
    "a degree sign left out": ("90", r"90^\circ", (False, True, True)),
    "a currency left out": ("5", r"\$5", (False, True, True)),
    "the same unit": ("5 cm", r"5\text{ centimeters}", (True, True, True)),
    "another unit": ("5 kg", "5 cm", (False, False, False)),
    "a converted unit": ("12 cm", r"0.12\text{ m}", (False, False, True)),
    "a converted area": (r"1\text{ m}^2", r"10000\text{ cm}^2", (False, False, True)),
    "a unit that does not convert": (r"1\text{ m}", "10 cm", (False, False, False)),
    "a plain number for percent": ("5", r"5\%", (False, True, True)),
    "percent in words": ("5 percent", r"5\%", (True, True, True)),
    "percent for a ratio": (r"5\%", "0.05", (False, True, True)),
    "percent for the plain number": (r"5\%", "5", (False, False, False)),
    "a ratio for percent": ("0.05", r"5\%", (False, False, True)),
    "more digits than gold": ("3.14159", "3.14", (False, True, True)),
    "more digits than a gold of two": ("3.14", "3.1", (False, False, True)),
    "fewer digits than gold": ("3.1", "3.14", (False, False, False)),
    "the exact value of a decimal gold": (r"\pi", "3.14", (False, True, True)),
    "a float for a fraction": ("0.6666666666666666", r"\frac23", (False, True, True)),
    "four digits for a fraction": ("0.6667", r"\frac23", (False, False, True)),
    "two digits for a fraction": ("0.67", r"\frac23", (False, False, False)),
    "an unreduced fraction": (r"\frac{2}{4}", r"\frac12", (True, True, True)),
    "an exact decimal": ("0.5", r"\frac12", (True, True, True)),
    "a name added": ("x=5", "5", (False, True, True)),
    "a name left out": ("5", "x=5", (False, True, True)),
    "the same name": ("x = 5", "x=5", (True, True, True)),
    "another name": ("y=5", "x=5", (False, False, False)),
    "another variable": ("2y", "2x", (False, False, False)),
    "braces left out": ("1,2", r"\{1,2\}", (False, True, True)),
    "a row for a column": ("(1,2)", r"\begin{pmatrix}1\\2\end{pmatrix}", (False, True, True)),
    "another order in a list": ("2,1", "1,2", (True, True, True)),
    "another order in a tuple": ("(2,1)", "(1,2)", (False, False, False)),
    "another order in a set": (r"\{2,1\}", r"\{1,2\}", (True, True, True)),
    "a small choice letter": ("b", "(B)", (False, True, True)),
    "yes for true": ("yes", "true", (False, False, True)),
    "a base written otherwise": ("204_{5}", "204_5", (True, True, True)),
    "no base": ("204", "204_5", (False, False, False)),
    "the same number in base ten": ("54", "204_5", (False, False, False)),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_decisions(case: str) -> None:
    answer, gold, accepted = DECISIONS[case]
    for preset, expected in zip(("strict", "default", "lenient"), accepted, strict=True):
        assert answers_match(answer, gold, preset=preset) is expected, preset


def test_every_field_of_a_policy_is_decided_by_some_case() -> None:
    """Each field, set alone to lenient's or default's value, changes what strict says somewhere."""
    from polaris_jax.reward.math import equivalence

    for field in dataclasses.fields(Policy)[1:]:
        values = {getattr(policy, field.name) for policy in (DEFAULT, LENIENT)}
        changed = False
        for value in values:
            policy = dataclasses.replace(STRICT, **{field.name: value})
            for answer, gold, accepted in DECISIONS.values():
                changed |= equivalence._compare(answer, gold, policy).equal != accepted[0]
        assert changed, field.name


def test_another_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="preset='loose'"):
        answers_match("5", "5", preset="loose")
