"""GGUF files: weights dequantised tensor by tensor, configuration and tokenizer from the metadata.

The `gguf` library reads the format and dequantises; the `tokenizers` library builds the tokenizer.
transformers has both functions, but they need torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from polaris_jax.models.config import ModelConfig
from polaris_jax.models.family import PARAMS, Family, family_named
from polaris_jax.models.weights.hf_config import parse_rope_scaling
from polaris_jax.models.weights.safetensors import Index
from polaris_jax.system.foreign import DOWNLOAD, ForeignFileError, naming, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# `tokenizer.ggml.pre` names the rule by which a tokenizer splits text before BPE merges. The groups
# below say what each name means. The patterns are those of the checkpoints' own tokenizer.json.
_GPT2_PRE = ("gpt-2",)
_DIGITS_PRE = ("smollm", "starcoder")  # GPT-2's split, and every digit on its own
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERN_PRE = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": _LLAMA3_PATTERN,
    "dbrx": _LLAMA3_PATTERN,  # OLMo 2's
}
_SAME_PRE = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
_NFC_PRE = ("qwen2",)  # text is normalised to Unicode NFC first
_WHOLE_WORDS_PRE = ("llama-bpe",)  # a word that is a token is taken as it is, without merges
_ADDS_BOS_PRE = ("llama-bpe",)  # a prompt begins with the BOS token unless the metadata says no
# Values of gguf.TokenType.
_CONTROL, _USER_DEFINED = 3, 4


class GgufFile:
    """One open GGUF file. Tensors are memory-mapped and are read only on request."""

    def __init__(self, path: os.PathLike[str]) -> None:
        """Opens the file and reads its metadata.

        Raises:
            ValueError: the file is not a GGUF file or is damaged, or its architecture or its rotary
                scaling is not supported.
        """
        from gguf import GGUFReader

        from polaris_jax.models.weights.gguf_header import check_gguf_header

        self.path = path
        check_gguf_header(path)
        try:
            self._reader = GGUFReader(path)
        except (ValueError, LookupError, OverflowError) as error:
            raise ForeignFileError(
                f"{path}: not a whole GGUF file ({one_line(error)}); {DOWNLOAD}"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if (parts := self.get("split.count", 1)) and int(parts) > 1:
            raise ValueError(
                f"{path}: a part of {int(parts)}; join them with llama.cpp's `llama-gguf-split "
                "--merge` and name the whole file"
            )
        with naming(str(path)):
            self._arch = str(self.get("general.architecture"))
        self._family = family_named(self._arch, field=f"{path}: general.architecture")
        self._names = _hf_names(self._family, self._tensors)
        if "rope_freqs.weight" in self._tensors:
            raise ValueError(
                f"{path}: has rope_freqs.weight (Llama 3.1's rotary scaling as a table), which is "
                "not supported; take the safetensors checkpoint"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value by its full key, or `default`."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def _need(self, key: str) -> Any:
        value = self.get(f"{self._arch}.{key}")
        if value is None:
            raise ValueError(f"{self.path}: metadata {self._arch}.{key} is missing")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        """An integer of the metadata. If the file has one a layer, they must be equal."""
        value = self._need(key) if default is None else self.get(f"{self._arch}.{key}", default)
        values = set(value) if isinstance(value, list) else {value}
        if len(values) != 1:
            raise ValueError(
                f"{self.path}: {self._arch}.{key}={value}: layers of different sizes are not "
                "supported; take a model whose layers are alike"
            )
        return int(values.pop())

    def config(self) -> ModelConfig:
        """The architecture that the metadata describes.

        Raises:
            ValueError: an entry is missing, or the file needs a feature that is not supported
                (partial rotary positions, sliding windows, a kind of rotary scaling, layers of
                different sizes), or has a value of another type or out of its range.
        """
        with naming(str(self.path)):
            return self._config()

    def _config(self) -> ModelConfig:
        arch, num_heads = self._arch, self._count("attention.head_count")
        hidden_size = int(self._need("embedding_length"))
        head_dim = int(self.get(f"{arch}.attention.key_length", hidden_size // num_heads))
        rotated = int(self.get(f"{arch}.rope.dimension_count", head_dim))
        if rotated != head_dim:
            raise ValueError(
                f"{self.path}: {arch}.rope.dimension_count={rotated}: partial rotary positions "
                f"are not supported (head width {head_dim})"
            )
        max_positions = int(self._need("context_length"))
        if 0 < int(self.get(f"{arch}.attention.sliding_window", 0)) < max_positions:
            raise ValueError(
                f"{self.path}: {arch}.attention.sliding_window is set: sliding-window attention is "
                "not supported; take a model without it"
            )
        vocab_size = int(self._shape("token_embd.weight")[0])
        ends = [self.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=self._count("feed_forward_length"),
            num_layers=int(self._need("block_count")),
            num_heads=num_heads,
            num_kv_heads=self._count("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rope_theta=_decimal(self.get(f"{arch}.rope.freq_base", 10_000.0)),
            rms_norm_eps=_decimal(self._need("attention.layer_norm_rms_epsilon")),
            max_position_embeddings=max_positions,
            tie_embeddings="output.weight" not in self._tensors,
            rope_scaling=parse_rope_scaling(
                self._rope(), max_position_embeddings=max_positions, where=str(self.path)
            ),
            model_type=arch,
            end_ids=tuple(dict.fromkeys(int(i) for i in ends if i is not None and i < vocab_size)),
        )

    def _rope(self) -> dict[str, Any] | None:
        """The rotary scaling in the form of config.json's `rope_scaling`; None if there is none.

        As in llama.cpp, a factor without a type means linear scaling.
        """
        prefix = f"{self._arch}.rope.scaling"
        kind = self.get(f"{prefix}.type", "linear")
        legacy = self.get(f"{self._arch}.rope.scale_linear")
        factor = self.get(f"{prefix}.factor", legacy)
        if kind == "none" or (kind == "linear" and not factor):
            return None
        rope: dict[str, Any] = {"rope_type": kind}
        if factor is not None:
            rope["factor"] = _decimal(factor)
        for ours, theirs in (
            ("original_max_position_embeddings", "original_context_length"),
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ):
            if (value := self.get(f"{prefix}.{theirs}")) is not None:
                rope[ours] = int(value) if "original" in ours else _decimal(value)
        for key in ("yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"):
            if kind == "yarn" and self.get(f"{prefix}.{key}") is not None:
                raise ValueError(  # llama.cpp's converter writes two of Hugging Face's here
                    f"{self.path}: {prefix}.{key} is set, which readers take for different things; "
                    "take the safetensors checkpoint"
                )
        # llama.cpp uses attn_factor * (0.1 ln(factor) + 1), and attn_factor is 1 if it is absent.
        # Hugging Face's attention_factor is the complete product.
        if (attn_factor := self.get(f"{prefix}.attn_factor")) is not None and kind == "yarn":
            usual = 0.1 * float(np.log(rope.get("factor", 1.0))) + 1.0
            rope["attention_factor"] = _decimal(attn_factor) * usual
        return rope

    def names(self) -> set[str]:
        """Hugging Face's names of all tensors; a tensor without one keeps its GGUF name."""
        return set(self._names)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape by its Hugging Face name."""
        return self._shape(self._names.get(name, name))

    def dtype(self, name: str) -> np.dtype:
        """float32 for every tensor, because `read` dequantises to float32."""
        return np.dtype(np.float32)

    def read(self, name: str, index: Index = None) -> np.ndarray:
        """A tensor in Hugging Face's layout, dequantised to float32.

        If llama.cpp's converter has permuted the rows of a Q or K projection, they are put back in
        Hugging Face's order. Rows that `index` leaves out are not dequantised, except in permuted
        tensors.

        Args:
            name: Hugging Face's name.
            index: one slice an axis; None: the complete tensor.

        Raises:
            ValueError: the `gguf` library cannot undo the quantisation.
        """
        from gguf import dequantize

        stored = self._tensors[self._names[name]]
        rows_of_heads = name.rsplit(".", 1)[0].endswith(("q_proj", "k_proj"))
        permuted = self._family.gguf_rotary == "neighbours" and rows_of_heads
        rows = slice(None) if permuted or index is None else index[0]
        try:
            value = dequantize(stored.data[rows], stored.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path}: {stored.name} is {stored.tensor_type.name}, which the gguf library "
                "does not dequantise; take another quantisation"
            ) from error
        if permuted:
            heads = self._count("attention.head_count")
            if ".k_proj" in name:  # absent: as many as query heads
                heads = self._count("attention.head_count_kv", heads)
            value = unpermute(value, heads)
            return value if index is None else value[index]
        return value if index is None else value[(slice(None), *index[1:])]


def unpermute(value: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a Q or K projection, put from llama.cpp's order into Hugging Face's.

    Rotary positions rotate pairs of rows of a head: (2i, 2i + 1) in llama.cpp, (i, i + H/2) in
    Hugging Face's code. So llama.cpp's converter interleaves the two halves of every head; this
    function is the inverse.

    Args:
        value: weight or bias, [num_heads * H, ...].
        num_heads: N for a Q projection, K for a K projection.
    """
    half = value.shape[0] // num_heads // 2
    apart = value.reshape(num_heads, half, 2, *value.shape[1:])
    return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(value.shape)


