"""Small GGUF files written the way llama.cpp's converter writes them, from HF-named tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, dequantize, quantize

from tests.fixtures.parity_cases import Architecture

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


_NAMES_AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, *, norms_after: bool = False) -> str:
    """Hugging Face's tensor name -> llama.cpp's; `norms_after` as in OLMo 2."""
    stem, kind = name.rsplit(".", 1)
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    names = _NAMES | _NAMES_AFTER if norms_after else _NAMES
    return f"blk.{layer}.{names[part]}.{kind}"


def permute(value: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute, with its sizes."""
    return (
        value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        .swapaxes(1, 2)
        .reshape(value.shape)
    )


def random_blocks(
    rng: np.random.Generator, shape: tuple[int, int], kind: GGMLQuantizationType
) -> np.ndarray:
    """Rows of random bytes that are blocks of `kind`, uint8 [rows, bytes]; all stand for numbers.

    The gguf library quantises to few kinds and dequantises many: to read them takes no more.
    """
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block_size, block_bytes), np.uint8)
    while True:  # a scale of random bits may be no number: those blocks are drawn again
        with np.errstate(all="ignore"):
            bad = ~np.isfinite(dequantize(blocks, kind)).all(axis=1)
        if not bad.any():
            return blocks.reshape(shape[0], -1)
        blocks[bad] = rng.integers(0, 256, (bad.sum(), block_bytes), np.uint8)


def write_gguf(
    path: Path,
    arch: str,
    a: Architecture,
    values: dict[str, np.ndarray],
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    tokenizer: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    names_kv_heads: bool = True,
    positions: int = 32,
) -> Path:
    """A GGUF file; matrices are quantised to `kind`, vectors stay float32.

    Args:
        path: of the file.
        arch: general.architecture; Q and K are permuted for "llama".
        a: sizes.
        values: by Hugging Face's names; a matrix of uint8 holds the rows' blocks of `kind` as is.
        kind: of the matrices.
        tokenizer: tokens, merges, pre, types, ids and template; None leaves it out.
        extra: more metadata by full key; str, int, float or a list.
        names_kv_heads: False leaves their number out, as where the config.json does.
        positions: the context length.
    """
    out = GGUFWriter(path, arch)
    out.add_context_length(positions)
    out.add_embedding_length(a.hidden_size)
    out.add_block_count(a.num_layers)
    out.add_feed_forward_length(a.intermediate_size)
    out.add_head_count(a.num_heads)
    if names_kv_heads:
        out.add_head_count_kv(a.num_kv_heads)
    out.add_key_length(a.head_dim)
    out.add_rope_freq_base(a.rope_theta)
    out.add_layer_norm_rms_eps(1e-6)
    for key, value in (extra or {}).items():
        kinds = {str: out.add_string, int: out.add_uint32, float: out.add_float32}
        (kinds | {list: out.add_array})[type(value)](key, value)
    if tokenizer is not None:
        out.add_tokenizer_model(tokenizer.get("model", "gpt2"))
        out.add_tokenizer_pre(tokenizer["pre"])
        out.add_token_list(tokenizer["tokens"])
        out.add_token_types(tokenizer["types"])
        out.add_token_merges(tokenizer["merges"])
        for name in ("bos", "eos", "pad"):
            if name in tokenizer:
                getattr(out, f"add_{name}_token_id")(tokenizer[name])
        if "add_bos" in tokenizer:
            out.add_add_bos_token(tokenizer["add_bos"])
        if "template" in tokenizer:
            out.add_chat_template(tokenizer["template"])
    for name, value in values.items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            value = permute(value, a.num_heads if "q_proj" in name else a.num_kv_heads)
        stored = kind if value.ndim == 2 else GGMLQuantizationType.F32
        data = value if value.dtype == np.uint8 else quantize(value, stored)
        out.add_tensor(gguf_name(name, norms_after=a.norms_after), data, raw_dtype=stored)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
