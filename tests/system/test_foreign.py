"""A foreign file ends in a value of the expected kind or in one line that names file and remedy."""

from __future__ import annotations

import io
import os
import re
import socket

import pytest

from polaris_jax.config import ConfigError
from polaris_jax.system import foreign
from polaris_jax.system.foreign import (
    ForeignFileError,
    bounded_lines,
    naming,
    parse_json,
    printable,
    read_bytes,
    read_json,
    require_plain_name,
)

# Text of a JSON file that must hold an object -> what the error says.
DEFECTS = {
    "empty": (b"", "not valid JSON"),
    "text": (b"hello", "not valid JSON"),
    "cut off": (b'{"a": [1, 2', "not valid JSON"),
    "two values": (b"{}{}", "not valid JSON"),
    "string without end": (b'{"a": "' + b'\\"' * 1_000_000, "not valid JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "no UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "no UTF-8"),
    "NUL": (b'{"a": "\x00"}', "not valid JSON"),
    "list": (b"[]", "expected an object, got a list"),
    "null": (b"null", "expected an object, got null"),
    "number": (b"7", "expected an object, got int"),
    "true": (b"true", "expected an object, got true or false"),
    "NaN": (b'{"a": NaN}', "no finite number"),
    "infinite": (b'{"a": [-Infinity]}', "no finite number"),
    "past a float": (b'{"a": 1e999}', "no finite number"),
    "many digits": (b'{"a": ' + b"9" * 10_000 + b"}", "thousands of digits"),
    "name twice": (b'{"b": {"a": 1, "a": 2}}', "'a' twice"),
    "deep lists": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 100"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 100"),
    "deep, never closed": (b"[" * 1_000_000, "nested deeper than 100"),
    "deep behind brackets in texts": (b'{"]]]": "[[", "a": ' + b"[" * 200, "nested deeper"),
    "just too deep": (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 100"),
    "closed too often": (b"]" * 200 + b"[" * 150, "not valid JSON"),
    "too many values": (
        b'{"a": [' + b"0," * (foreign.MAX_VALUES + 1) + b"0]}",
        "values, more than",
    ),
    "too many lists": (b'{"a": [' + b"[]," * foreign.MAX_VALUES + b"[]]}", "values, more than"),
}
FINE = {
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "deep enough": (b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}", None),
    "brackets in texts": (b'{"a": "' + b"[{" * 5000 + b'\\""}', {"a": "[{" * 5000 + '"'}),
    "commas in texts": (b'{"a": "' + b"," * (foreign.MAX_VALUES + 1) + b'"}', None),
    "half of a character": (b'{"a": "\\ud800"}', {"a": "\ud800"}),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_one_line_with_file_and_remedy(name):
    data, reason = DEFECTS[name]
    with pytest.raises(ForeignFileError, match=re.escape(reason)) as caught:
        parse_json(data, where="config.json", remedy="download it again")
    text = str(caught.value)
    assert text.startswith("config.json: ")
    assert text.endswith("; download it again")
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize("name", FINE)
def test_what_is_unusual_and_fine_is_read(name):
    data, value = FINE[name]
    read = parse_json(data, where="config.json")
    assert value is None or read == value


def test_data_rows_may_repeat_a_name_and_hold_nan():
    value = parse_json(b'{"a": 1, "a": NaN}', where="f", strict=False)
    assert value["a"] != value["a"]


def test_a_file_over_its_limit_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b" " * 101)
    with pytest.raises(ForeignFileError, match=r"config\.json: has more than 100 bytes.*; mend it"):
        read_bytes(tmp_path / "config.json", most_bytes=100, remedy="mend it")
    assert len(read_bytes(tmp_path / "config.json", most_bytes=101)) == 101


def _socket(path):
    place = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(place)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: os.mkfifo(path), "a named pipe"),
        (lambda path: path.mkdir(), "a directory"),
        (_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
    ids=["pipe", "directory", "socket", "device"],
)
def test_only_regular_files_are_opened(tmp_path, make, kind):
    make(tmp_path / "x.json")
    with pytest.raises(ForeignFileError, match=rf"x\.json: is {kind}, expected a regular file; "):
        read_json(tmp_path / "x.json")


def test_a_link_to_a_file_is_read_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "b.json").symlink_to("a.json")
    assert read_json(tmp_path / "b.json") == {"a": 1}
    with pytest.raises(FileNotFoundError) as caught:
        read_json(tmp_path / "c.json")
    assert str(caught.value.filename).endswith("c.json")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 \\frac", "plain é 日本 \\frac"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x07\x7f\x00", "a\\rb\\x07\\x7f\\x00"),
        ("\x9b1m", "\\x9b1m"),
        ("abc\u202edcb\u2066\u200f\u061c", "abc\\u202edcb\\u2066\\u200f\\u061c"),
        ("\ud800", "\\ud800"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("one\ntwo\tthree", "one\\ntwo\\tthree"),
    ],
)
def test_hidden_characters_are_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_texts_of_several_lines_keep_them():
    assert printable("one\ntwo\tthree\r\x1b", lines=True) == "one\ntwo\tthree\\r\\x1b"


@pytest.mark.parametrize(
    "name", ["", 7, None, ["a"], "../a", "/etc/passwd", "a/b", "..", ".", "a\\b", "a\0b", "a\nb"]
)
def test_only_names_in_the_directory_are_taken(name):
    with pytest.raises(ForeignFileError, match=r"^index\.json: weight_map\.x="):
        require_plain_name(name, where="index.json: weight_map.x")
    assert require_plain_name("a.safetensors", where="") == "a.safetensors"


@pytest.mark.parametrize(
    "error", [TypeError("int"), KeyError("a"), ValueError("b\nc"), RecursionError(), MemoryError()]
)
def test_what_a_library_raises_is_named(error):
    one_line = pytest.raises(ConfigError, match=r"^model\.gguf: .*; download it again$")
    with one_line, naming("model.gguf"):
        raise error


def test_what_names_the_file_already_stays():
    with pytest.raises(ValueError, match=r"^model\.gguf: this$"), naming("model.gguf"):
        raise ValueError("model.gguf: this")


def test_long_lines_are_skipped_and_the_next_are_read():
    data = b"short\n\n" + b"x" * 100 + b"\n" + b"y" * 50 + b"\nlast"
    assert list(bounded_lines(io.BytesIO(data), most_bytes=50)) == [
        (1, b"short\n"),
        (3, None),
        (4, b"y" * 50 + b"\n"),
        (5, b"last"),
    ]
    assert list(bounded_lines(io.BytesIO(b"x" * 51), most_bytes=50)) == [(1, None)]


class StoreFile(io.RawIOBase):
    """A file of an object store, as fsspec's: its `readline` takes no limit."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)

    def readline(self):  # pyright: ignore
        return self._data.readline()


@pytest.mark.parametrize("data", [b"a\n\nbb\nccc", b"", b"x" * 50 + b"\nend\n"])
def test_lines_of_a_store_are_those_of_a_disk(data):
    store = StoreFile(data)
    found = list(bounded_lines(store, most_bytes=9))
    assert found == list(bounded_lines(io.BytesIO(data), most_bytes=9))
    assert not store.closed
