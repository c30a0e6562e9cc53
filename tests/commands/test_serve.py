"""The sizes of a server's sampler: refused at its start if a request could not be served."""

from __future__ import annotations

import pytest

from polaris_jax.commands.serve import MOST_DEFAULT_LEN, sampler_sizes
from polaris_jax.config import ConfigError

FLAGS = {"slots": 4, "max_len": 100, "num_pages": 0, "page_size": 16, "decode_steps": 8}


def sizes(*, positions=1 << 20, shards=1, **flags):
    return sampler_sizes(FLAGS | flags, positions=positions, shards=shards)


@pytest.mark.parametrize(("shards", "pages"), [(1, 8), (2, 16)])
def test_pages_that_cannot_hold_the_longest_sequence_are_refused(shards, pages):
    assert sizes(num_pages=pages, shards=shards).num_pages == pages
    with pytest.raises(ConfigError, match=f"--num_pages={pages - 1}: .*--max_len=100.*{pages}, "):
        sizes(num_pages=pages - 1, shards=shards)
    assert sizes(num_pages=0, shards=shards).num_pages == 0


def test_a_sequence_is_as_long_as_the_model_allows():
    assert sizes(max_len=0).max_len == MOST_DEFAULT_LEN
    assert sizes(max_len=0, positions=512).max_len == 512
    with pytest.raises(ConfigError, match="--max_len=100: the model has 64 positions"):
        sizes(positions=64)
