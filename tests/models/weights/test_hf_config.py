"""config.json in both spellings, both ways; what is not supported is refused by name."""

import dataclasses
import json

import pytest
from transformers import AutoConfig

from polaris_jax.models import ModelConfig, RopeScaling, load_config
from polaris_jax.models.layers import yarn_attention_factor
from polaris_jax.models.presets import PRESETS
from polaris_jax.models.weights.hf_config import (
    config_json,
    parse_config,
    parse_rope_scaling,
    rope_json,
)
from tests.tolerances import CLOSED_FORM_ATOL

QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
R1_DISTILL_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
OLMO2_7B = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 100352,
}
BASES = [QWEN3_4B, R1_DISTILL_7B, LLAMA, OLMO2_7B]
YARN = {"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def in_spelling_5(fields: dict) -> dict:
    """The same config.json as transformers 5 writes it."""
    fields = dict(fields)
    rope = dict(fields.pop("rope_scaling", None) or {"rope_type": "default"})
    rope["rope_type"] = rope.pop("type", rope.get("rope_type"))
    fields["rope_parameters"] = rope | {"rope_theta": fields.pop("rope_theta")}
    fields["dtype"] = fields.pop("torch_dtype", "float32")
    return fields


def test_known_checkpoints_give_their_presets():
    assert parse_config(QWEN3_4B) == PRESETS["qwen3-4b"]
    assert parse_config(R1_DISTILL_7B) == PRESETS["r1-distill-qwen-7b"]
    assert parse_config(OLMO2_7B) == PRESETS["olmo-2-1124-7b"]
    llama = parse_config(LLAMA)
    assert (llama.qkv_bias, llama.qk_norm, llama.head_dim) == (False, False, 64)


@pytest.mark.parametrize("base", BASES, ids=[base["model_type"] for base in BASES])
@pytest.mark.parametrize(
    "scaling",
    [
        None,
        YARN,
        YARN | {"attention_factor": 1.0, "attn_factor": 0.961},
        {"type": "linear", "factor": 2.0},
        LLAMA3,
    ],
    ids=["none", "yarn", "yarn_factor", "linear", "llama3"],
)
def test_both_spellings_mean_the_same(base, scaling):
    four = base | {"rope_scaling": scaling}
    config = parse_config(four)
    assert parse_config(in_spelling_5(four)) == config
    assert (config.rope_scaling is None) == (scaling is None)
    # What we write reads back the same, with either spelling taken out.
    written = config_json(config, dtype="bfloat16")
    only_4 = {k: v for k, v in written.items() if k not in ("rope_parameters", "dtype")}
    only_5 = {
        k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    for fields in (written, only_4, only_5):
        again = parse_config(json.loads(json.dumps(fields)))
        assert with_explicit_factor(again) == with_explicit_factor(config)


def with_explicit_factor(config: ModelConfig) -> ModelConfig:
    """The config with what an export makes explicit, and its YaRN length, made so."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return config
    scaling = dataclasses.replace(scaling, attention_factor=yarn_attention_factor(scaling))
    return dataclasses.replace(
        config,
        rope_scaling=scaling,
        max_position_embeddings=round(scaling.factor * scaling.original_max_position_embeddings),
    )


@pytest.mark.parametrize("scaling", [None, YARN, LLAMA3], ids=["none", "yarn", "llama3"])
@pytest.mark.parametrize("base", BASES, ids=[base["model_type"] for base in BASES])
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(base, scaling, tmp_path):
    config = parse_config(base | {"rope_scaling": scaling})
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, dtype="bfloat16")))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.rope_parameters["rope_type"] == (scaling or {}).get("rope_type", "default")
    theirs.save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again") == load_config(tmp_path)


def test_export_names_the_attention_factor_for_both_readers():
    scaling = RopeScaling("yarn", 1.5, 32_768, attention_factor=1.0)
    written = rope_json(scaling)
    assert written["attention_factor"] == 1.0  # transformers: as it stands
    assert written["attn_factor"] == pytest.approx(0.9610, abs=5e-5)
    # vLLM: attn_factor x (0.1 ln factor + 1)
    in_vllm = written["attn_factor"] * yarn_attention_factor(RopeScaling("yarn", 1.5, 32_768))
    assert in_vllm == pytest.approx(1.0, abs=CLOSED_FORM_ATOL)
    # Left out, it is transformers' default, written out; vLLM multiplies nothing.
    usual = rope_json(RopeScaling("yarn", 1.5, 32_768))
    assert usual["attention_factor"] == pytest.approx(1.0405, abs=5e-5)
    assert usual["attn_factor"] == 1.0


def test_yarn_export_gives_transformers_4_its_factor():
    # 4.51 takes max_position_embeddings / original for the factor, not the one that is written.
    config = parse_config(QWEN3_4B | {"rope_scaling": YARN})
    assert config.max_position_embeddings == 40_960
    written = config_json(config, dtype="float32")
    assert written["max_position_embeddings"] == 49_152


def test_rope_details_follow_transformers():
    def parse(**rope):
        return parse_rope_scaling(rope, max_position_embeddings=100)

    assert parse() is None
    assert parse(rope_type="default", rope_theta=5.0) is None
    assert parse(type="yarn", factor=2.0).original_max_position_embeddings == 100
    assert parse(rope_type="yarn", factor=None, original_max_position_embeddings=50).factor == 2.0
    deepseek = parse(rope_type="yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0)
    assert deepseek.attention_factor == 1.0
    # vLLM's name is not transformers': it has no say here.
    assert parse(rope_type="yarn", factor=2.0, attn_factor=0.5).attention_factor is None
    assert not parse(rope_type="yarn", factor=2.0, truncate=False).truncate
    with pytest.warns(UserWarning, match="stretch"):
        parse(rope_type="linear", factor=2.0, stretch=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mixtral"}, "model_type='mixtral'.*qwen2, qwen3, llama"),
        ({"model_type": None}, "model_type=None"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"hidden_size": None}, "hidden_size=None"),
        ({"num_key_value_heads": "8"}, "num_key_value_heads='8'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "mrope"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic.*longest row"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "yarn"} | {"factor": "2"}}, "factor='2'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5, "rope_scaling": YARN}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn': expected an object"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": -1}}, "embeddings=-1"),
        ({"rope_theta": "1e6"}, "rope_theta='1e6': needed, a number"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None: needed, a number"),
        ({"quantization_config": "awq"}, "quant_method='\\?'"),
        ({"rope_parameters": {"full_attention": None}}, "rope_parameters.full_attention=None"),
        ({"rope_scaling": {"full_attention": "yarn"}}, "rope_scaling.full_attention='yarn'"),
        ({"rope_scaling": YARN | {"attention_factor": "auto"}}, "json: attention_factor='auto'"),
        ({"rope_scaling": YARN | {"beta_fast": "32"}}, "json: beta_fast='32'"),
        ({"rope_scaling": YARN | {"mscale": "1", "mscale_all_dim": 1}}, "json: mscale='1'"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "json: factor=0.5: yarn needs"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "json: factor=0: linear needs"),
        ({"rope_scaling": YARN | {"factor": True}}, "json: factor=True"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": "4"}}, "embeddings='4'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"num_key_value_heads": False}, "num_key_value_heads=False"),
    ],
)
def test_what_is_not_supported_is_named(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_config(QWEN3_4B | changes)
    assert "config.json: " in str(error.value)
    assert "\n" not in str(error.value)


def test_an_original_length_beside_the_dictionary_counts():
    beside = {"original_max_position_embeddings": 8192}
    fields = QWEN3_4B | beside | {"rope_scaling": {"rope_type": "yarn", "factor": None}}
    assert parse_config(fields).rope_scaling == RopeScaling("yarn", 40_960 / 8192, 8192)
    # It goes before one within; a layer type's own dictionary goes before it.
    within = YARN | {"original_max_position_embeddings": 16384}
    fields = QWEN3_4B | beside | {"rope_scaling": within}
    assert parse_config(fields).rope_scaling == RopeScaling("yarn", 1.5, 8192)
    fields = QWEN3_4B | beside | {"rope_parameters": {"full_attention": within}}
    assert parse_config(fields).rope_scaling == RopeScaling("yarn", 1.5, 16384)
    fields = QWEN3_4B | {"original_max_position_embeddings": None, "rope_scaling": YARN}
    assert parse_config(fields) == parse_config(QWEN3_4B | {"rope_scaling": YARN})


def test_sliding_window_is_judged_by_layer_types_where_they_are():
    fields = QWEN3_4B | {"use_sliding_window": True, "layer_types": ["full_attention"] * 36}
    assert parse_config(fields) == PRESETS["qwen3-4b"]


@pytest.mark.parametrize("base", BASES, ids=[base["model_type"] for base in BASES])
def test_null_kv_heads_are_as_many_as_query_heads(base):
    config = parse_config(base | {"num_key_value_heads": None})
    assert config.num_kv_heads == config.num_heads == base["num_attention_heads"]


@pytest.mark.parametrize(
    ("fields", "slides"),
    [
        ({"sliding_window": None, "max_window_layers": 0}, False),
        ({"sliding_window": 4096, "max_window_layers": 36}, False),
        ({"sliding_window": 4096, "max_window_layers": 35}, True),
        ({"sliding_window": 4096, "max_window_layers": 0}, True),
    ],
)
def test_a_window_over_no_layer_is_full_attention(fields, slides, tmp_path):
    fields = QWEN3_4B | {"use_sliding_window": True} | fields
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert ("sliding_attention" in AutoConfig.from_pretrained(tmp_path).layer_types) == slides
    if slides:
        with pytest.raises(ValueError, match="use_sliding_window=true"):
            load_config(tmp_path)
    else:
        assert load_config(tmp_path) == PRESETS["qwen3-4b"]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has adapter_config\.json, .* merge it into its base"):
        load_config(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        load_config(tmp_path)
