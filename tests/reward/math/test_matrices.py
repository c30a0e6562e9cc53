"""Small matrices worked out before they are compared, against numpy."""

import random

import numpy as np
import pytest

from polaris_jax.reward import answers_match


def latex(matrix: np.ndarray, kind: str = "pmatrix") -> str:
    rows = r" \\ ".join(" & ".join(str(int(x)) for x in row) for row in matrix)
    return rf"\begin{{{kind}}} {rows} \end{{{kind}}}"


def matrices(seed: int, side: int) -> list[np.ndarray]:
    source = random.Random(seed)
    return [
        np.array([[source.randint(-9, 9) for _ in range(side)] for _ in range(side)])
        for _ in range(2)
    ]


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_against_numpy(side: int) -> None:
    for seed in range(5):
        a, b = matrices(seed, side)
        column = a[:, :1]
        determinant = round(np.linalg.det(a))
        for text, value in {
            latex(a) + "+" + latex(b): a + b,
            latex(a) + "-" + latex(b): a - b,
            latex(a) + latex(b): a @ b,
            latex(a) + latex(column): a @ column,
            f"3{latex(a)}": 3 * a,
            f"-{latex(a)}": -a,
            f"{latex(a)}^T": a.T,
        }.items():
            assert answers_match(text, latex(value)), text
            assert not answers_match(text, latex(value + np.eye(*value.shape))), text
        assert answers_match(latex(a, "vmatrix"), str(determinant))
        assert not answers_match(latex(a, "vmatrix"), str(determinant + 1))


def test_shapes_that_do_not_fit_are_equal_to_nothing() -> None:
    a, b = matrices(0, 2)[0], matrices(0, 3)[0]
    for text in (latex(a) + latex(b), latex(a) + "+" + latex(b), latex(a) + "+1"):
        assert not answers_match(text, latex(a))
        assert answers_match(text, text)
