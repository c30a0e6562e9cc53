"""The records that packages pass to one another, and the dimension key of the project.

Data flows one way: `Problem -> Group -> Graded -> TrainBatch`. Records are frozen: a function takes
one and returns a new one. This module imports numpy and not jax, so packages that work on the host
can import it without jax.

Dimension key. Every array local, argument and field carries its axes as a suffix:

    P  prompts of a step            L  layers                    Z  pages in the KV pool
    R  responses of a prompt        D  model width               Y  tokens of a page
    B  rows (P*R, or packed rows)   F  MLP width                 J  pages of a sequence
    T  positions of a row           N  query heads               V  vocabulary
    S  cached positions             K  key/value heads
                                    G  query heads a KV head (N/K)
                                    H  head width

A reduced axis loses its letter. Host lists and dicts are plural nouns without a suffix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

FinishReason = Literal["stop", "length", "unfinished"]  # see `Response`
Gold = str | int | float | Sequence[str | int | float]  # one answer, or a list of alternatives
Versions = Sequence[tuple[int, int]]  # (version of the policy, number of its tokens), in order
NO_STAGE = -1  # `StageState.stage` of a run that has not entered a stage yet


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: a question and the answers that count as right.

    Attributes:
        id: stable and unique in a data set; every table of a run is keyed by problem ids.
        problem: the question as in the data set, without `data.prompt_suffix`.
        answer: the gold answer: a string, a number, or a list of alternatives.
        source: origin of the problem, for reports.
        pass_rate: share of correct calibration rollouts, in [0, 1]; None before calibration.
        response_tokens: mean length of calibration rollouts, in tokens; None before calibration.
        extra: the row's other columns, as JSON values; a reward function gets them.
        turns: (role, text) of the turns of a chat before the question: system, user or assistant.
    """

    id: str
    problem: str
    answer: Gold
    source: str = ""
    pass_rate: float | None = None
    response_tokens: float | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Response:
    """One sampled completion.

    Attributes:
        token_ids: sampled ids, the stop token included.
        logprobs: natural log of each token's probability under log_softmax(logits / temperature),
            before any top-k, top-p or min-p mask; in nats, same length as `token_ids`.
        finish_reason: "stop" if a stop token or string ended the response; "length" if the budget
            did; "unfinished" if the request was aborted (`Sampler.submit(begun=...)` continues it).
        prompt_logprobs: like `logprobs`, for the prompt's tokens from the second on. All are
            computed with the weights that sampled the response's last token, even if earlier tokens
            were sampled with other weights. None: not requested.
        versions: (version, tokens) pairs in order: how many tokens each version of the sampler's
            weights sampled (see `Sampler.version`). Ignored when responses are compared.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_logprobs: tuple[float, ...] | None = None
    versions: tuple[tuple[int, int], ...] = dataclasses.field(default=(), compare=False)

    @property
    def ended(self) -> bool:
        """True if a stop token or string, or the budget, has ended the response."""
        return self.finish_reason != "unfinished"


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and its n responses, some of which may be unfinished.

    A group exists from the moment its prompt is drawn until it is graded.

    Attributes:
        problem_id: `Problem.id`.
        prompt: token ids of the prompt, with the chat template.
        prompt_text: the prompt as text, without worked examples (`data.shots`).
        gold: `Problem.answer`.
        draw: number of times that this run had drawn the problem before.
        epoch: epoch in which the batch of this draw began, from 0.
        seed: sampling seed of all responses. The seed, the index of the response and the position
            of a token decide the token's noise, so an unfinished response continues as if it had
            never been interrupted.
        begun: version of the policy when sampling began; no token is from an older version.
        responses: n responses; () before sampling begins.
        texts: the n decoded responses, special tokens left out; () while a response is unfinished.
        extra: `Problem.extra`.
        opening: the end of `prompt_text` that begins the response's turn; in mode "train" the
            reward reads it before the response. None: a checkpoint of an older version.
    """

    problem_id: str
    prompt: tuple[int, ...]
    prompt_text: str
    gold: Gold
    draw: int
    epoch: int
    seed: int = 0
    begun: int = 0
    responses: tuple[Response, ...] = ()
    texts: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opening: str | None = None

    @property
    def complete(self) -> bool:
        """True if every response has ended."""
        return bool(self.responses) and all(response.ended for response in self.responses)

    def with_response(self, sample: int, response: Response) -> Group:
        """The group with `response` at index `sample`."""
        responses = (*self.responses[:sample], response, *self.responses[sample + 1 :])
        return dataclasses.replace(self, responses=responses)


