"""Rollout rescue: a stored correct response for a problem whose responses have all failed."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polaris_jax.batch.groups import replace_rows
from polaris_jax.records import Graded, require_fields

_ARRAYS = ("token_ids", "logprobs", "text")


@dataclasses.dataclass(frozen=True)
class StoredResponse:
    """The newest correct response of one problem.

    Attributes:
        token_ids: response token ids.
        logprobs: the sampler's log-prob of each token at `temperature`, in nats.
        text: decoded response.
        finish_reason: "stop" or "length"; see `Response`.
        step: global step of the visit.
        stage: stage of the visit.
        temperature: sampling temperature of the visit.
        reward: reward of the response; earlier versions stored none, and only rewards of 1.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: str
    step: int
    stage: int
    temperature: float
    reward: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A `StoredResponse` in 8 bytes a token, and its text as UTF-8.

    Tuples of Python numbers take ten times as much memory, and a text that is no array would be
    JSON in each checkpoint.
    """

    token_ids_T: np.ndarray
    logp_T: np.ndarray
    utf8_N: np.ndarray
    rest: dict[str, Any]

    @property
    def text(self) -> str:
        return self.utf8_N.tobytes().decode(errors="surrogatepass")

    def unpack(self) -> StoredResponse:
        tokens, logprobs = tuple(self.token_ids_T.tolist()), tuple(self.logp_T.tolist())
        return StoredResponse(tokens, logprobs, self.text, **self.rest)


class RescueBuffer:
    """The newest correct response of each problem, seen in training.

    Within a step, call `rescue` first, then `update` with the batch that `rescue` returned. Then
    only responses of earlier steps rescue a group, even if a batch holds one problem twice.

    Source: POLARIS, "Rollout Rescue Mechanism". Differs: stores at every correct visit, while
        the text, read literally, stores only at a failed visit.
    """

    def __init__(self) -> None:
        self._slots: dict[Hashable, _Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __copy__(self) -> RescueBuffer:
        """A copy that later updates do not change. Slots are shared because they never change."""
        other = RescueBuffer()
        other._slots = dict(self._slots)
        return other

    def __contains__(self, problem_id: object) -> bool:
        return problem_id in self._slots

    def get(self, problem_id: str) -> StoredResponse | None:
        """The stored response of a problem; None if there is none."""
        slot = self._slots.get(_plain(problem_id))
        return None if slot is None else slot.unpack()

    def stored_at(self, problem_id: str) -> int:
        """The step at which a problem's stored response was sampled; KeyError if there is none."""
        return int(self._slots[_plain(problem_id)].rest["step"])

    def drop(self, problem_ids: Iterable[str]) -> None:
        """Forgets the responses to problems that will not return."""
        for problem_id in problem_ids:
            self._slots.pop(_plain(problem_id), None)

    def begin_anew(self, steps: int) -> None:
        """Counts the steps from the end of a run of `steps` steps: those of before are below 0."""
        self._slots = {
            problem_id: dataclasses.replace(
                slot, rest={**slot.rest, "step": slot.rest["step"] - steps}
            )
            for problem_id, slot in self._slots.items()
        }

    def update(self, graded: Graded, *, step: int, stage: int, temperature: float) -> int:
        """Stores the last correct row of each group.

        Rescued rows are never stored. If a problem occurs twice, the later group's row is kept.

        Args:
            graded: groups of this step, before substitution.
            step: global step.
            stage: stage index.
            temperature: sampling temperature of this step's rows.

        Returns:
            The number of responses stored.
        """
        correct_PR = graded.correct_PR & ~np.asarray(graded.rescued_PR, bool)
        stored = 0
        for p in np.flatnonzero(correct_PR.any(axis=1)).tolist():
            r = np.flatnonzero(correct_PR[p]).tolist()[-1]
            self._slots[_plain(graded.problem_ids[p])] = _Slot(
                np.array(graded.token_ids[p][r], np.int32),
                _compact(graded.logprobs[p][r]),
                _utf8(str(graded.texts[p][r])),
                {
                    "finish_reason": str(graded.finish_reasons[p][r]),
                    "step": int(step),
                    "stage": int(stage),
                    "temperature": float(temperature),
                    "reward": float(graded.reward_PR[p, r]),
                },
            )
            stored += 1
        return stored

    def rescue(
        self, graded: Graded, *, max_response_tokens: int, rng: np.random.Generator
    ) -> tuple[Graded, int]:
        """Puts one stored response into each group without a correct response.

        A group is rescued if none of its responses is correct and its problem has a stored response
        that fits the budget. The stored response replaces one uniformly random row, with its own
        reward, `rescued_PR` True, and the log-probs of the original sampling.

        Args:
            graded: graded groups, accuracy already logged; not changed.
            max_response_tokens: budget of the present stage; longer responses are not used.
            rng: draws one `integers(R)` for each rescued group, in batch order, and nothing else.

        Returns:
            (the new batch, the number of rescued groups).
        """
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for p in np.flatnonzero(~graded.correct_PR.any(axis=1)).tolist():
            slot = self._slots.get(_plain(graded.problem_ids[p]))
            if slot is None or len(slot.token_ids_T) > max_response_tokens:
                continue
            r = int(rng.integers(graded.reward_PR.shape[1]))
            rows[p, r] = {
                "token_ids": _like(graded.token_ids[p][r], slot.token_ids_T),
                "logprobs": _like(graded.logprobs[p][r], slot.logp_T),
                "texts": slot.text,
                "finish_reasons": slot.rest["finish_reason"],
                "reward_PR": slot.rest.get("reward", 1.0),
                "rescued_PR": True,
                "versions": (),
                "parts": {},
                "answers": None,
                "reasons": "",
                "failed": False,
            }
        return replace_rows(graded, rows), len(rows)

    def state_dict(self) -> dict[str, Any]:
        """The buffer's contents in plain JSON types, with arrays as base64 of their bytes."""
        state = self.array_state()
        for fields in state["slots"]:
            for name in _ARRAYS:
                fields[name] = _encode(fields[name])
        return state

    def array_state(self) -> dict[str, Any]:
        """The buffer's contents with uncopied numpy arrays, for a checkpoint."""
        return {
            "slots": [
                {
                    "problem_id": problem_id,
                    "token_ids": slot.token_ids_T,
                    "logprobs": slot.logp_T,
                    "text": slot.utf8_N,
                    **slot.rest,
                }
                for problem_id, slot in self._slots.items()
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the contents by those of a `state_dict` or `array_state`, bit for bit.

        Earlier versions have texts that are no arrays.

        Raises:
            ValueError: `state` has no field "slots".
        """
        require_fields(state, "slots")
        self._slots = {
            fields["problem_id"]: _Slot(
                _decode(fields["token_ids"]),
                _decode(fields["logprobs"]),
                _utf8(fields["text"])
                if isinstance(fields["text"], str)
                else _decode(fields["text"]),
                {
                    name: value
                    for name, value in fields.items()
                    if name not in ("problem_id", *_ARRAYS)
                },
            )
            for fields in state["slots"]
        }


def _plain(problem_id: Any) -> Hashable:
    return problem_id.item() if isinstance(problem_id, np.generic) else problem_id


def _utf8(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)


def _compact(logprobs: Sequence[float] | np.ndarray) -> np.ndarray:
    """The log-probs in float32 if that is exact (as for a sampler's), else in float64."""
    logp_T = np.array(logprobs, np.float64)
    narrow_T = logp_T.astype(np.float32)
    return narrow_T if np.array_equal(narrow_T, logp_T) else logp_T


def _like(template: Any, values_T: np.ndarray) -> Any:
    if isinstance(template, np.ndarray):
        return values_T.copy()
    return list(values_T.tolist()) if isinstance(template, list) else tuple(values_T.tolist())


def _encode(values_T: np.ndarray) -> dict[str, str]:
    little = values_T.dtype.newbyteorder("<")
    data = base64.b64encode(values_T.astype(little).tobytes()).decode("ascii")
    return {"dtype": values_T.dtype.name, "base64": data}


def _decode(fields: Mapping[str, str] | np.ndarray) -> np.ndarray:
    if isinstance(fields, np.ndarray):
        return fields
    dtype = np.dtype(fields["dtype"])
    data = base64.b64decode(fields["base64"])
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
