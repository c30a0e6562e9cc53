"""The run's newest responses to each problem, from which later epochs draft.

The store is bounded in tokens, for each problem and in all. A full store takes no further problem
and keeps those that it has: prompts return once an epoch, so a store that dropped the oldest would
have dropped each problem before it returns.

Source: DAS (arXiv:2511.13841), RhymeRL (arXiv:2508.18588): responses of the epoch before are near
those of this one. Differs: drafts change no token, so no log-prob of the old policy is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

PROMPT_TOKENS = 1 << 16  # two responses of 32K tokens, or eight of 8K


class DraftStore:
    """Token ids of the newest responses to each problem.

    Args:
        most_tokens: tokens of all problems together; 0: the store stays empty.
        prompt_tokens: tokens of each problem.
    """

    def __init__(self, most_tokens: int = 0, prompt_tokens: int = PROMPT_TOKENS) -> None:
        self._most, self._prompt_most = most_tokens, prompt_tokens
        self._texts: dict[str, tuple[np.ndarray, ...]] = {}
        self._tokens = 0

    def __copy__(self) -> DraftStore:
        """A copy that later records do not change. Texts are shared because they never change."""
        other = DraftStore(self._most, self._prompt_most)
        other._texts, other._tokens = dict(self._texts), self._tokens
        return other

    @property
    def tokens(self) -> int:
        """Number of tokens stored."""
        return self._tokens

    def texts(self, problem_id: str) -> tuple[np.ndarray, ...]:
        """The stored responses to a problem, int32 [tokens] each, the oldest first."""
        return self._texts.get(problem_id, ())

    def record(
        self, problem_ids: Sequence[str], token_ids: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        """Stores the responses of each problem's visit before its older ones.

        Of a visit the longest are kept first: the last live rows of a rollout are the long ones.

        Args:
            problem_ids: P ids.
            token_ids: token ids of the responses, [P][R].
        """
        for problem_id, group in zip(problem_ids, token_ids, strict=True):
            former = self._texts.pop(problem_id, ())
            self._tokens -= sum(map(len, former))
            room = min(self._prompt_most, self._most - self._tokens)
            order = sorted(range(len(group)), key=lambda r: (-len(group[r]), r))
            kept: list[np.ndarray] = []
            for text in (*(group[r] for r in order), *reversed(former)):
                if len(text) <= room and len(text):
                    kept.append(np.array(text, np.int32))
                    room -= len(text)
            if kept:
                self._texts[problem_id] = tuple(reversed(kept))
                self._tokens += sum(map(len, kept))

    def drop(self, problem_ids: Collection[str]) -> None:
        """Forgets problems, which makes room for others."""
        for problem_id in problem_ids:
            self._tokens -= sum(map(len, self._texts.pop(problem_id, ())))

    def array_state(self) -> dict[str, Any]:
        """The store's contents with numpy arrays, for a checkpoint."""
        return {
            "problems": [
                {
                    "problem_id": problem_id,
                    "token_ids": np.concatenate(texts),
                    "lengths": [len(text) for text in texts],
                }
                for problem_id, texts in self._texts.items()
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the contents by those of an `array_state`, as far as the bounds allow."""
        self._texts, self._tokens = {}, 0
        for fields in state["problems"]:
            texts = np.split(fields["token_ids"], np.cumsum(fields["lengths"])[:-1])
            tokens = sum(map(len, texts))
            if tokens <= min(self._prompt_most, self._most - self._tokens):
                self._texts[fields["problem_id"]] = tuple(texts)
                self._tokens += tokens
