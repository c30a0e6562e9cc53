"""What `generate` streams is the whole completion, also where it ends amid a character."""

import types

import jax
import pytest

from polaris_jax import models, rollout
from polaris_jax.commands import generate as module
from polaris_jax.commands.run import compute_dtype
from polaris_jax.config import WarmstartSection
from polaris_jax.demo.warmstart import warmstart_model_config
from polaris_jax.models import Decoder, RopeScaling
from polaris_jax.records import Response

MODEL = Decoder.init(warmstart_model_config(WarmstartSection(), vocab_size=256), jax.random.key(0))


class Bytes:
    """A tokenizer whose ids are UTF-8 bytes."""

    chat_template = None
    eos_token_id = 0

    def encode(self, text, **_):
        return list(text.encode())

    def decode(self, ids, **_):
        return bytes(ids).decode(errors="replace")

    def get_vocab(self):
        return {}


def run(monkeypatch, chunks, model=MODEL, **changes):
    """(streamed text, completion, the model that sampled)."""
    seen = types.SimpleNamespace(model=None, streamed="")

    class Told:
        """A sampler that gives `chunks`, one a decode call."""

        def __init__(self, model, _):
            seen.model = model

        def generate(self, prompts, params, *, on_tokens):
            for chunk in chunks:
                on_tokens(0, 0, chunk)
            ids = tuple(i for chunk in chunks for i in chunk)
            return [[Response(ids, (0.0,) * len(ids), "length")]]

        def stream(self, prompts, params):
            for sample in reversed(range(params.n)):
                ids = tuple(chunks[sample])
                yield 0, sample, Response(ids, (0.0,) * len(ids), "length")

    def on_end(sample, text):
        seen.streamed += f"{sample}:{text} "

    def on_text(_, text):
        seen.streamed += text

    monkeypatch.setattr(rollout, "Sampler", Told)
    monkeypatch.setattr(models, "load_with_tokenizer", lambda *_, **__: (model, Bytes()))
    settings = {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    settings |= {"max_tokens": 9, "seed": 0}
    settings |= {"suffix": "", "raw": True, "dtype": "float32"}
    settings |= {"yarn_factor": 1.0, "yarn_original_tokens": 0}
    told = {"on_text": on_text, "on_end": on_end}
    found = module.generate("m", "x", **(settings | changes), **told)
    return seen.streamed, " ".join(text for _, text in found), seen.model


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(["é".encode(), b"no"], id="whole characters"),
        pytest.param([b"a\xc3", b"\xa9b"], id="a character in two calls"),
        pytest.param([b"so", b"me\xc3"], id="cut amid a character"),
    ],
)
def test_all_text_is_streamed(chunks, monkeypatch):
    streamed, text, _ = run(monkeypatch, chunks)
    assert streamed == text


def test_several_are_told_as_they_end_and_come_back_in_order(monkeypatch):
    streamed, texts, _ = run(monkeypatch, [b"one", b"two", b"three"], n=3)
    assert streamed == "2:three 1:two 0:one "
    assert texts == "one two three"


@pytest.mark.parametrize(
    ("own", "original"),
    [
        pytest.param(None, MODEL.config.max_position_embeddings, id="plain"),
        pytest.param(RopeScaling("yarn", 4.0, 64), 64, id="stretched already"),
    ],
)
def test_yarn_stretches_the_length_that_was_trained(own, original, monkeypatch):
    model = MODEL.with_rope_scaling(own)
    scaling = run(monkeypatch, [b"a"], model, yarn_factor=2.0)[2].config.rope_scaling
    assert scaling == RopeScaling("yarn", 2.0, original, attention_factor=1.0)


@pytest.mark.parametrize(
    ("platform", "asked", "taken"),
    [
        ("cpu", "auto", "float32"),
        ("gpu", "auto", "bfloat16"),
        ("tpu", "auto", "bfloat16"),
        ("cpu", "bfloat16", "bfloat16"),
        ("gpu", "float32", "float32"),
    ],
)
def test_accelerators_compute_in_bfloat16_unless_told(platform, asked, taken, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(platform=platform)])
    assert compute_dtype(asked) == taken
