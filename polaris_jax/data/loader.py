"""Endless batches of prompts in shuffled epochs, which resume exactly.

The order is a pure function of (seed, problems, drops so far, position): grain's index shuffle with
a new order each epoch. A batch may span the end of an epoch, so it may hold a problem twice.
With weights there are no epochs, and the draw is a function of the weights too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from polaris_jax.config.settings import ConfigError
from polaris_jax.data.prompts import PromptFormat
from polaris_jax.records import Group, Problem, require_fields


class PromptLoader(Iterator[list[Group]]):
    """An endless iterator of batches of prompts.

    Within an epoch every id is drawn exactly once. `drop` removes problems and starts a new epoch
    over the others; draws and epochs are counted further, not reset. All processes of a run that
    build the same loader draw the same batches.

    Attributes:
        batch_size: prompts in a batch.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        tokenizer: Any,
        prompt_format: PromptFormat,
        batch_size: int,
        seed: int,
        dropped_ids: Iterable[str] = (),
    ) -> None:
        """Starts at the first batch of epoch 0.

        Args:
            problems: the training set, dropped problems included; ids must be unique.
            tokenizer: renders each prompt at its first draw.
            prompt_format: how a problem becomes a prompt.
            batch_size: prompts in a batch, at least 1; may exceed the number of problems.
            seed: seed of the order.
            dropped_ids: problems that are dropped from the start.

        Raises:
            ConfigError: an id occurs twice, or no problem remains.
            ValueError: `batch_size` is below 1, or a dropped id is not among the problems.
        """
        if batch_size < 1:
            raise ValueError(
                f"rollout.prompts_per_step={batch_size}: a batch needs at least 1 prompt"
            )
        self.batch_size = batch_size
        self._problems = list(problems)
        self._tokenizer = tokenizer
        self._format = prompt_format
        self._seed = int(seed)
        self._index = {problem.id: i for i, problem in enumerate(self._problems)}
        if len(self._index) < len(self._problems):
            ids = [problem.id for problem in self._problems]
            twice = next(id for i, id in enumerate(ids) if id in ids[:i])
            raise ConfigError(
                f"data.problems: id {twice!r} occurs twice; every table of a run is keyed by it, "
                "so make ids unique (`polaris prepare` does)"
            )
        self._rendered: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._draws = [0] * len(self._problems)
        self._dropped: tuple[str, ...] = ()
        self._position = 0  # prompts drawn since the last drop
        self._generation = 0  # number of drops so far; each drop starts a new order
        self._first_epoch = 0  # first epoch of this generation
        self._start(tuple(dict.fromkeys(dropped_ids)))

    def _start(self, dropped_ids: tuple[str, ...]) -> None:
        import grain  # not at the top, because it imports jax

        unknown = [id for id in dropped_ids if id not in self._index]
        if unknown:
            raise ValueError(f"dropped_ids: {unknown[0]!r} is not among the problems")
        out = set(dropped_ids)
        left = [i for i, problem in enumerate(self._problems) if problem.id not in out]
        if not left:
            raise ConfigError(
                f"data.problems: no problem remains of {len(self._problems)} after dropping "
                f"{len(out)}; raise stages[i].drop_above or bring harder problems"
            )
        order_seed = np.random.SeedSequence([self._seed, self._generation]).generate_state(1)[0]
        self._dropped, self._epoch_size, self._left = dropped_ids, len(left), left
        self._order = grain.MapDataset.source(left).shuffle(seed=int(order_seed)).repeat()

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0. A drop starts a new epoch."""
        return self._first_epoch + self._position // self._epoch_size

    @property
    def dropped_ids(self) -> tuple[str, ...]:
        """Ids of the dropped problems, in the order in which they were dropped."""
        return self._dropped

    def __len__(self) -> int:
        """The number of problems in an epoch."""
        return self._epoch_size

    def __copy__(self) -> PromptLoader:
        """A loader at the same position. Its draws do not advance this loader."""
        other = object.__new__(PromptLoader)
        other.__dict__.update(self.__dict__)
        other._draws = list(self._draws)
        return other

    def __next__(self) -> list[Group]:
        return self.take(self.batch_size)

    def take(self, count: int, *, weights: Mapping[str, float] | None = None) -> list[Group]:
        """The next `count` prompts, as groups without responses; 0 is allowed.

        Args:
            count: number of prompts.
            weights: problem id -> weight >= 0 in the draw. No problem is drawn twice unless `count`
                exceeds their number. None: the next ones of the epoch.

        Raises:
            ValueError: `count` is below 0.
        """
        if count < 0:
            raise ValueError(f"count={count}: must not be negative; take 0 or more prompts")
        epoch, groups = self.epoch, []
        if weights is None:
            first = self._position
            indices = [int(cast(int, self._order[first + i])) for i in range(count)]
        else:
            indices = self._weighted(count, weights)
        for index in indices:
            problem, draw = self._problems[index], self._draws[index]
            text, ids = self._render(problem)
            group = Group(
                problem.id,
                ids,
                text,
                problem.answer,
                draw,
                epoch,
                extra=problem.extra,
                opening=self._format.opening(text, problem.problem),
            )
            groups.append(group)
            self._draws[index] += 1
            self._position += 1
        return groups

    def _weighted(self, count: int, weights: Mapping[str, float]) -> list[int]:
        """Indices of `count` problems, drawn by weight; all of them before one comes again.

        Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir": the
            largest of log w + Gumbel noise are a weighted draw without replacement.
        """
        rng = np.random.default_rng([self._seed, self._generation, self._position])
        w_P = np.array([weights[self._problems[i].id] for i in self._left], np.float64)
        with np.errstate(divide="ignore"):
            logw_P = np.log(w_P)
        found: list[int] = []
        while len(found) < count:
            order = np.argsort(-(logw_P + rng.gumbel(size=len(logw_P))), kind="stable")
            found += [self._left[i] for i in order.tolist()]
        return found[:count]

    def _render(self, problem: Problem) -> tuple[str, tuple[int, ...]]:
        if problem.id not in self._rendered:
            ((text, ids),) = self._format.render(self._tokenizer, [problem])
            self._rendered[problem.id] = self._format.last_turn(text), ids
        return self._rendered[problem.id]

    def drop(self, problem_ids: Iterable[str]) -> int:
        """Drops problems and starts a new epoch over the others.

        Nothing changes if all of these problems are dropped already.

        Returns:
            The number of problems dropped now.

        Raises:
            ConfigError: no problem would remain.
            ValueError: an id is not among the problems.
        """
        before = set(self._dropped)
        new = [id for id in dict.fromkeys(problem_ids) if id not in before]
        if not new:
            return 0
        epochs_begun = -(-self._position // self._epoch_size)
        self._generation += 1
        try:
            self._start((*self._dropped, *new))
        except ValueError:
            self._generation -= 1
            raise
        self._first_epoch += epochs_begun
        self._position = 0
        return len(new)

    def state_dict(self) -> dict[str, Any]:
        """The loader's position, in plain JSON-able types."""
        return {
            "position": self._position,
            "generation": self._generation,
            "first_epoch": self._first_epoch,
            "dropped_ids": list(self._dropped),
            "draws": list(self._draws),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the position of a `state_dict`, so that the same batches follow.

        Raises:
            ConfigError: the state belongs to other problems or another seed.
            ValueError: `state` lacks a field.
        """
        require_fields(
            state, "fingerprint", "generation", "dropped_ids", "position", "first_epoch", "draws"
        )
        if state["fingerprint"] != self._fingerprint:
            raise ConfigError(
                "data.problems: the checkpoint's data order belongs to other problems, another "
                "suffix or another seed; resume with the data the run began with, or start anew "
                "with --overwrite"
            )
        self._generation = int(state["generation"])
        self._start(tuple(state["dropped_ids"]))
        self._position = int(state["position"])
        self._first_epoch = int(state["first_epoch"])
        self._draws = [int(count) for count in state["draws"]]

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """A digest of each problem's text and gold, by id, for a run that continues from this one.

        Ids such as 0, 1, 2 say nothing: another data set has them too.
        """

        def digest(problem: Problem) -> str:
            texts = [problem.problem, problem.answer, problem.turns]
            return f"{zlib.crc32(json.dumps(texts, default=list).encode()):08x}"

        return {problem.id: digest(problem) for problem in self._problems}

    @functools.cached_property
    def _fingerprint(self) -> str:
        rows = [
            (p.id, p.problem, p.answer, *([p.turns] if p.turns else [])) for p in self._problems
        ]
        more = dataclasses.astuple(self._format)[1:]
        more = [] if self._format == PromptFormat(self._format.suffix) else [more]
        text = json.dumps([self._seed, self._format.suffix, rows, *more], default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
