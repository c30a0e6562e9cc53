"""What a command does, seen from outside: its files, and the calls that reach what will stay.

A command runs in this process, and the methods spied on here note what they are given before they
do what they always do. Nothing here names what is between a command and those methods, so these
tests hold while that is written anew. All of polaris_jax that the tests of this folder use is
imported in this file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax
import pytest

from polaris_jax.__main__ import main
from polaris_jax.batch import RescueBuffer, group_advantages
from polaris_jax.data.problems import read_problems
from polaris_jax.explore import distinct_ngrams
from polaris_jax.models import Decoder, ModelConfig, RopeScaling, load_pretrained
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.records import Graded, Problem, TrainBatch
from polaris_jax.reward import Grader, RewardInput
from polaris_jax.reward.grader import Grade
from polaris_jax.rollout import Sampler, SamplingParams
from polaris_jax.stages.difficulty import AccuracyTable
from polaris_jax.train.update import Updater

__all__ = [
    "Asked",
    "Calls",
    "Counted",
    "Recomputed",
    "Recorded",
    "Rescued",
    "RopeScaling",
    "Scored",
    "Stored",
    "Updated",
    "base_weights",
    "distinct_ngrams",
    "group_advantages",
    "main",
    "read_json",
    "read_lines",
    "run",
    "table",
    "texts_of",
    "tokenizer_of",
    "weights_of",
]


@dataclasses.dataclass(frozen=True)
class Asked:
    """`Sampler.submit`: what was asked, and of which sampler."""

    sampler: int  # the so manieth that was made
    model: ModelConfig
    weights: str  # digest of those that it holds
    prompts: list[tuple[int, ...]]
    params: SamplingParams
    request: Any

    @property
    def rope(self) -> RopeScaling | None:
        """The rotary scaling that it samples under."""
        return self.model.rope_scaling


@dataclasses.dataclass(frozen=True)
class Scored:
    """`Grader.grade_inputs`; texts as the math grader reads them."""

    texts: list[str]
    golds: list[str]  # as `repr` writes them
    mode: str
    rewards: list[float]


@dataclasses.dataclass(frozen=True)
class Counted:
    """`AccuracyTable.record`."""

    problem_ids: list[str]
    reward_PR: np.ndarray
    stage: int


@dataclasses.dataclass(frozen=True)
class Rescued:
    """`RescueBuffer.rescue`: what it got and what it gave."""

    got: Graded
    max_response_tokens: int
    gave: Graded
    count: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """`RescueBuffer.update`."""

    got: Graded
    stage: int


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """`Updater.recompute_logprobs`."""

    weights: str
    gave: TrainBatch


@dataclasses.dataclass(frozen=True)
class Updated:
    """`Updater.update`: the state and batch that it got, and the weights that it gave."""

    model: ModelConfig
    weights: str
    moments: tuple[float, float]  # the largest of the first and of the second, by size
    reference: str | None  # digest of its weights
    batch: TrainBatch
    gave: str

    @property
    def rope(self) -> RopeScaling | None:
        """The rotary scaling that is trained under."""
        return self.model.rope_scaling


Call = TypeVar("Call")


class Calls(list[Any]):
    """Every call of a command that was noted, in order."""

    def of(self, *kinds: type[Call]) -> list[Call]:
        """The calls of these kinds, in order."""
        return [call for call in self if isinstance(call, kinds)]

    def asked(self, n: int) -> list[Asked]:
        """The requests for `n` responses a prompt: tests give each purpose an `n` of its own."""
        return [call for call in self.of(Asked) if call.params.n == n]

    def until(self, kind: type) -> Calls:
        """The calls before the first of this kind."""
        first = next(i for i, call in enumerate(self) if isinstance(call, kind))
        return Calls(self[:first])


class Recorded(NamedTuple):
    """A command that has run: its workdir, and the calls that were noted."""

    workdir: Path
    calls: Calls


def run(command: str, line: Sequence[str], workdir: Path, *more: str) -> Calls:
    """The calls of `polaris COMMAND`, which must end well."""
    calls = Calls()
    with pytest.MonkeyPatch.context() as patch:
        _spy_on_samplers(patch, calls)
        _spy_on_rewards(patch, calls)
        _spy_on_updates(patch, calls)
        assert main([command, *line, f"--workdir={workdir}", *more]) == 0
    return calls


def _spy_on_samplers(patch: pytest.MonkeyPatch, calls: Calls) -> None:
    made, submit, update_weights = Sampler.__init__, Sampler.submit, Sampler.update_weights
    held: weakref.WeakKeyDictionary[Sampler, tuple[int, ModelConfig, str]]
    held = weakref.WeakKeyDictionary()
    numbers = iter(range(1 << 20))

    def spied_init(self: Sampler, model: Decoder, *args: Any, **options: Any) -> None:
        made(self, model, *args, **options)
        held[self] = next(numbers), model.config, weights_of(model)

    def spied_update(self: Sampler, model: Decoder) -> None:
        update_weights(self, model)
        held[self] = held[self][0], model.config, weights_of(model)

    def spied_submit(
        self: Sampler, prompts: Any, params: SamplingParams | None = None, **options: Any
    ) -> Any:
        request = submit(self, prompts, params, **options)
        asked = [tuple(prompt) for prompt in prompts]
        calls.append(Asked(*held[self], asked, params or SamplingParams(), request))
        return request

    patch.setattr(Sampler, "__init__", spied_init)
    patch.setattr(Sampler, "submit", spied_submit)
    patch.setattr(Sampler, "update_weights", spied_update)


def _spy_on_rewards(patch: pytest.MonkeyPatch, calls: Calls) -> None:
    grade, record = Grader.grade_inputs, AccuracyTable.record
    rescue, update = RescueBuffer.rescue, RescueBuffer.update

    def spied_grade(self: Grader, responses: Sequence[RewardInput]) -> list[Grade]:
        grades = grade(self, responses)
        if responses:
            texts = [one.graded_text for one in responses]
            golds = [repr(one.answer) for one in responses]
            rewards = [float(one.reward) for one in grades]
            calls.append(Scored(texts, golds, responses[0].mode, rewards))
        return grades

    def spied_record(
        self: AccuracyTable, problem_ids: Any, reward_PR: Any, *, stage: int, **options: Any
    ) -> None:
        calls.append(Counted(list(problem_ids), np.array(reward_PR), stage))
        record(self, problem_ids, reward_PR, stage=stage, **options)

    def spied_rescue(
        self: RescueBuffer, graded: Graded, *, max_response_tokens: int, rng: Any
    ) -> tuple[Graded, int]:
        gave, count = rescue(self, graded, max_response_tokens=max_response_tokens, rng=rng)
        calls.append(Rescued(graded, max_response_tokens, gave, count))
        return gave, count

    def spied_update(self: RescueBuffer, graded: Graded, **options: Any) -> int:
        calls.append(Stored(graded, options["stage"]))
        return update(self, graded, **options)

    patch.setattr(Grader, "grade_inputs", spied_grade)
    patch.setattr(AccuracyTable, "record", spied_record)
    patch.setattr(RescueBuffer, "rescue", spied_rescue)
    patch.setattr(RescueBuffer, "update", spied_update)


def _spy_on_updates(patch: pytest.MonkeyPatch, calls: Calls) -> None:
    update, recompute = Updater.update, Updater.recompute_logprobs

    def spied_update(
        self: Updater, state: Any, batch: TrainBatch, *, reference: Decoder | None = None
    ) -> Any:
        # Before the call, which takes the state's arrays away.
        config, weights = state.params.config, weights_of(state.params)
        moments = largest(state.opt_state, "mu"), largest(state.opt_state, "nu")
        frozen = None if reference is None else weights_of(reference)
        state, metrics = update(self, state, batch, reference=reference)
        gave = weights_of(state.params)
        calls.append(Updated(config, weights, moments, frozen, batch, gave))
        return state, metrics

    def spied_recompute(self: Updater, params: Decoder, batch: TrainBatch) -> TrainBatch:
        gave = recompute(self, params, batch)
        calls.append(Recomputed(weights_of(params), gave))
        return gave

    patch.setattr(Updater, "update", spied_update)
    patch.setattr(Updater, "recompute_logprobs", spied_recompute)


def largest(opt_state: Any, name: str) -> float:
    """The largest moment of this name, by size."""
    leaves = jax.tree.leaves(optax.tree_utils.tree_get(opt_state, name))
    assert leaves
    return max(float(np.abs(np.asarray(leaf)).max()) for leaf in leaves)


def weights_of(model: Decoder) -> str:
    """A digest of a model's weights: that of other weights is another one."""
    digest = hashlib.blake2b(digest_size=8)
    for name, param in sorted(model.params().items()):
        digest.update(name.encode() + np.asarray(param, np.float32).tobytes())
    return digest.hexdigest()


def base_weights(directory: Path) -> str:
    """The digest of the weights that a run begins with."""
    return weights_of(load_pretrained(directory)[0])


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer of the base model."""
    return load_tokenizer(str(directory))


def texts_of(asked: Asked, tokenizer: Any) -> list[list[str]]:
    """[prompt][sample] the texts that were sampled."""
    return [
        [tokenizer.decode(response.token_ids, skip_special_tokens=True) for response in group]
        for group in asked.request.responses()
    ]


def table(path: Path) -> list[Problem]:
    """The problems of a parquet file."""
    return read_problems(path)[0]


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
