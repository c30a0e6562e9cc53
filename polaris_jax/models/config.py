"""The frozen description of one dense checkpoint's architecture."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from polaris_jax.models.family import Family, family_named, param_shapes

RopeType = Literal["default", "linear", "yarn", "llama3"]

_ROPE_OPTIONAL = ("original_max_position_embeddings", "attention_factor")
_ROPE_NUMBERS = (
    "factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    *_ROPE_OPTIONAL,
)
# The largest values that a checkpoint may claim, each several times the largest one in use: what is
# built from the description alone, before any weights are there, has a size.
MOST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 10,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "max_position_embeddings": 1 << 30,
}
MOST_ROPE_THETA = 1e15
MOST_ROPE_FACTOR = 1e6


def shortened(value: Any) -> str:
    """A value as an error shows it, also if it has thousands of digits."""
    try:
        text = repr(value)
    except ValueError:  # Python's limit on the digits that it writes
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed; fields and defaults as in Hugging Face's config.json.

    Attributes:
        rope_type: "default" (none), "linear", "yarn" or "llama3".
        factor: stretch of positions, >= 1.
        original_max_position_embeddings: length in tokens that the checkpoint was trained for;
            needed by yarn and llama3.
        attention_factor: yarn only; multiplies cos and sin, so attention scores grow by its square.
            None means 0.1 ln(factor) + 1.
        beta_fast: yarn only; dimensions that turn more often than this over the original length
            keep their frequency.
        beta_slow: yarn only; dimensions that turn less often than this are fully interpolated.
        truncate: yarn only; round the border dimensions to whole numbers.
        low_freq_factor: llama3 only.
        high_freq_factor: llama3 only.

    Source: YaRN, Peng et al. 2023 (arXiv:2309.00071), section 3.
    """

    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.rope_type not in ("default", "linear", "yarn", "llama3"):
            raise ValueError(
                f"rope_scaling.rope_type={self.rope_type!r}: expected default, linear, yarn or "
                "llama3; other schemes are not supported"
            )
        for name in _ROPE_NUMBERS:
            number = getattr(self, name)
            if number is None and name in _ROPE_OPTIONAL:
                continue
            if isinstance(number, bool) or not (
                isinstance(number, int | float) and math.isfinite(number)
            ):
                raise ValueError(f"rope_scaling.{name}={number!r}: must be a finite number")
        if not 1 <= self.factor <= MOST_ROPE_FACTOR:
            raise ValueError(
                f"rope_scaling.factor={self.factor}: must lie in [1, {MOST_ROPE_FACTOR:g}]; take "
                "the new length over the original one"
            )
        if not 0 < (self.attention_factor or 1.0) <= MOST_ROPE_FACTOR:
            raise ValueError(
                f"rope_scaling.attention_factor={self.attention_factor}: must lie in (0, "
                f"{MOST_ROPE_FACTOR:g}]; leave it out for the usual one"
            )
        original = self.original_max_position_embeddings or 0
        if original > MOST["max_position_embeddings"] or (
            self.rope_type in ("yarn", "llama3") and original < 1
        ):
            raise ValueError(
                f"rope_scaling.original_max_position_embeddings="
                f"{self.original_max_position_embeddings}: {self.rope_type} needs the length that "
                "the checkpoint was trained for (32768 for Qwen3)"
            )
        for name, low, high in (
            ("yarn", "beta_slow", "beta_fast"),
            ("llama3", "low_freq_factor", "high_freq_factor"),
        ):
            if self.rope_type == name and not 0 < getattr(self, low) < getattr(self, high):
                raise ValueError(
                    f"rope_scaling.{low}={getattr(self, low)}, {high}={getattr(self, high)}: "
                    f"{name} needs 0 < {low} < {high}"
                )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one dense decoder; hashable, so it is static under jit.

    Attributes:
        vocab_size: V, rows of the embedding.
        hidden_size: D.
        intermediate_size: F.
        num_layers: L.
        num_heads: N query heads.
        num_kv_heads: K key/value heads; divides N.
        head_dim: H; need not be D / N.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: added to the mean square.
        max_position_embeddings: positions the checkpoint claims, in tokens.
        tie_embeddings: the head is the embedding.
        qkv_bias: True if q, k and v have biases; None: as the family has it.
        qk_norm: True if queries and keys are normed; None: as the family has it. What the norm
            spans is the family's.
        rope_scaling: change of the rotary frequencies, or None.
        model_type: Hugging Face's name of the family, a key of `family.FAMILIES`.
        end_ids: token ids that end a response of this checkpoint. No part of the architecture: two
            configs that differ in them alone are equal.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_embeddings: bool
    qkv_bias: bool | None = None
    qk_norm: bool | None = None
    rope_scaling: RopeScaling | None = None
    model_type: str = "qwen3"
    end_ids: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most:
                raise ValueError(
                    f"{name}={shortened(size)}: must be a whole number from 1 to {most}; take the "
                    "value of the checkpoint's own config.json"
                )
        for name, most in (("rope_theta", MOST_ROPE_THETA), ("rms_norm_eps", 1.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value <= most):
                raise ValueError(
                    f"{name}={shortened(value)}: must be a number above 0 and at most {most:g}; "
                    "take the value of the checkpoint's own config.json"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary embedding needs an even width")
        family = family_named(self.model_type)
        for name, own in (("qkv_bias", family.qkv_bias), ("qk_norm", family.qk_norm != "none")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, own)

    @property
    def family(self) -> Family:
        """What the checkpoint's family has that others lack."""
        return family_named(self.model_type)

    def architecture(self) -> dict[str, Any]:
        """The fields that two checkpoints must share for their weights to be compatible."""
        fields = dataclasses.asdict(self)
        del fields["end_ids"]
        return fields

    @property
    def num_parameters(self) -> int:
        """Number of weights, embeddings included."""
        return sum(math.prod(shape) for shape in param_shapes(self).values())
