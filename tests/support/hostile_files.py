"""Hostile and damaged files, one line a case: what spoils a good specimen, what the error names.

`CASES` is the table. A case has a kind; `specimen(kind, directory)` makes a good specimen of that
kind in an empty directory, `case.spoil(place)` damages it, and what reads it must then refuse it in
one line that holds `case.names` (or, for `skipped` rows of problems, must name the row and go on).
`tests/test_hostile_files.py` reads each one; drills take the same table.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fixtures.parity_cases import ARCHITECTURES, tensors, write_checkpoint
from tests.support.models.gguf_files import write_gguf

Spoil = Callable[[Path], Any]


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One hostile file.

    Attributes:
        name: unique.
        kind: key of `SPECIMENS`: what reads it.
        spoil: gets the specimen's path, which is a directory or a file.
        names: text that the error must hold.
        skipped: True if a row is left out with a message, and the others are read.
    """

    name: str
    kind: str
    spoil: Spoil
    names: str
    skipped: bool = False


# ---- good specimens


def _model(directory: Path) -> Path:
    """A checkpoint directory with weights, config.json and a tokenizer."""
    from polaris_jax.demo.tiny_tokenizer import build_tokenizer

    write_checkpoint(directory / "model", _ARCHITECTURE, "plain")
    build_tokenizer().save_pretrained(str(directory / "model"))
    return directory / "model"


def _gguf(directory: Path) -> Path:
    return write_gguf(
        directory / "model.gguf",
        "qwen3",
        _ARCHITECTURE,
        tensors(_ARCHITECTURE),
        tokenizer={
            "pre": "smollm",
            "tokens": _TOKENS,
            "types": [3, 4] + [1] * (len(_TOKENS) - 2),
            "merges": ["a b"],
            "eos": 0,
            "template": "{{ messages[0]['content'] }}<|end|>",
        },
    )