def require_rewards(
    reward_PR: np.ndarray, problem_ids: Sequence[Any] | np.ndarray | None = None
) -> None:
    """Checks that every reward is finite and in [0, 1].

    Args:
        reward_PR: rewards.
        problem_ids: ids of the P problems, for the error; None: the error has none.

    Raises:
        ValueError: a reward is not finite or not in [0, 1].
    """
    bad_PR = ~((reward_PR >= 0) & (reward_PR <= 1))
    if bad_PR.any():
        p, r = np.argwhere(bad_PR)[0]
        problem = "" if problem_ids is None else f" (problem {problem_ids[p]!r})"
        raise ValueError(
            f"reward_PR[{p}, {r}]={reward_PR[p, r]}{problem}: rewards must be finite, in [0, 1]; "
            "grade a response that cannot be graded 0"
        )


def correct_rewards(reward_PR: np.ndarray, correct_at: float) -> np.ndarray:
    """True for each reward that counts as correct, bool [P, R]: it is at least `correct_at`.

    Both sides are compared in float32. A reward of 0.7 is stored as float32, a little less than the
    float 0.7, and must still reach `correct_at=0.7`.
    """
    return np.asarray(reward_PR, np.float32) >= np.float32(correct_at)


def require_fields(state: Mapping[str, Any], *names: str) -> None:
    """Checks that a `state_dict` has the named fields.

    Raises:
        ValueError: a field is missing.
    """
    for name in names:
        if name not in state:
            raise ValueError(f"state holds no {name!r}: pass what state_dict() returned")


