"""Which back end a run takes, what is refused before anything compiles, and the one call."""

import dataclasses
import re
from typing import get_args, get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config.sections import ModelSection
from polaris_jax.models.attention import (
    Attention,
    ContextShard,
    attend,
    backends,
    packs_rows,
    resolve_attention,
)
from tests.support.models.attention.cases import case

QWEN3_4B = {
    "length": 53_248,
    "head_dim": 128,
    "num_heads": 32,
    "num_kv_heads": 8,
    "context_shards": 1,
    "dtype": "bfloat16",
    "one_segment_a_row": False,
}


def resolve(backend, platform, **changes):
    return resolve_attention(backend, platform=platform, **(QWEN3_4B | changes))


def test_the_config_offers_the_same_choices():
    assert get_args(get_type_hints(ModelSection)["attention"]) == get_args(Attention)
    assert set(get_args(Attention)) == {"auto", *backends.BACK_ENDS}


def test_only_a_back_end_without_segment_ids_keeps_rows_unpacked():
    assert {name for name in get_args(Attention) if not packs_rows(name)} == {"cudnn"}


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("cpu", {"length": 200}, "reference"),
        ("cpu", {"length": 512}, "chunked"),
        ("cpu", {}, "chunked"),
        ("cpu", {"context_shards": 4}, "chunked"),
        ("tpu", {}, "splash"),
        ("tpu", {"context_shards": 8}, "splash"),
        ("tpu", {"head_dim": 64}, "splash"),
        ("tpu", {"head_dim": 80}, "chunked"),
        ("gpu", {}, "triton"),
        ("cuda", {}, "triton"),
        ("gpu", {"one_segment_a_row": True}, "cudnn"),
        ("gpu", {"one_segment_a_row": True, "dtype": "float32"}, "chunked"),
        ("gpu", {"context_shards": 2}, "chunked"),
        ("gpu", {"head_dim": 256}, "chunked"),
    ],
)
def test_auto(platform, changes, expected):
    assert resolve("auto", platform, **changes) == expected


@pytest.mark.parametrize(
    ("platform", "changes", "said"),
    [
        ("cpu", {"context_shards": 4}, ""),
        ("gpu", {}, ""),
        ("gpu", {"context_shards": 2}, "auto: chunked, .* gpu's own .*triton: mesh.context=2"),
        ("tpu", {"head_dim": 80}, "auto: chunked, .* tpu's own .*splash: .*80"),
    ],
)
def test_auto_says_why_it_takes_none_of_the_platforms_own(platform, changes, said):
    lines = []
    resolve("auto", platform, say=lines.append, **changes)
    assert len(lines) == bool(said)
    assert re.search(said, "".join(lines))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_pure_jax_runs_everywhere(backend, platform):
    assert resolve(backend, platform, context_shards=2, dtype="float32") == backend


@pytest.mark.parametrize(
    ("backend", "platform", "changes", "words"),
    [
        ("splash", "cpu", {}, "model.attention=splash: it runs on a tpu, and this is a cpu; set"),
        ("splash", "cuda", {}, "runs on a tpu, and this is a gpu"),
        ("triton", "tpu", {}, "runs on a gpu, and this is a tpu"),
        ("cudnn", "cpu", {"one_segment_a_row": True}, "runs on a gpu, and this is a cpu"),
        ("splash", "tpu", {"head_dim": 80}, "head_dim=80: .*multiples of 64; set chunked"),
        (
            "auto",
            "tpu",
            {"context_shards": 32},
            "attention=auto, resolved to splash: batch.row_len",
        ),
        (
            "splash",
            "tpu",
            {"context_shards": 32},
            "row_len=53248: each of 2 x mesh.context .* multiple of 8192, such as 57344",
        ),
        ("chunked", "cpu", {"context_shards": 3}, "multiple of 2 x mesh.context = 6"),
        ("triton", "gpu", {"context_shards": 2}, "mesh.context=2: .*set chunked"),
        ("cudnn", "gpu", {"context_shards": 2, "one_segment_a_row": True}, "mesh.context=2: "),
        ("triton", "gpu", {"dtype": "float32"}, "model.dtype=float32: .*bfloat16"),
        ("triton", "gpu", {"head_dim": 256}, "head_dim=256: .*at most 128"),
        ("cudnn", "gpu", {}, "no segment ids, and rows are packed; set triton or chunked"),
        ("cudnn", "gpu", {"one_segment_a_row": True, "dtype": "float32"}, "model.dtype=float32"),
        ("cudnn", "gpu", {"one_segment_a_row": True, "head_dim": 100}, "multiples of 8 up to 128"),
        ("reference", "cpu", {"num_kv_heads": 5}, "32 query heads must be a multiple of 5"),
        ("flash", "cpu", {}, "model.attention='flash': expected one of auto, reference"),
    ],
)
def test_what_cannot_run_is_refused_with_the_remedy(backend, platform, changes, words):
    with pytest.raises(ValueError, match=words):
        resolve(backend, platform, **changes)


@pytest.mark.parametrize(
    ("length", "expected"), [(255, "reference"), (256, "chunked"), (53_248, "chunked")]
)
def test_auto_takes_what_runs_everywhere(length, expected, monkeypatch):
    called = []
    spies = {
        name: dataclasses.replace(row, attend=lambda q, *_, name=name: called.append(name))
        for name, row in backends.BACK_ENDS.items()
    }
    monkeypatch.setattr(backends, "BACK_ENDS", spies)
    rows = jnp.zeros((1, length, 1, 1))
    attend(rows, rows, rows, None)
    assert called == [expected]


def test_an_unknown_back_end_is_named():
    c = case(1, 8, segments=1, padding=0)
    with pytest.raises(ValueError, match=r"attention='flash': expected auto or one of splash"):
        attend(*c[:4], backend="flash")


def test_shapes_that_do_not_fit_are_named():
    c = case(1, 8, segments=1, padding=0)
    with pytest.raises(ValueError, match="num_heads=4: must be a multiple of num_kv_heads=3"):
        attend(c.q_BTNH, jnp.zeros((1, 8, 3, 16)), jnp.zeros((1, 8, 3, 16)), None)
    with pytest.raises(ValueError, match="8 positions of each of 2 shards, k_BSKH 8"):
        attend(*c[:4], context=ContextShard("rows", 2))
    assert np.isfinite(attend(*c[:4])).all()
