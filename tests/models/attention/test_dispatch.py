"""The one call: shapes it refuses, and what `auto` means in it."""

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.models.attention import ContextShard, attend, dispatch
from tests.support.models.attention.cases import case


@pytest.mark.parametrize(
    ("length", "expected"), [(255, "reference"), (256, "chunked"), (53_248, "chunked")]
)
def test_auto_takes_what_runs_everywhere(length, expected, monkeypatch):
    called = []
    for name in dispatch.BACK_ENDS:
        monkeypatch.setitem(dispatch.BACK_ENDS, name, lambda q, *_, name=name: called.append(name))
    rows = jnp.zeros((1, length, 1, 1))
    attend(rows, rows, rows, None)
    assert called == [expected]


def test_an_unknown_back_end_is_named():
    c = case(1, 8, segments=1, padding=0)
    with pytest.raises(ValueError, match=r"attention='flash': expected auto or one of reference"):
        attend(*c[:4], backend="flash")


def test_shapes_that_do_not_fit_are_named():
    c = case(1, 8, segments=1, padding=0)
    with pytest.raises(ValueError, match="num_heads=4: must be a multiple of num_kv_heads=3"):
        attend(c.q_BTNH, jnp.zeros((1, 8, 3, 16)), jnp.zeros((1, 8, 3, 16)), None)
    with pytest.raises(ValueError, match="8 positions of each of 2 shards, k_BSKH 8"):
        attend(*c[:4], context=ContextShard("rows", 2))
    assert np.isfinite(attend(*c[:4])).all()
