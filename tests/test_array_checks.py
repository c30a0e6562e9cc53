"""The annotation checker of the suite: it bites on shapes and dtypes, and on nothing else."""

import numpy as np
import pytest
from jaxtyping import Float, jaxtyped

from tests.support.array_checks import annotated_modules, check_arrays, names_an_array


@jaxtyped(typechecker=check_arrays)
def row_sum(x_BT: Float[np.ndarray, "B T"], name: str = "x") -> Float[np.ndarray, "B"]:
    return x_BT.sum(-1) if name != "broken" else x_BT.sum()


def test_right_shapes_pass_and_other_annotations_are_left_alone():
    assert row_sum(np.ones((2, 3))).tolist() == [3.0, 3.0]
    assert row_sum(np.ones((2, 3)), name=5).shape == (2,)


@pytest.mark.parametrize(
    "arguments",
    [(np.ones(3),), (np.ones((2, 3), np.int32),), (np.ones((2, 3)), "broken")],
    ids=["rank", "dtype", "returned-shape"],
)
def test_wrong_arrays_are_refused(arguments):
    with pytest.raises(TypeError, match="Type-check error"):
        row_sum(*arguments)


def test_strings_and_unions_are_recognised():
    assert names_an_array('Float[np.ndarray, "P R"]')
    assert names_an_array(Float[np.ndarray, "P R"] | None)
    assert not names_an_array("dict[str, int]")
    assert not names_an_array(int)


def test_modules_that_annotate_arrays_are_under_the_hook_and_no_others():
    from polaris_jax.models.attention import shards
    from polaris_jax.models.heads import logprobs

    assert "polaris_jax.models.attention.shards" in annotated_modules()
    assert "polaris_jax.models.heads.logprobs" not in annotated_modules()
    assert hasattr(shards.row_order, "__wrapped__")
    assert not hasattr(logprobs.token_logprobs, "__wrapped__")
