"""A response's text in pieces is its complete text, and no piece ends amid a character."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models.text_stream import BROKEN, CONTEXT_TOKENS, MOST_CONTEXT, TextStream


def as_bytes(ids):
    """A tokenizer whose ids are UTF-8 bytes."""
    return bytes(ids).decode(errors="replace")


def with_byte_fallback(ids):
    """SentencePiece's decoder: a run of bytes decodes as a whole or not at all.

    Ids below 256 are bytes, others spaces before a letter; a first space is lost.
    """
    text, run = "", b""
    for id in [*ids, None]:
        if id is not None and id < 256:
            run += bytes([id])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += BROKEN * len(run)
        run = b""
        text += "" if id is None else f" {chr(id)}"
    return text.removeprefix(" ")


def pieces(ids, cuts, decode, stops=()):
    stream, found, at = TextStream(decode, stops), [], 0
    for cut in [*cuts, len(ids)]:
        found.append(stream.push(ids[at:cut]))
        at = cut
    return [*found, stream.rest()], stream


@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=80))
def test_pieces_of_any_bytes_are_the_text(data, cuts):
    cuts = sorted(min(cut, len(data)) for cut in cuts)
    found, stream = pieces(list(data), cuts, as_bytes)
    assert "".join(found) == as_bytes(data)
    assert stream.chars == len(as_bytes(data))


@given(st.text(max_size=40), st.lists(st.integers(0, 160), max_size=160))
def test_no_piece_of_a_text_holds_half_a_character(text, cuts):
    data = list(text.encode(errors="ignore"))
    cuts = sorted(min(cut, len(data)) for cut in cuts)
    found, _ = pieces(data, cuts, as_bytes)
    assert BROKEN in as_bytes(data) or not any(BROKEN in piece for piece in found)


WORDS = st.lists(st.text(max_size=12) | st.sampled_from(["\U0001f600\U0001f603" * 9, "龘" * 30]))


@given(WORDS, st.lists(st.integers(0, 400), max_size=160))
def test_runs_of_bytes_are_whole_characters(words, cuts):
    ids = [i for word in words for i in (1000, *word.encode(errors="ignore"))]
    cuts = sorted(min(cut, len(ids)) for cut in cuts)
    found, _ = pieces(ids, cuts, with_byte_fallback)
    assert "".join(found) == with_byte_fallback(ids)


@given(
    st.lists(st.integers(0, 255) | st.just(1000), max_size=300),
    st.integers(1, 9),
    st.lists(st.integers(0, 255), max_size=8),
)
def test_bytes_that_are_no_characters_hold_nothing_up(ids, size, before):
    lengths = []

    def decode(ids):
        lengths.append(len(ids))
        return with_byte_fallback(ids)

    stream = TextStream(decode, before=before)
    found = [stream.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    found += [stream.push([1000]), stream.rest()]
    assert "".join(found).endswith(chr(1000))
    assert max(lengths) <= MOST_CONTEXT + CONTEXT_TOKENS + size


def test_the_text_goes_on_from_what_was_before():
    stream = TextStream(with_byte_fallback, before=[1000, 1001])
    assert stream.push([1002, 1003]) == f" {chr(1002)} {chr(1003)}"
    assert TextStream(with_byte_fallback).push([1002]) == chr(1002)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_it_ends_before_the_first_stop_string(text, stops):
    found, stream = pieces(list(text.encode()), range(len(text)), as_bytes, stops)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    whole = text[: min(ends)] if ends else text
    # Character by character the stop string that is complete first counts.
    first = min((text.find(s) + len(s), text.find(s)) for s in stops if s in text) if ends else None
    assert stream.stopped == bool(ends)
    assert "".join(found) in {whole, text[: first[1]] if first else text}


def test_a_stop_string_over_two_pieces_is_never_shown():
    found, stream = pieces(list(b"one END two"), [5, 6], as_bytes, ["END"])
    assert found == ["one ", "", "", ""]
    assert stream.stopped


def test_text_that_only_began_like_a_stop_string_comes_later():
    found, stream = pieces(list(b"a EN"), [3], as_bytes, ["END"])
    assert found == ["a ", "", "EN"]
    assert not stream.stopped


@pytest.mark.parametrize("seed", range(3))
def test_a_tokenizer_of_ours(seed):
    tokenizer, pick = build_tokenizer(), random.Random(seed)
    ids = [pick.randrange(len(tokenizer)) for _ in range(200)]

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    found, _ = pieces(ids, range(200), decode)
    assert "".join(found) == decode(ids)


def test_a_push_decodes_few_tokens():
    lengths = []

    def decode(ids):
        lengths.append(len(ids))
        return as_bytes(ids)

    pieces([0xFF] * 1000, range(1000), decode)  # never a complete character
    assert max(lengths) <= 3 * CONTEXT_TOKENS