def _problems(directory: Path) -> Path:
    rows = [{"id": f"p{i}", "problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(3)]
    file = directory / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _table(directory: Path) -> Path:
    from polaris_jax.data.problems import write_problems
    from polaris_jax.records import Problem

    file = directory / "problems.parquet"
    write_problems([Problem(f"p{i}", f"What is {i}+1?", str(i + 1)) for i in range(3)], file)
    return file


def _document(directory: Path) -> Path:
    file = directory / "problems.json"
    file.write_text(json.dumps([{"problem": f"What is {i}+1?", "answer": i} for i in range(3)]))
    return file


def _checkpoint(directory: Path) -> Path:
    """A checkpoint of one step, converted from the model above."""
    from polaris_jax.checkpoint.convert import convert

    source = directory / "source"
    source.mkdir()
    convert(str(_model(source)), str(directory / "steps"), form="orbax", dtype="auto")
    return directory / "steps"


_BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
_ARCHITECTURE = dataclasses.replace(_BY_NAME["qwen3_wide_heads"], vocab_size=512)
_TOKENS = ["<|end|>", "<think>", "a", "b", "ab", "1", "2", "12", "Ġ"]
SPECIMENS: dict[str, Callable[[Path], Path]] = {
    "model": _model,
    "tokenizer": _model,
    "template": _model,
    "gguf": _gguf,
    "problems": _problems,
    "table": _table,
    "document": _document,
    "checkpoint": _checkpoint,
}


def specimen(kind: str, directory: Path) -> Path:
    """A good specimen of a kind, in an empty directory; returns the path that commands get."""
    return SPECIMENS[kind](directory)


# ---- how to spoil one


def replaced(name: str, data: bytes | str) -> Spoil:
    """Another content of a file of the specimen's directory."""

    def spoil(place: Path) -> None:
        file = place / name if place.is_dir() else place
        file.write_bytes(data.encode(errors="surrogatepass") if isinstance(data, str) else data)

    return spoil


def edited(name: str, **fields: Any) -> Spoil:
    """Other fields of a JSON file; `...` removes one."""

    def spoil(place: Path) -> None:
        value = json.loads((place / name).read_text()) | fields
        kept = {key: item for key, item in value.items() if item is not ...}
        (place / name).write_text(json.dumps(kept))

    return spoil


def instead(name: str, make: Callable[[Path], Any]) -> Spoil:
    """Something else in the place of a file."""

    def spoil(place: Path) -> None:
        file = place / name if place.is_dir() else place
        file.unlink(missing_ok=True)
        make(file)

    return spoil


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Another JSON header of model.safetensors, its length set to fit."""

    def spoil(place: Path) -> None:
        file = place / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        fields = json.loads(data[8 : 8 + length])
        changed = change(fields)
        text = changed if isinstance(changed, bytes) else json.dumps(changed or fields).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return spoil


def entry(**fields: Any) -> Spoil:
    """Other fields of the first tensor's entry."""

    def change(tensors: dict[str, Any]) -> None:
        first = next(name for name in tensors if name != "__metadata__")
        tensors[first] |= fields

    return header(change)


def renamed(name: str) -> Spoil:
    """Another name of the first tensor."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        first = next(n for n in tensors if n != "__metadata__")
        return {(name if n == first else n): value for n, value in tensors.items()}

    return header(change)


def index(weight_map: Any) -> Spoil:
    """An index in the place of the single file."""

    def spoil(place: Path) -> None:
        (place / "model.safetensors").unlink()
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def bytes_at(offset: int, data: bytes) -> Spoil:
    """Other bytes in a file; below 0 counts from its end."""

    def spoil(file: Path) -> None:
        old = bytearray(file.read_bytes())
        start = offset if offset >= 0 else len(old) + offset
        old[start : start + len(data)] = data
        file.write_bytes(bytes(old))

    return spoil


def cut(share: float, name: str = "") -> Spoil:
    """The first part of a file."""

    def spoil(place: Path) -> None:
        file = place / name if name else place
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])

    return spoil


def gguf(*parts: Any, fields: int = 1, tensors: int = 0, magic: bytes = b"GGUF") -> Spoil:
    """A GGUF file of parts: texts with their length, ints as (format, value)."""
    data = magic + struct.pack("<IQQ", 3, tensors, fields)
    for part in parts:
        if isinstance(part, str):
            data += struct.pack("<Q", len(part.encode())) + part.encode()
        elif isinstance(part, tuple):
            data += struct.pack("<" + part[0], part[1])
        else:
            data += part
    return replaced("", data)


def template(text: str) -> Spoil:
    """Another chat template."""

    def spoil(place: Path) -> None:
        (place / "chat_template.jinja").write_text(text)

    return spoil


def tokenizer(**fields: Any) -> Spoil:
    """Other fields of tokenizer.json."""
    return edited("tokenizer.json", **fields)


def lines(*rows: bytes) -> Spoil:
    """More lines of a jsonl file."""

    def spoil(file: Path) -> None:
        file.write_bytes(file.read_bytes() + b"".join(row + b"\n" for row in rows))

    return spoil


def parquet(make: Callable[[], Any], **options: Any) -> Spoil:
    """A parquet file of a table."""

    def spoil(file: Path) -> None:
        import pyarrow.parquet as pq

        pq.write_table(make(), file, compression="zstd", **options)

    return spoil


def dictionary(rows: int, megabytes: int) -> Callable[[], Any]:
    """A table of equal long questions, which takes a few KB as a file."""

    def make() -> Any:
        import pyarrow as pa

        text = pa.array(["x" * (megabytes << 20)])
        column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)
        return pa.table({"problem": column, "answer": pa.array(["1"] * rows)})

    return make


def nested(rows: int, megabytes: int) -> Callable[[], Any]:
    """A table of one row with a list of equal long texts."""

    def make() -> Any:
        import pyarrow as pa

        text = pa.array(["x" * (megabytes << 20)])
        column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)
        entries = pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), column)
        return pa.table({"problem": ["q"], "answer": ["1"], "tags": entries})

    return make


def manifest(**fields: Any) -> Spoil:
    """Other fields of a step's manifest, with the checksum of its own that fits."""

    def spoil(place: Path) -> None:
        import zlib

        file = place / "0/MANIFEST.json"
        body = json.loads(file.read_text()) | fields
        body.pop("self")
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        file.write_text(json.dumps(body | {"self": zlib.crc32(canonical)}))

    return spoil


def architecture(**fields: Any) -> Spoil:
    """Other fields of the architecture in a step's manifest."""

    def spoil(place: Path) -> None:
        old = json.loads((place / "0/MANIFEST.json").read_text())["architecture"]
        manifest(architecture=old | fields)(place)

    return spoil


def host(data: bytes) -> Spoil:
    """Another host state, which the manifest names with its size and checksum."""

    def spoil(place: Path) -> None:
        import zlib

        (place / "0/host.json").write_bytes(data)
        files = json.loads((place / "0/MANIFEST.json").read_text())["files"]
        files["host.json"] = {"size": len(data), "crc32": zlib.crc32(data)}
        manifest(files=files)(place)

    return spoil


def _noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


DEEP = b"[" * 100_000
HUGE = 10**9
PIPE, FOLDER = os.mkfifo, os.mkdir
DEVICE = lambda path: os.symlink("/dev/zero", path)  # noqa: E731
ESC = "\x1b[31m"

# Values of config.json that must be refused -> the field that the error names.
_CONFIG = {
    "layers: 10^9": ({"num_hidden_layers": HUGE}, "num_hidden_layers=1000000000"),
    "layers: 0": ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    "layers: -1": ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
    "layers: 2.5": ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5"),
    "layers: 2.0": ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0"),
    "layers: true": ({"num_hidden_layers": True}, "num_hidden_layers=True"),
    "layers: text": ({"num_hidden_layers": "2"}, "num_hidden_layers='2'"),
    "layers: null": ({"num_hidden_layers": None}, "num_hidden_layers=None"),
    "layers: list": ({"num_hidden_layers": [2]}, "num_hidden_layers=[2]"),
    "layers: absent": ({"num_hidden_layers": ...}, "num_hidden_layers=None"),
    "layers: one more": ({"num_hidden_layers": 3}, "is missing"),
    "vocabulary: 10^12": ({"vocab_size": 10**12}, "vocab_size=1000000000000"),
    "vocabulary: 4,000 digits": ({"vocab_size": 10**4000}, "vocab_size=10000"),
    "vocabulary: 2^22": ({"vocab_size": 1 << 22}, "has shape"),
    "width: 10^9": ({"hidden_size": HUGE}, "hidden_size=1000000000"),
    "width: another": ({"hidden_size": 4096}, "has shape"),
    "mlp: 10^9": ({"intermediate_size": HUGE}, "intermediate_size=1000000000"),
    "mlp: object": ({"intermediate_size": {"a": 1}}, "intermediate_size="),
    "heads: 10^9": ({"num_attention_heads": HUGE}, "num_attention_heads=1000000000"),
    "kv heads: 10^9": ({"num_key_value_heads": HUGE}, "num_key_value_heads=1000000000"),
    "kv heads: 2": ({"num_key_value_heads": 2}, "num_kv_heads=2"),
    "head width: 10^9": ({"head_dim": HUGE}, "head_dim=1000000000"),
    "head width: odd": ({"head_dim": 7}, "head_dim=7"),
    "positions: 10^18": ({"max_position_embeddings": 10**18}, "max_position_embeddings=1000"),
    "positions: -5": ({"max_position_embeddings": -5}, "max_position_embeddings=-5"),
    "theta: 0": ({"rope_theta": 0, "rope_parameters": ...}, "rope_theta=0"),
    "theta: 1e300": ({"rope_theta": 1e300, "rope_parameters": ...}, "rope_theta=1e+300"),
    "theta: text": ({"rope_theta": "x", "rope_parameters": ...}, "rope_theta='x'"),
    "theta: 10^400": ({"rope_theta": 10**400, "rope_parameters": ...}, "rope_theta=1000"),
    "eps: -1": ({"rms_norm_eps": -1}, "rms_norm_eps=-1"),
    "eps: 10": ({"rms_norm_eps": 10}, "rms_norm_eps=10"),
    "eps: list": ({"rms_norm_eps": []}, "rms_norm_eps=[]"),
    "tied: text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'"),
    "rope: list": ({"rope_scaling": [1]}, "rope_scaling=[1]"),
    "rope: unknown": ({"rope_scaling": {"rope_type": "x"}}, "rope_type='x'"),
    "rope: type list": ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type=['yarn']"),
    "rope: factor": ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor=-1"),
    "rope: factor 1e9": (
        {"rope_scaling": {"rope_type": "linear", "factor": 1e9}},
        "factor=1000000000.0",
    ),
    "rope: yarn of texts": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": "a"}},
        "beta_fast='a'",
    ),
    "rope: llama3 without": ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq"),
    "type: unknown": ({"model_type": "gpt2"}, "model_type='gpt2'"),
    "type: list": ({"model_type": ["qwen2"]}, "model_type=['qwen2']"),
    "type: ESC": ({"model_type": ESC}, "model_type='\\x1b[31m'"),
    "architectures: number": ({"architectures": 5}, "architectures=5"),
    "architectures: other": ({"architectures": ["GPT"]}, "architectures=['GPT']"),
    "layer types: number": ({"layer_types": 5}, "layer_types=5"),
    "layer types: mixed": ({"layer_types": [1, "x"]}, "layer_types=[1, 'x']"),
    "layer types: sliding": ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
    "activation: list": ({"hidden_act": ["silu"]}, "hidden_act="),
    "quantised": ({"quantization_config": {"quant_method": "awq"}}, "quant_method='awq'"),
    "end id: text": ({"eos_token_id": "x"}, "eos_token_id='x'"),
    "end id: nested": ({"eos_token_id": [[1]]}, "eos_token_id="),
}
# Contents of a JSON file that is an object -> what the error says of it.
_JSON = {
    "empty": (b"", "not valid JSON"),
    "cut off": (b'{"a": [1', "not valid JSON"),
    "deep": (DEEP, "nested deeper"),
    "deep objects": (b'{"a":' * 100_000, "nested deeper"),
    "list": (b"[]", "expected an object, got a list"),
    "null": (b"null", "expected an object, got null"),
    "no UTF-8": (b'{"a": "\xff\xfe"}', "no UTF-8"),
    "noise": (_noise(1000), "no UTF-8"),
    "many digits": (b'{"a": ' + b"9" * 9000 + b"}", "digits"),
    "too large": (b" " * ((4 << 20) + 1), "more than 4,194,304 bytes"),
}
_STRICT = {
    "NaN": (b'{"a": NaN}', "no finite number"),
    "infinite": (b'{"a": 1e999}', "no finite number"),
    "field twice": (b'{"vocab_size": 1, "vocab_size": 2}', "twice"),
}
_ENTRIES = {
    "no dtype": ({"dtype": None}, "lacks dtype, shape or data_offsets"),
    "unknown dtype": ({"dtype": "F8_E4M3"}, "F8_E4M3"),
    "dtype of ESC": ({"dtype": ESC}, "\\x1b[31m"),
    "shape of text": ({"shape": "ab"}, "lacks dtype, shape"),
    "shape of bools": ({"shape": [True, True]}, "impossible shape"),
    "shape below 0": ({"shape": [-1, -1]}, "impossible shape"),
    "shape of floats": ({"shape": [2.0]}, "impossible shape"),
    "shape of 10^12": ({"shape": [10**12, 10**12]}, "bytes"),
    "shape past 64 bits": ({"shape": [1 << 63, 2]}, "impossible shape"),
    "nine axes": ({"shape": [1] * 9}, "impossible shape"),
    "shape too small": ({"shape": [1]}, "bytes"),
    "offsets of text": ({"data_offsets": "ab"}, "lacks dtype, shape"),
    "one offset": ({"data_offsets": [0]}, "lacks dtype, shape"),
    "offsets backwards": ({"data_offsets": [8, 0]}, "impossible shape or offset"),
    "offset below 0": ({"data_offsets": [-4, 0]}, "impossible shape or offset"),
    "offset behind the file": ({"data_offsets": [0, 1 << 40]}, "bytes"),
    "offset past 64 bits": ({"data_offsets": [0, 1 << 70]}, "impossible shape or offset"),
    "bool offsets": ({"data_offsets": [False, True]}, "impossible shape or offset"),
}

