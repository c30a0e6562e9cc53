"""What kind of answer a text is, and which golds no math answer can equal."""

import pytest

from polaris_jax.records import Problem
from polaris_jax.reward.golds import answer_kind, foreign_golds, gold_kinds

KINDS = {
    "number": [
        *(
            "5",
            "-3.5",
            r"\frac{1}{2}",
            r"12\%",
            "1,234",
            "(1,2)",
            r"\{1,2\}",
            "[0,1)",
            "$42",
            "x=5",
        ),
        *(r"2\sqrt{3}", r"5\text{ cm}", r"\pi", "10:30", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
    "formula": ["x^2+1", "n(n+1)/2", "y = 2x", r"x \in (0,1)", r"\sin x"],
    "choice": ["A", "(B)", r"\text{(C)}", r"\text{(C) }12", "D.", r"\textbf{E}"],
    "words": ["Paris", r"\text{even}", "the number is even", "New York City", "True"],
}
UNREADABLE = [
    "",
    "def f(x):\n    return x + 1",
    "assert f(1) == 2",
    '{"inputs": ["1 2"], "outputs": ["3"]}',
    '["assert add(1, 2) == 3"]',
    "#include <stdio.h>\nint main() { return 0; }",
    "Suppose that the sum is odd. Then one of the terms is odd, and by parity, which contradicts "
    "the first claim, the other is even. Hence the statement holds.",
    "1" * 7000,
]


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in KINDS.items() for t in texts])
def test_kinds_of_answers(kind, text):
    assert answer_kind(text) == kind


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: text[:12])
def test_code_proofs_and_empty_texts_are_no_answers(text):
    assert answer_kind(text) is None
    assert gold_kinds(text) == set()


def test_a_gold_is_readable_if_one_alternative_is():
    assert gold_kinds(["assert f(1) == 2", 4]) == {"number"}
    assert gold_kinds(2.5) == {"number"}
    assert gold_kinds([]) == set()


def problems_with(golds):
    return [Problem(f"p{i}", f"Question {i}?", gold) for i, gold in enumerate(golds)]


@pytest.mark.parametrize(
    "golds", [["1", "2"], ["1", "1", "2", "2"], ["a", "b", "a", "c", ["a", "b"], 7] * 5]
)
def test_foreign_golds_are_never_a_problems_own(golds):
    problems = problems_with(golds)
    found = foreign_golds(problems, seed=3)
    assert [p.id for p in found] == [p.id for p in problems]
    assert sorted(repr(p.answer) for p in found) == sorted(map(repr, golds))
    assert all(mine.answer != own.answer for mine, own in zip(found, problems, strict=True))
    assert found == foreign_golds(problems, seed=3)


@pytest.mark.parametrize("golds", [["1", "2", "1"], ["", "", ""]], ids=["answers", "none"])
def test_a_foreign_gold_brings_its_columns(golds):
    """A reward function may read nothing else, such as the tests of a program."""
    problems = [
        Problem(f"p{i}", "Q?", gold, extra={"tests": f"{gold}{i}"}) for i, gold in enumerate(golds)
    ]
    found = foreign_golds(problems, seed=0)
    assert sorted(p.extra["tests"] for p in found) == sorted(p.extra["tests"] for p in problems)
    assert all(p.extra["tests"].startswith(p.answer) for p in found)
    moved = [mine.extra != own.extra for mine, own in zip(found, problems, strict=True)]
    assert sum(moved) >= 2


def test_golds_of_a_majority_stay_where_they_must():
    found = foreign_golds(problems_with(["1", "1", "1", "2"]), seed=0)
    assert sum(p.answer == "1" for p in found) == 3
    assert [p.answer for p in found[3:]] == ["1"]
    assert foreign_golds([], seed=0) == []