@dataclasses.dataclass(frozen=True)
class Graded:
    """The responses of a batch with their rewards, the input of rescue, substitution and packing.

    The record has P prompts with R responses each. Batch functions return a new record.

    Attributes:
        problem_ids: [P] problem ids.
        prompts: [P] token ids of each prompt.
        golds: [P] gold answers.
        token_ids: [P][R] token ids of each response.
        logprobs: [P][R] the sampler's log-prob of each response token, in nats.
        texts: [P][R] decoded responses.
        finish_reasons: [P][R] "stop" or "length".
        reward_PR: rewards of the complete responses, in [0, 1], float32.
        rescued_PR: True for a response that rescue put in the place of a sampled one; None in the
            constructor: all False.
        versions: [P][R] `Response.versions`, empty for a rescued response. None if unknown: all
            tokens then count as sampled by the present policy.
        parts: [P][R] named numbers that reward functions returned beside the reward, empty for a
            rescued response; None if no response has any.
        correct_at: reward from which a response counts as correct.
        answers: [P][R] the answer that the grader found in each response, shortened to 1,000
            characters; None where it found none, or a reward function graded. None if unknown.
        reasons: [P][R] one line that says why each response is wrong, or how grading failed; "" if
            there is no more to say. None if unknown.
        failed: [P][R] True where grading failed: the reward is 0 and says nothing of the response.
            None if unknown.

    Raises:
        ValueError: a reward is outside [0, 1] or not finite, because such a reward would spoil the
            baseline of its group; or a field does not have the P prompts or [P][R] responses of
            `reward_PR`.
    """

    problem_ids: Sequence[str]
    prompts: Sequence[Any]
    golds: Sequence[Any]
    token_ids: Sequence[Sequence[Sequence[int]]]
    logprobs: Sequence[Sequence[Sequence[float]]]
    texts: Sequence[Sequence[str]]
    finish_reasons: Sequence[Sequence[str]]
    reward_PR: np.ndarray
    rescued_PR: np.ndarray | None = None
    versions: Sequence[Sequence[Versions]] | None = None
    parts: Sequence[Sequence[Mapping[str, float | None]]] | None = None
    correct_at: float = 1.0
    answers: Sequence[Sequence[str | None]] | None = None
    reasons: Sequence[Sequence[str]] | None = None
    failed: Sequence[Sequence[bool]] | None = None

    def __post_init__(self) -> None:
        reward_PR = np.asarray(self.reward_PR, np.float32)
        self._check_sizes(reward_PR)
        require_rewards(reward_PR, self.problem_ids)
        object.__setattr__(self, "reward_PR", reward_PR)
        rescued_PR = self.rescued_PR
        rescued_PR = np.zeros(reward_PR.shape, bool) if rescued_PR is None else rescued_PR
        object.__setattr__(self, "rescued_PR", np.asarray(rescued_PR, bool))

    def _check_sizes(self, reward_PR: np.ndarray) -> None:
        if reward_PR.ndim != 2 or len(reward_PR) != len(self.problem_ids):
            raise ValueError(
                f"reward_PR has shape {reward_PR.shape} for {len(self.problem_ids)} problem ids: "
                "expected [P, R]; give a row of rewards for each problem"
            )
        prompts, responses = reward_PR.shape
        for name in ("prompts", "golds"):
            if (count := len(getattr(self, name))) != prompts:
                raise ValueError(f"{name} holds {count} of {prompts} prompts: give one each")
        for name in (
            *("token_ids", "logprobs", "texts", "finish_reasons"),
            *("versions", "parts", "answers", "reasons", "failed"),
        ):
            groups = getattr(self, name)
            if groups is None:
                continue
            counts = list(map(len, groups))
            if counts != [responses] * prompts:
                raise ValueError(
                    f"{name} holds groups of {counts[:8]} responses, reward_PR has shape "
                    f"{reward_PR.shape}: give each response its reward"
                )
        if self.rescued_PR is not None and np.shape(self.rescued_PR) != reward_PR.shape:
            raise ValueError(
                f"rescued_PR has shape {np.shape(self.rescued_PR)}, reward_PR {reward_PR.shape}: "
                "give one value a response"
            )

    def __len__(self) -> int:
        return len(self.problem_ids)

    @property
    def correct_PR(self) -> np.ndarray:
        """True for responses that count as correct; see `correct_rewards`."""
        return correct_rewards(self.reward_PR, self.correct_at)

    @property
    def response_tokens(self) -> int:
        """Tokens of all responses together."""
        return sum(len(response) for group in self.token_ids for response in group)

    @property
    def informative_P(self) -> np.ndarray:
        """True for prompts whose R rewards differ; the advantages of the others are 0."""
        return self.reward_PR.max(axis=1) != self.reward_PR.min(axis=1)


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """Packed rows, ready for the update.

    A row holds several sequences (prompt + response), its segments. If prompts are shared, a
    segment is a prompt without its last token, followed by its branches: each is that last token
    and a response. Every [B, T] float field is aligned with `models.token_logprobs`: entry t
    belongs to the prediction of token t+1. Rows after the last sequence are padding.

    Attributes:
        token_BT: int32 token ids, 0 at padding.
        position_BT: int32, position in the sequence, from 0.
        segment_BT: int32, number of the segment in its row, from 1; 0 at padding.
        weight_BT: float32, weight of the token's surrogate in the loss; 0 outside responses.
            These weights alone express objective.aggregation, so the loss is a plain sum and does
            not depend on the packing.
        advantage_BT: float32, the sequence's advantage at each response token, 0 elsewhere.
        old_logp_BT: float32, log-probs in nats under the policy that sampled the response (or as
            recomputed by the trainer), 0 outside responses.
        temperature_BT: float32 > 0, temperature of the trained policy, 1 at padding.
        fresh_BT: float32, 1 at response tokens that the present policy sampled, 0 at tokens of
            older policies, of rescued or copied responses, and elsewhere. The log-prob gap and the
            entropy that stages use are measured over these tokens.
        sequences: number of sequences that count in the loss.
        tokens: number of response tokens that count in the loss.
        padding_share: share of positions that carry no token, in [0, 1].
        attention_imbalance: attention cost (sum of squared lengths) of the costliest shard of each
            microbatch, divided by the mean over shards; numerator and denominator are summed over
            microbatches. 1 if all shards have equal work.
        sampler_logp_BT: the sampler's log-probs, in nats, if the trainer has recomputed
            `old_logp_BT`; else None.
        branch_BT: int32, number of the branch in its segment, from 1; 0 at the tokens that the
            branches share and at padding. None if no prompt is shared.
        shared_prompt_tokens: prompt tokens that sharing saved: they would be in `token_BT` again.
    """

    token_BT: np.ndarray
    position_BT: np.ndarray
    segment_BT: np.ndarray
    weight_BT: np.ndarray
    advantage_BT: np.ndarray
    old_logp_BT: np.ndarray
    temperature_BT: np.ndarray
    fresh_BT: np.ndarray
    sequences: int
    tokens: int
    padding_share: float
    attention_imbalance: float = 1.0
    sampler_logp_BT: np.ndarray | None = None
    branch_BT: np.ndarray | None = None
    shared_prompt_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class StageState:
    """The run's position in its stages, and the settings of the present stage.

    Attributes:
        stage: index into `config.stages`, from 0; NO_STAGE before the first is entered.
        first_step: global step at which this stage began.
        steps_done: steps done in this stage, including steps without an update.
        temperature: sampling temperature of this stage.
        max_response_tokens: response budget of this stage.
        dropped_ids: problems dropped from the training set, in the order of dropping.
        target_diversity: share of distinct 4-grams in responses to the fixed probe set at the
            stage's start, in [0, 1]; None if the temperature rule does not need it.
        target_probe: description of what `target_diversity` was measured on. Two diversities are
            comparable only if their descriptions are equal. None if unknown (checkpoints of earlier
            versions).
        first_entropy: mean policy entropy (nats) of the stage's first steps that measured one; None
            before the first of them.
        last_entropy: mean policy entropy (nats) of as many newest steps that measured one.
        decisions: decisions made on entering this stage: dicts of kind, value, reason, table.
        finished: True if the run is over: its last stage has ended, or `rollout.total_tokens` are
            spent.
        first_entropies, last_entropies: what the two means are taken over.
        entropies: number of steps of the stage that measured an entropy.
        recent: (reward, clip ratio, entropy) of the newest steps, oldest first; () if no rule of
            the stage needs them.
        scores: (steps done, held-out score) of the newest held-out scores; () likewise.
        ending: the decision of the rule that ends the stage before its last step; else None.
    """

    stage: int = NO_STAGE
    first_step: int = 0
    steps_done: int = 0
    temperature: float = 0.0
    max_response_tokens: int = 0
    dropped_ids: tuple[str, ...] = ()
    target_diversity: float | None = None
    target_probe: str | None = None
    first_entropy: float | None = None
    last_entropy: float | None = None
    decisions: tuple[dict[str, Any], ...] = ()
    finished: bool = False
    first_entropies: tuple[float, ...] = ()
    last_entropies: tuple[float, ...] = ()
    entropies: int = 0
    recent: tuple[tuple[float | None, float | None, float | None], ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    ending: dict[str, Any] | None = None