MODEL = [
    *(Hostile(f"config: {n}", "model", edited("config.json", **f), e) for n, (f, e) in
      _CONFIG.items()),
    *(Hostile(f"config.json: {n}", "model", replaced("config.json", d), e)
      for n, (d, e) in (_JSON | _STRICT).items()),
    *(Hostile(f"entry: {n}", "model", entry(**f), e) for n, (f, e) in _ENTRIES.items()),
    Hostile("config.json is a pipe", "model", instead("config.json", PIPE), "a named pipe"),
    Hostile("config.json is a folder", "model", instead("config.json", FOLDER), "a directory"),
    Hostile("config.json is a device", "model", instead("config.json", DEVICE), "a device"),
    Hostile("weights are a pipe", "model", instead("model.safetensors", PIPE), "a named pipe"),
    Hostile("weights are a device", "model", instead("model.safetensors", DEVICE), "a device"),
    Hostile("weights are a folder", "model", instead("model.safetensors", FOLDER), "a directory"),
    Hostile("weights: empty", "model", replaced("model.safetensors", b""), "do not hold"),
    Hostile("weights: half", "model", cut(0.5, "model.safetensors"), "bytes"),
    Hostile("weights: noise", "model", replaced("model.safetensors", _noise(999)), "do not hold"),
    Hostile("weights: long header", "model",
            replaced("model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"), "do not hold"),
    Hostile("weights: header of 64 MiB", "model",
            replaced("model.safetensors", (64 << 20).to_bytes(8, "little") + bytes(65 << 20)),
            "longer than"),
    Hostile("weights: deep header", "model", header(lambda _: DEEP), "nested deeper"),
    Hostile("weights: header is a list", "model", header(lambda _: b"[]"), "expected an object"),
    Hostile("weights: header of no UTF-8", "model", header(lambda _: b'{"\xff": 1}'), "no UTF-8"),
    Hostile("weights: name twice", "model",
            header(lambda t: json.dumps(t).encode()[:-1] + b', "x": 1, "x": 2}'), "'x' twice"),
    Hostile("weights: entry is a number", "model", header(lambda t: t | {"x": 7}), "entry of x"),
    Hostile("weights: entry is a list", "model", header(lambda t: t | {"x": []}), "entry of x"),
    Hostile("weights: no tensors", "model", header(lambda _: b"{}"), "bytes"),
    Hostile("weights: a hole", "model", header(lambda t: {
        n: e for i, (n, e) in enumerate(t.items()) if i != 1}), "bytes between"),
    Hostile("weights: ESC in a name", "model", renamed(f"model.{ESC}x"), "is missing"),
    Hostile("weights: long name", "model", renamed("x" * 100_000), "is missing"),
    Hostile("generation_config: list", "model", replaced("generation_config.json", b"[1]"),
            "generation_config.json: expected an object"),
    Hostile("generation_config: deep", "model", replaced("generation_config.json", DEEP),
            "generation_config.json: nested deeper"),
    Hostile("generation_config: pipe", "model", instead("generation_config.json", PIPE),
            "a named pipe"),
    Hostile("generation_config: end id of text", "model",
            replaced("generation_config.json", b'{"eos_token_id": "x"}'), "eos_token_id='x'"),
    *(Hostile(f"index: {name!r}", "model", index({"model.norm.weight": name}), words)
      for name, words in (
          ("../x.safetensors", "leads out"), ("/etc/passwd", "leads out"),
          ("a/x.safetensors", "leads out"), ("..", "leads out"), ("a\\b", "leads out"),
          ("gs://b/x", "leads out"), ("", "expected the name"), (7, "expected the name"),
          (None, "expected the name"), (["a"], "expected the name"), ("a\0b", "no name of a file"),
          (f"{ESC}.safetensors", "\\x1b"), ("x" * 300, "no name of a file"),
          ("absent.safetensors", "missing"))),
    Hostile("index: no map", "model", index([]), "no object weight_map"),
    Hostile("index: empty map", "model", index({}), "no object weight_map"),
]  # fmt: skip
TOKENIZER = [
    *(Hostile(f"tokenizer.json: {n}", "tokenizer", replaced("tokenizer.json", d), "tokenizer.json")
      for n, (d, _) in _JSON.items()),
    *(Hostile(f"{file}: {n}", "tokenizer", replaced(file, d), file)
      for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
      for n, (d, _) in _JSON.items() if n in ("deep", "list", "cut off", "no UTF-8")),
    Hostile("tokenizer.json is a pipe", "tokenizer", instead("tokenizer.json", PIPE), "named pipe"),
    Hostile("tokenizer_config is a pipe", "tokenizer", instead("tokenizer_config.json", PIPE),
            "named pipe"),
    Hostile("chat_template is a pipe", "tokenizer", instead("chat_template.jinja", PIPE),
            "named pipe"),
    Hostile("chat_template of no UTF-8", "tokenizer", replaced("chat_template.jinja", b"\xff"),
            "chat_template.jinja: byte 0"),
    Hostile("chat_template of 5 MB", "tokenizer", replaced("chat_template.jinja", "x" * 5_000_000),
            "chat_template.jinja: has more than"),
    Hostile("tokenizer: no model", "tokenizer", tokenizer(model=...), "does not load"),
    Hostile("tokenizer: model of text", "tokenizer", tokenizer(model="x"), "does not load"),
    Hostile("tokenizer: unknown model", "tokenizer", tokenizer(model={"type": "X"}), "not load"),
    Hostile("tokenizer: vocabulary of numbers", "tokenizer",
            tokenizer(model={"type": "BPE", "vocab": [1], "merges": []}), "does not load"),
    Hostile("tokenizer: merges of nothing", "tokenizer",
            tokenizer(model={"type": "BPE", "vocab": {}, "merges": ["a b"]}), "does not load"),
    Hostile("tokenizer: added token of number", "tokenizer", tokenizer(added_tokens=[7]),
            "does not load"),
    Hostile("tokenizer: bad pattern", "tokenizer", tokenizer(pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
            "does not load"),
    Hostile("tokenizer: decoder of patterns", "tokenizer", tokenizer(decoder={
        "type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}), "decoder.pattern"),
    Hostile("tokenizer: decoder that swells", "tokenizer", tokenizer(decoder={
        "type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 10_000}]}),
            "decoder.content"),
    Hostile("tokenizer: slow pattern", "tokenizer", tokenizer(pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "(?:W|h|a|t|.)+(?:.)+(?:.)+(?:.)+(?:.)+(?:.)+!!"},
        "behavior": "Isolated", "invert": False}), "chat template fails"),
]  # fmt: skip
TEMPLATE = [
    Hostile("template: loop", "template", template(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
            "takes more than"),
    Hostile("template: memory", "template", template("{{ 'a' * 10 ** 11 }}"), "MemoryError"),
    Hostile("template: doubling", "template", template(
        "{% set ns = namespace(t='aaaaaaaaaa') %}{% for i in range(60) %}"
        "{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}"), "chat template fails"),
    Hostile("template: a long prompt", "template", template("{{ 'a' * 10 ** 7 }}"), "characters"),
    Hostile("template: large number", "template", template("{{ 9 ** (9 ** 9) }}"),
            "takes more than"),
    Hostile("template: exception", "template", template(
        "{{ raise_exception('no \x1b[31m\nuser turns') }}"), "no \\x1b[31m user turns"),
    Hostile("template: syntax", "template", template("{% if %}"), "chat template fails"),
    Hostile("template: unknown filter", "template", template("{{ 1 | nothing }}"), "nothing"),
    Hostile("template: undefined call", "template", template("{{ nothing() }}"), "nothing"),
    Hostile("template: out of the sandbox", "template", template(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"), "chat template fails"),
    Hostile("template: globals", "template", template(
        "{{ raise_exception.__globals__['os'].system('touch executed') }}"), "template fails"),
    Hostile("template: recursion", "template", template(
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "recursion"),
    Hostile("template: include", "template", template("{% include '/etc/passwd' %}"),
            "chat template fails"),
    Hostile("template: type", "template", template("{{ 'a' + 1 }}"), "chat template fails"),
]  # fmt: skip
_KEY = "general.architecture"
GGUF = [
    Hostile("gguf: empty", "gguf", replaced("", b""), "not a whole GGUF file"),
    Hostile("gguf: noise", "gguf", replaced("", _noise(1000)), "does not begin with GGUF"),
    Hostile("gguf: a pipe", "gguf", instead("", PIPE), ".gguf"),
    Hostile("gguf: half", "gguf", cut(0.5), "not a whole GGUF file"),
    Hostile("gguf: cut in the header", "gguf", cut(0.05), "not a whole GGUF file"),
    Hostile("gguf: version 99", "gguf", bytes_at(4, b"\x63"), "version 99"),
    Hostile("gguf: big-endian", "gguf", bytes_at(4, b"\0\0\0\3"), "little-endian"),
    Hostile("gguf: 2^64 tensors", "gguf", bytes_at(8, b"\xff" * 8), "tensors, more than"),
    Hostile("gguf: 2^64 fields", "gguf", bytes_at(16, b"\xff" * 8), "fields of metadata"),
    Hostile("gguf: 2^40 bytes of name", "gguf", gguf(("Q", 1 << 40)), "bytes in the name"),
    Hostile("gguf: unknown type", "gguf", gguf("a", ("I", 77)), "type 77"),
    Hostile("gguf: endless text", "gguf", gguf("a", ("I", 8), ("Q", 1 << 50)), "texts have more"),
    Hostile("gguf: text behind the end", "gguf", gguf("a", ("I", 8), ("Q", 999)), "ends after"),
    Hostile("gguf: endless array", "gguf", gguf("a", ("I", 9), ("I", 0), ("Q", 1 << 60)),
            "more than 4000000 entries"),
    Hostile("gguf: array behind the end", "gguf", gguf("a", ("I", 9), ("I", 0), ("Q", 99)),
            "ends after"),
    Hostile("gguf: array of arrays", "gguf", gguf(
        "a", *([("I", 9)] * 1), *([("I", 9), ("Q", 1)] * 50_000)), "an array of type 9"),
    Hostile("gguf: no architecture", "gguf", gguf(fields=0), "general.architecture"),
    Hostile("gguf: architecture of a number", "gguf", gguf(_KEY, ("I", 4), ("I", 7)),
            "general.architecture"),
    Hostile("gguf: architecture of ESC", "gguf", gguf(_KEY, ("I", 8), ESC), "\\x1b[31m"),
    Hostile("gguf: name of no UTF-8", "gguf", gguf(
        ("Q", 2), b"\xff\xfe", ("I", 4), ("I", 7)), "not a whole GGUF file"),
    Hostile("gguf: field twice", "gguf", gguf(
        "a", ("I", 4), ("I", 7), "a", ("I", 4), ("I", 7), fields=2), "not a whole GGUF file"),
    Hostile("gguf: alignment 0", "gguf", gguf("general.alignment", ("I", 4), ("I", 0)),
            "general.alignment=0"),
    Hostile("gguf: alignment 3", "gguf", gguf("general.alignment", ("I", 4), ("I", 3)),
            "general.alignment=3"),
    Hostile("gguf: five axes", "gguf", gguf(
        "t", ("I", 5), fields=0, tensors=1), "axes of tensor t"),
    Hostile("gguf: dimensions overflow", "gguf", gguf(
        "t", ("I", 2), ("Q", 1 << 33), ("Q", 1 << 33), ("I", 0), ("Q", 0), fields=0, tensors=1),
            "tensor t ends after"),
    Hostile("gguf: unknown kind", "gguf", gguf(
        "t", ("I", 1), ("Q", 1), ("I", 999), ("Q", 0), fields=0, tensors=1), "type 999"),
    Hostile("gguf: no blocks", "gguf", gguf(
        "t", ("I", 1), ("Q", 7), ("I", 8), ("Q", 0), fields=0, tensors=1), "no blocks"),
    Hostile("gguf: offset behind the end", "gguf", gguf(
        "t", ("I", 1), ("Q", 1), ("I", 0), ("Q", 1 << 50), fields=0, tensors=1), "ends after"),
    Hostile("gguf: only metadata", "gguf", gguf(_KEY, ("I", 8), "qwen3"), "is missing"),
]  # fmt: skip
ROW = b'{"problem": "Q?", "answer": "1"}'
PROBLEMS = [
    *(Hostile(f"row: {n}", "problems", lines(row), e, skipped=True) for n, (row, e) in {
        "text": (b"hello", "not valid JSON"),
        "deep": (DEEP, "nested deeper"),
        "deep answer": (b'{"problem": "q", "answer": ' + DEEP, "nested deeper"),
        "list": (b"[1]", "expected an object"),
        "null": (b"null", "expected an object"),
        "no UTF-8": (b'{"problem": "\xff"}', "no UTF-8"),
        "NUL": (b'{"problem": "\0"}', "not valid JSON"),
        "many digits": (b'{"problem": "q", "answer": ' + b"9" * 9000 + b"}", "digits"),
        "17 MB": (b'{"problem": "' + b"x" * (17 << 20) + b'", "answer": 1}', "16,777,216 bytes"),
        "half a character": (b'{"problem": "\\ud800", "answer": 1}', "half of a character"),
        "answer NaN": (b'{"problem": "q", "answer": NaN}', "answer=nan"),
        "answer object": (b'{"problem": "q", "answer": {"a": 1}}', "answer="),
        "problem number": (b'{"problem": 7, "answer": 1}', "problem: expected a text"),
        "no answer": (b'{"problem": "q"}', "no answer"),
        "ESC": (b'{"problem": "q", "\\u001b[31m": 1}', "\\x1b[31m"),
        "right to left": ('{"problem": "q", "\u202e": 1}'.encode(), "\\u202e"),
    }.items()),
    Hostile("problems: a pipe", "problems", instead("", PIPE), "a named pipe"),
    Hostile("problems: a device", "problems", instead("", DEVICE), "a device"),
    Hostile("problems: empty", "problems", replaced("", b""), "no problem in it"),
    Hostile("problems: noise", "problems", replaced("", _noise(1000)), "no problem in it"),
    Hostile("problems: only NUL", "problems", replaced("", bytes(5000)), "no problem in it"),
    Hostile("problems: one endless line", "problems", replaced("", b"x" * (40 << 20)),
            "no problem in it"),
    *(Hostile(f"document: {n}", "document", replaced("", d), e) for n, (d, e) in {
        "empty": (b"", "not valid JSON"), "deep": (DEEP, "nested deeper"),
        "text": (b'"x"', "expected a list of objects"), "number": (b"7", "expected a list"),
        "no rows": (b"{}", "expected a list of objects"), "no UTF-8": (b"[\xff]", "no UTF-8"),
        "jsonl": (ROW + b"\n" + ROW, "must end in .jsonl"),
        "11 million values": (b"[" + b"0," * 11_000_000 + b"0]", "must end in .jsonl"),
        "numbers": (b"[1, 2]", "no problem in it"),
    }.items()),
    Hostile("document: a pipe", "document", instead("", PIPE), "a named pipe"),
    Hostile("table: empty", "table", replaced("", b""), "not a parquet file"),
    Hostile("table: noise", "table", replaced("", _noise(1000)), "not a parquet file"),
    Hostile("table: half", "table", cut(0.5), "not a parquet file"),
    Hostile("table: a pipe", "table", instead("", PIPE), "a named pipe"),
    Hostile("table: endless footer", "table", bytes_at(-8, b"\xff\xff\xff\x7f"),
            "not a parquet file"),
    Hostile("table: noise in the middle", "table", bytes_at(60, _noise(200)), "problems.parquet"),
    Hostile("table: dictionary of 4 GB", "table", parquet(dictionary(4096, 1)), "decodes to more"),
    Hostile("table: rows of 20 MB", "table", parquet(dictionary(3, 20)), "16,777,216 bytes"),
    Hostile("table: a list of 3 GB", "table", parquet(nested(3000, 1)), "too much memory"),
]  # fmt: skip
CHECKPOINT = [
    Hostile("checkpoint: no manifest", "checkpoint", lambda p: (p / "0/MANIFEST.json").unlink(),
            "MANIFEST.json is missing"),
    *(Hostile(f"manifest: {n}", "checkpoint", replaced("0/MANIFEST.json", d), "no whole checkpoint")
      for n, (d, _) in (_JSON | _STRICT).items() if n != "too large"),
    Hostile("manifest: a pipe", "checkpoint", instead("0/MANIFEST.json", PIPE), "no whole"),
    *(Hostile(f"manifest: {n}", "checkpoint", manifest(**f), "no whole checkpoint")
      for n, f in {
          "step of text": {"step": "0"}, "another step": {"step": 5}, "files: list": {"files": []},
          "files: path out": {"files": {"../../x": {"size": 1, "crc32": 1}}},
          "sizes below 0": {"files": {"host.json": {"size": -1, "crc32": 1}}},
          "format 99": {"format": 99}, "data: path out": {"data": "../x/"},
          "data: absolute": {"data": "/etc/"}, "arrays: list": {"arrays": []},
          "architecture: list": {"architecture": [1]}, "rope: list": {"rope_scaling": [1]},
      }.items()),
    *(Hostile(f"architecture: {n}", "checkpoint", architecture(**f), e) for n, (f, e) in {
        "10^9 layers": ({"num_layers": HUGE}, "num_layers=1000000000"),
        "one more layer": ({"num_layers": 3}, "has shape"),
        "unknown field": ({"nothing": 1}, "nothing"),
        "family": ({"model_type": [1]}, "model_type"),
        "width of text": ({"hidden_size": "8"}, "hidden_size='8'"),
        "rope of text": ({"rope_scaling": "x"}, "checkpoint 0"),
        "rope unknown": ({"rope_scaling": {"a": 1}}, "checkpoint 0"),
        "theta": ({"rope_theta": "x"}, "rope_theta='x'"),
    }.items()),
    Hostile("rope of a stage: unknown", "checkpoint", manifest(rope_scaling={"a": 1}),
            "checkpoint 0"),
    *(Hostile(f"host state: {n}", "checkpoint", host(d), "host") for n, (d, _) in _JSON.items()
      if n != "too large"),
    Hostile("host state: ids of text", "checkpoint", host(b'{"token_ids": {"a": "x"}}'),
            "token_ids"),
    Hostile("host state: endless array", "checkpoint", host(
        b'{"a": {"__array__": ["float32", [1000000000000], 0]}}'), "host.bin"),
    Hostile("checkpoint: a file too many", "checkpoint",
            lambda p: (p / f"0/{ESC}x").write_text("x"), "does not belong"),
    Hostile("checkpoint: a linked folder", "checkpoint", lambda p: (p / "0/x").symlink_to("/etc"),
            "does not belong"),
    Hostile("checkpoint: host.json is a pipe", "checkpoint", instead("0/host.json", PIPE),
            "a named pipe"),
    Hostile("checkpoint: a name of no digits", "checkpoint", lambda p: (p / "0").rename(p / "²"),
            "no whole checkpoint"),
]  # fmt: skip
CASES = [*MODEL, *TOKENIZER, *TEMPLATE, *GGUF, *PROBLEMS, *CHECKPOINT]