def _hf_names(family: Family, tensors: Iterable[str]) -> dict[str, str]:
    """Maps Hugging Face's name to GGUF's; a tensor without one is listed by its GGUF name."""
    paths = {
        param.gguf: path
        for path, param in PARAMS.items()
        if not param.part.startswith("norm") or family.stands(param.part.removeprefix("norm "))
    }
    names = {}
    for tensor in tensors:
        layer, part = None, tensor
        if tensor.startswith("blk."):
            _, layer, part = tensor.split(".", 2)
        path = paths.get(part)
        names[family.hf_name(path, layer) if path else tensor] = tensor
    return names


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def gguf_tokenizer(file: os.PathLike[str] | GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file's metadata.

    Raises:
        ValueError: the file has no tokenizer, or the kind of tokenizer is not supported.
    """
    from polaris_jax.models.tokenizer import as_foreign

    file = file if isinstance(file, GgufFile) else GgufFile(file)
    with naming(str(file.path)):
        return as_foreign(_tokenizer(file), file.path)


def _tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, decoders, processors

    from polaris_jax.models.tokenizer import import_transformers

    tokens: list[str] | None = file.get("tokenizer.ggml.tokens")
    merges: list[str] | None = file.get("tokenizer.ggml.merges")
    kind = file.get("tokenizer.ggml.model")
    if tokens is None or merges is None or kind != "gpt2":
        raise ValueError(
            f"{file.path}: tokenizer.ggml.model={kind!r}: only byte-level BPE ('gpt2', with tokens "
            "and merges) is supported; take the tokenizer from the safetensors checkpoint"
        )
    pre = file.get("tokenizer.ggml.pre")
    backend = _backend(tokens, merges, pre=_SAME_PRE.get(pre, pre), where=str(file.path))
    kinds = file.get("tokenizer.ggml.token_type", [])
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, kinds, strict=False)
            if kind == wanted
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    backend.decoder = decoders.ByteLevel()

    named: dict[str, str] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            if not 0 <= index < len(tokens):
                raise ValueError(f"tokenizer.ggml.{key}_token_id={index}: there is no such token")
            named[f"{name}_token"] = tokens[index]
    # If the metadata does not say, llama.cpp adds the BOS token for Llama 3's tokenizers only.
    adds_bos = _SAME_PRE.get(pre, pre) in _ADDS_BOS_PRE
    if file.get("tokenizer.ggml.add_bos_token", adds_bos) and "bos_token" in named:
        bos = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=file.config().max_position_embeddings,
        **named,
    )


def _backend(tokens: list[str], merges: list[str], *, pre: str | None, where: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    pairs = [merge.partition(" ") for merge in merges]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[(first, second) for first, _, second in pairs],
        ignore_merges=pre in _WHOLE_WORDS_PRE,
    )
    backend = Tokenizer(model)
    if pre in _GPT2_PRE:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pre in _DIGITS_PRE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre in _PATTERN_PRE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PATTERN_PRE[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        known = (*_GPT2_PRE, *_DIGITS_PRE, *_PATTERN_PRE, *_SAME_PRE)
        raise ValueError(
            f"{where}: tokenizer.ggml.pre={pre!r}: this way of splitting text is not known; "
            f"expected one of {', '.join(known)}; take the tokenizer from the safetensors "
            "checkpoint"
        )
    if pre in _NFC_PRE:
        backend.normalizer = normalizers.NFC()
    return backend
