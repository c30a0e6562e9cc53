"""A choice written with its letter and its text, and what only looks like one."""

import pytest

from polaris_jax.reward import answers_match

EQUAL = [
    *(("C", text) for text in (r"\textbf{(C)}\ 12", "(C) 12", "C) 12", r"\text{(C) }12")),
    *(("B", rf"\textbf{{(B)}}{text}") for text in (r"\ 2x", r"\ \$12", r"\ -3", r"\frac12")),
    ("B", r"\textbf{(B)}\text{ Tuesday}"),
    ("Tuesday", r"\textbf{(B)}\text{ Tuesday}"),
    *(("C", text) for text in (r"(C)\ 12", r"(C)~12", r"$(C)\quad \frac12$")),
    ("12", r"\textbf{(C)}\ 12"),
    ("0.5", r"\textbf{(C) }\frac{1}{2}"),
]
DIFFERENT = [
    *(("A", f"(A){text}") for text in ("x", "-1", "+1", "(B)", "^2", "12x", " 12, (B) 13")),
    *(("A", rf"\textbf{{(A)}}\text{{ {text}}}") for text in ("is wrong", "not", "or (B)")),
    ("A", r"\text{(A)}\text{ is ruled out}"),
    ("A", r"\text{A) wrong}"),
    *(("A", rf"\text{{(A) {words}}}") for words in ("unlikely", "crossed out", "struck")),
    *(("A", f"(A){text}") for text in ("2", "12", "3+2", "3!", "2^3", r"\frac12", " 3+2", " 3!")),
    ("A", "(A) 12 or 13"),
    ("D", "(C) 12"),
    ("12", "(C) 12"),  # a product, where the letter is not set as text
    ("13", r"\textbf{(C)}\ 12"),
    ("(C) 13", "(C) 12"),
    ("(D) 12", "(C) 12"),
    (r"\textbf{(D)}\ 12", r"\textbf{(C)}\ 12"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_a_choice_with_its_text_is_its_letter(answer: str, gold: str) -> None:
    assert answers_match(answer, gold)
    assert answers_match(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_products_denials_and_other_choices_are_not(answer: str, gold: str) -> None:
    assert not answers_match(answer, gold)
    assert not answers_match(gold, answer)
