"""The warm start: it learns, packs without leaking, and repeats bit for bit."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polaris_jax.config import RunConfig, WarmstartSection
from polaris_jax.demo import warmstart
from polaris_jax.demo.warmstart import warm_start
from polaris_jax.system.files import as_place
from polaris_jax.system.progress import Progress
from tests.support.train.cases import QWEN3, logprobs, make_model
from tests.tolerances import LOGPROB_ATOL, LOSS_RTOL

SECTION = WarmstartSection(steps=12, batch_size=8, learning_rate=1e-2, seed=0)


def copy_examples(count=64, seed=0):
    """The completion repeats the prompt's one letter: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(1, 8, count)
    lengths = rng.integers(2, 12, count)
    return [([int(x)] * 3, [int(x)] * int(n)) for x, n in zip(letters, lengths, strict=True)]


def test_the_loss_falls_and_the_source_stays():
    model, losses = make_model(), []
    before = jax.tree.map(lambda x: np.array(x, copy=True), model)
    trained = warm_start(
        model, copy_examples(), SECTION, on_step=lambda step, loss: losses.append((step, loss))
    )
    assert [step for step, _ in losses] == list(range(SECTION.steps))
    assert losses[-1][1] < 0.5 * losses[0][1]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(model), strict=True):
        assert (np.asarray(b) == a).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}


def test_it_repeats_bit_for_bit_and_follows_the_seed():
    def leaves(seed):
        section = WarmstartSection(steps=3, batch_size=8, seed=seed)
        trained = warm_start(make_model(), copy_examples(), section)
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained)]

    assert leaves(0) == leaves(0)
    assert leaves(0) != leaves(1)


def uneven_examples():
    """Batches of eight need two or three rows."""
    return [([x % 7 + 1] * 3, [x % 7 + 1] * (2 + 3 * (x % 5))) for x in range(64)]


@pytest.mark.slow
def test_several_steps_a_call_are_those_of_one_call_each(monkeypatch):
    """Parameters to the last bit; calls end where the number of rows changes."""
    section = WarmstartSection(steps=13, batch_size=8, seed=1)
    heights: list[int] = []
    make = warmstart._runs
    monkeypatch.setattr(warmstart, "_runs", lambda given: heights.extend(given) or make(given))

    def trained(steps_a_call):
        monkeypatch.setattr(warmstart, "STEPS_A_CALL", steps_a_call)
        told = []
        model = warm_start(
            make_model(), uneven_examples(), section, on_step=lambda *step: told.append(step)
        )
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)], told

    (several, told), (single, told_singly) = trained(4), trained(1)
    assert several == single
    assert [step for step, _ in told] == [step for step, _ in told_singly] == list(range(13))
    losses, want = ([loss for _, loss in each] for each in (told, told_singly))
    assert losses == pytest.approx(want, rel=LOSS_RTOL)  # what is told is summed in another order
    assert len(set(heights)) == 2


def test_runs_are_short_neighbours_of_one_height(monkeypatch):
    monkeypatch.setattr(warmstart, "STEPS_A_CALL", 3)
    assert list(warmstart._runs([5] * 7 + [6] + [5, 5])) == [(0, 3), (3, 3), (6, 1), (7, 1), (8, 2)]
    assert list(warmstart._runs([])) == []


def test_the_first_loss_is_the_plain_mean_over_completion_tokens():
    model, examples, losses = make_model(), copy_examples(8), []
    warm_start(
        model,
        examples,
        WarmstartSection(steps=1, batch_size=8),
        on_step=lambda _, loss: losses.append(loss),
    )
    length = max(len(prompt) + len(completion) for prompt, completion in examples)
    token_BT, is_completion_BT = np.zeros((8, length), np.int32), np.zeros((8, length), bool)
    for row, (prompt, completion) in enumerate(examples):
        end = len(prompt) + len(completion)
        token_BT[row, :end] = [*prompt, *completion]
        is_completion_BT[row, len(prompt) : end] = True
    position_BT = np.broadcast_to(np.arange(length), token_BT.shape)
    logp_BT, _ = logprobs(model, token_BT, position_BT)  # causal: what follows does not matter
    want = -np.asarray(logp_BT)[:, :-1][is_completion_BT[:, 1:]].mean()
    assert losses[0] == pytest.approx(want, abs=LOGPROB_ATOL)


def test_an_epoch_visits_every_example_once():
    plans = list(warmstart._batches(copy_examples(64), WarmstartSection(steps=16, batch_size=8)))
    for epoch in (plans[:8], plans[8:]):
        assert sorted(np.concatenate(epoch)) == list(range(64))
    assert (np.concatenate(plans[:8]) != np.concatenate(plans[8:])).any()


@pytest.mark.parametrize(
    ("needed", "given"),
    [
        ([], []),
        ([5], [5]),
        ([3, 3, 3, 9], [3, 3, 3, 9]),
        ([1, 4, 4, 4, 9], [4, 4, 4, 4, 9]),
        ([1, 9, 9, 9], [1, 9, 9, 9]),
    ],
)
def test_batches_get_one_of_two_counts_of_rows(needed, given):
    assert warmstart._row_counts(needed) == given


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (copy_examples(4), r"warmstart.batch_size=8: there are 4 examples"),
        ([*copy_examples(8), ([1], [])], r"example 8: the completion is empty"),
        ([*copy_examples(8), ([1], [QWEN3.vocab_size])], r"example 8: token ids 0 to 64"),
    ],
    ids=["too-few", "empty", "vocabulary"],
)
def test_bad_examples_are_named(examples, message):
    with pytest.raises(ValueError, match=message):
        warm_start(make_model(), examples, SECTION)


CONFIG = dataclasses.replace(RunConfig(), warmstart=WarmstartSection(steps=1, examples=1))


def test_a_kill_while_other_weights_are_written_leaves_no_mark(tmp_path, monkeypatch):
    done = tmp_path / "warmstart.json"
    done.write_text(json.dumps({"of": "another warm start"}))

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(warmstart, "warm_start", lambda model, *_, **__: model)
    monkeypatch.setattr(warmstart, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        warmstart.make_base_model(CONFIG, as_place(tmp_path), Progress(enabled=False))
    assert not done.exists()


def test_what_a_kill_left_of_an_export_is_swept(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json.0123abcd.partial").write_text("{")
    monkeypatch.setattr(warmstart, "warm_start", lambda model, *_, **__: model)
    warmstart.make_base_model(CONFIG, as_place(tmp_path), Progress(enabled=False))
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.partial"))
