"""The ids that end a response: where they are read, that they travel, and that they end one."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from polaris_jax.checkpoint.convert import convert, describe_step, load_any
from polaris_jax.config import ConfigError
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models import Decoder, ModelConfig, load_config, load_pretrained, save_pretrained
from polaris_jax.models.tokenizer import (
    read_end_ids,
    sampled_stop_ids,
    save_end_ids,
    stop_token_ids,
)
from polaris_jax.rollout import Sampler, SamplerConfig, SamplingParams
from polaris_jax.rollout.request_checks import checked_stop_ids

TOKENIZER = build_tokenizer()
EOS: Any = TOKENIZER.eos_token_id
CONFIG = ModelConfig(
    vocab_size=len(TOKENIZER),
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
)
MODEL = Decoder.init(CONFIG, jax.random.key(0))


def saved(tmp_path, *, generation=None, config=None, model=MODEL):
    """A checkpoint whose two files name these ids."""
    save_pretrained(model, tmp_path / "model", tokenizer=TOKENIZER)
    if generation is not None:
        path = tmp_path / "model" / "generation_config.json"
        path.write_text(json.dumps({"eos_token_id": generation}))
    if config is not None:
        path = tmp_path / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": config}))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, (EOS,)),  # the tokenizer's, which save_pretrained puts into config.json
        ([5, EOS], None, (5, EOS)),
        (5, 6, (5, 6)),
        ([5, 6], [6, 7], (5, 6, 7)),
        (None, [-1, 10**6, 3], (3,)),  # ids outside of the vocabulary are never sampled
    ],
)
def test_both_files_are_read(tmp_path, generation, config, expected):
    path = saved(tmp_path, generation=generation, config=config)
    assert load_config(path).end_ids == expected
    assert load_pretrained(path)[0].config.end_ids == expected


@pytest.mark.parametrize("bad", ["</s>", [1, "2"], True, 1.5])
def test_what_is_no_id_is_refused_by_name(tmp_path, bad):
    with pytest.raises(ValueError, match=r"eos_token_id=.*must be a token id or a list"):
        load_config(saved(tmp_path, generation=bad))


def test_a_damaged_file_is_named(tmp_path):
    path = saved(tmp_path)
    (path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json: not valid JSON"):
        load_pretrained(path)


def test_they_are_no_part_of_the_architecture():
    other = dataclasses.replace(CONFIG, end_ids=(1, 2))
    assert other == CONFIG and hash(other) == hash(CONFIG)
    assert other.architecture() == CONFIG.architecture()
    assert "end_ids" not in CONFIG.architecture()
    assert ModelConfig(**CONFIG.architecture()) == CONFIG  # what older checkpoints recorded


def test_a_checkpoint_with_an_id_outside_the_vocabulary_samples(tmp_path):
    path = saved(tmp_path, generation=[5, 10**6])
    convert(str(path), str(tmp_path / "orbax"), form="orbax", dtype="auto")
    assert load_any(epath.Path(tmp_path / "orbax"))[0].config.end_ids == (5, EOS)


def test_somebodys_own_file_stays(tmp_path):
    save_end_ids((5,), epath.Path(tmp_path))
    save_end_ids((6,), epath.Path(tmp_path))
    assert read_end_ids(epath.Path(tmp_path), vocab_size=9) == (5,)


def test_they_survive_an_export_and_a_checkpoint(tmp_path):
    model = load_pretrained(saved(tmp_path, generation=[5, 6]))[0]
    save_pretrained(model, tmp_path / "again", tokenizer=TOKENIZER)
    assert load_config(tmp_path / "again").end_ids == (5, 6, EOS)
    convert(str(tmp_path / "model"), str(tmp_path / "orbax"), form="orbax", dtype="auto")
    assert load_any(epath.Path(tmp_path / "orbax"))[0].config.end_ids == (5, 6, EOS)
    convert(str(tmp_path / "orbax"), str(tmp_path / "back"), form="hf", dtype="auto")
    assert set(load_config(tmp_path / "back").end_ids) == {5, 6, EOS}


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(None, [5, 6], (5, 6)), (None, 7, (7,)), ([5], [6, 10**6], (5, 6))],
)
def test_what_config_json_alone_names_survives_a_conversion(tmp_path, generation, config, expected):
    path = saved(tmp_path, generation=generation, config=config)
    convert(str(path), str(tmp_path / "orbax"), form="orbax", dtype="auto")
    assert load_any(epath.Path(tmp_path / "orbax"))[0].config.end_ids == expected
    assert describe_step(epath.Path(tmp_path / "orbax" / "0"))[0].end_ids == expected
    convert(str(tmp_path / "orbax"), str(tmp_path / "back"), form="hf", dtype="auto")
    assert load_config(tmp_path / "back").end_ids == expected
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == config


def test_a_special_id_that_no_checkpoint_can_have_is_refused_by_name(tmp_path):
    path = saved(tmp_path)
    fields = json.loads((path / "config.json").read_text()) | {"pad_token_id": "<pad>"}
    (path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"config\.json: pad_token_id='<pad>': must be a token"):
        convert(str(path), str(tmp_path / "orbax"), form="orbax", dtype="auto")
    assert not (tmp_path / "orbax").exists()


def test_a_training_run_stops_at_them_and_at_the_tokenizers():
    assert stop_token_ids(TOKENIZER, (5, 6)) == tuple(sorted({5, 6, *stop_token_ids(TOKENIZER)}))


def test_no_stop_id_lies_outside_of_the_models_vocabulary():
    """A tokenizer with tokens that were added behind the model's vocabulary still samples."""
    small = dataclasses.replace(CONFIG, vocab_size=EOS, end_ids=(5,))
    assert EOS in stop_token_ids(TOKENIZER, small.end_ids)
    ids = sampled_stop_ids(TOKENIZER, small)
    assert ids == tuple(i for i in stop_token_ids(TOKENIZER, (5,)) if i < EOS) and 5 in ids
    assert checked_stop_ids(ids, vocab_size=small.vocab_size) == ids
    assert sampled_stop_ids(TOKENIZER, CONFIG) == stop_token_ids(TOKENIZER)


def tokens_of(end_ids, **params) -> tuple[int, ...]:
    model = MODEL.with_rope_scaling(None)
    model = Decoder.from_params(dataclasses.replace(CONFIG, end_ids=end_ids), model.params())
    sampler = Sampler(model, SamplerConfig(slots=1, page_size=8, num_pages=9, max_len=64))
    ((response,),) = sampler.generate([[1, 2]], SamplingParams(max_tokens=40, **params))
    assert response.finish_reason == ("stop" if len(response.token_ids) < 40 else "length")
    return response.token_ids


def test_a_response_ends_at_them_unless_told_otherwise():
    endless = tokens_of((), temperature=1.0)
    assert len(endless) == 40
    end = endless[7]
    first = int(np.flatnonzero(np.array(endless) == end)[0])
    assert tokens_of((end,)) == endless[: first + 1]
    assert tokens_of((end,), stop_token_ids=()) == endless
    other = endless[3]
    first = int(np.flatnonzero(np.array(endless) == other)[0])
    assert tokens_of((end,), stop_token_ids=(other,)) == endless[: first + 1]
