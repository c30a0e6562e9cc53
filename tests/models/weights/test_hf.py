"""Checkpoints in and out: bit for bit, sharded, streamed, and every defect named."""

import contextlib
import dataclasses
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models import (
    Decoder,
    load_config,
    load_pretrained,
    param_shapes,
    save_pretrained,
)
from polaris_jax.models.presets import PRESETS
from polaris_jax.models.tokenizer import load_tokenizer
from polaris_jax.models.weights.hf import export_into, stream_convert
from polaris_jax.models.weights.hf_config import parse_config
from polaris_jax.models.weights.safetensors import INDEX_FILE, write_safetensors
from tests.fixtures.parity_cases import (
    ARCHITECTURES,
    config_fields,
    tensors,
    write_checkpoint,
)
from tests.support import random_models
from tests.support.models.object_store import mount

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LLAMA_FIELDS = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 1e4,
    "rope_scaling": None,
}


def random_model(name: str, dtype: str = "float32", rope: str = "yarn") -> Decoder:
    config = parse_config(config_fields(BY_NAME[name], rope))
    return random_models.random_model(config, noise=1.0, dtype=dtype)


def assert_same_bits(a: Decoder, b: Decoder) -> None:
    assert a.params().keys() == b.params().keys()
    for path, value in a.params().items():
        other = b.params()[path]
        assert value.dtype == other.dtype, path
        assert np.asarray(value).tobytes() == np.asarray(other).tobytes(), path


def edit(directory: Path, **changes: np.ndarray | None) -> None:
    """Sets or removes (None) tensors of a one-file checkpoint; `__` stands for a dot."""
    file = directory / "model.safetensors"
    values = load_file(file)
    for name, value in changes.items():
        values.pop(name.replace("__", "."), None)
        if value is not None:
            values[name.replace("__", ".")] = value
    save_file(values, file)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", list(BY_NAME))
def test_export_then_import_is_bit_for_bit(name, dtype, tmp_path):
    model = random_model(name, dtype)
    save_pretrained(model, tmp_path, max_shard_bytes=6_000)
    assert (tmp_path / INDEX_FILE).exists()
    again, tokenizer = load_pretrained(tmp_path, dtype=dtype)
    assert tokenizer is None
    assert_same_bits(model, again)
    kept, _ = load_pretrained(tmp_path, dtype="auto")
    assert_same_bits(model, kept)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_export_has_the_tensors_that_were_imported(name, tmp_path):
    """Names, shapes and bits of the files are Hugging Face's, not only self-consistent."""
    source = write_checkpoint(tmp_path / "source", BY_NAME[name], "plain")
    model, _ = load_pretrained(source)
    save_pretrained(model, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    want = tensors(BY_NAME[name])
    assert written.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(written[key], value)


def test_dtypes_convert_by_rounding_to_nearest(tmp_path):
    source = write_checkpoint(tmp_path / "source", BY_NAME["qwen2_tied"], "plain")
    half, _ = load_pretrained(source, dtype="bfloat16")
    stored = tensors(BY_NAME["qwen2_tied"])["model.embed_tokens.weight"]
    want = stored.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(half.params()["embed_VD"]), want)
    stream_convert(source, tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    converted, _ = load_pretrained(tmp_path / "half", dtype="auto")
    assert_same_bits(half, converted)
    wide, _ = load_pretrained(tmp_path / "half")
    np.testing.assert_array_equal(np.asarray(wide.params()["embed_VD"]), want.astype(np.float32))
    with pytest.raises(ValueError, match=r"dtype='int8'.*bfloat16"):
        load_pretrained(source, dtype="int8")


@pytest.mark.parametrize("limit", [1, 5_000, 10**9], ids=["tensor_a_file", "some", "one_file"])
def test_shards_hold_no_more_than_asked(limit, tmp_path):
    model = random_model("qwen3")
    save_pretrained(model, tmp_path, max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    count = 0
    for file in files:
        values = load_file(file)
        count += len(values)
        assert len(values) == 1 or sum(v.nbytes for v in values.values()) <= limit
    assert count == len(tensors(BY_NAME["qwen3"]))
    assert (len(files) == 1) == (limit == 10**9)
    assert not list(tmp_path.glob("*.partial"))
    # An export over another one leaves none of its files behind.
    save_pretrained(model, tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_shardings_read_only_their_slices(tmp_path):
    model = random_model("qwen2")
    save_pretrained(model, tmp_path)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    specs = {"layers/q_DNH": PartitionSpec(None, "x", "y"), "embed_VD": PartitionSpec(("x", "y"))}
    shardings = {
        path: NamedSharding(mesh, specs.get(path, PartitionSpec()))
        for path in param_shapes(model.config)
    }
    sharded, _ = load_pretrained(tmp_path, shardings=shardings)
    assert_same_bits(model, sharded)
    assert sharded.params()["layers/q_DNH"].sharding == shardings["layers/q_DNH"]
    assert sharded.params()["embed_VD"].addressable_shards[0].data.shape == (16, 32)
    save_pretrained(sharded, tmp_path / "out")
    assert_same_bits(model, load_pretrained(tmp_path / "out")[0])


def test_the_writer_holds_one_block_at_a_time(tmp_path):
    shape, count = (1024, 256), 32  # 1 MiB each
    specs = {f"t{i}": (shape, np.dtype(np.float32)) for i in range(count)}
    tracemalloc.start()
    write_safetensors(epath.Path(tmp_path), specs, lambda _: iter([np.ones(shape, np.float32)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert (tmp_path / "model.safetensors").stat().st_size > count << 20


def test_llama_without_bias_loads_and_is_a_qwen2_with_zero_bias(tmp_path):
    architecture = BY_NAME["qwen2_tied"]
    write_checkpoint(tmp_path, architecture, "plain")
    values = load_file(tmp_path / "model.safetensors")
    for name, value in values.items():
        if name.endswith("bias"):
            value[...] = 0
    save_file(values, tmp_path / "model.safetensors")
    qwen2, _ = load_pretrained(tmp_path)
    biases = {n.replace(".", "__"): None for n in values if n.endswith("bias")}
    edit(tmp_path, **biases)
    fields = config_fields(architecture, "plain") | LLAMA_FIELDS
    theta = fields.pop("rope_parameters")["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"rope_theta": theta}))
    llama, _ = load_pretrained(tmp_path)
    token_BT, position_BT = jnp.arange(9)[None], jnp.arange(9)[None]
    np.testing.assert_array_equal(llama(token_BT, position_BT), qwen2(token_BT, position_BT))
    save_pretrained(llama, tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert_same_bits(llama, load_pretrained(tmp_path / "out")[0])


def test_a_tied_checkpoint_may_store_its_head_again_but_not_another(tmp_path):
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    model, _ = load_pretrained(tmp_path)
    head = tensors(BY_NAME["qwen2_tied"])["model.embed_tokens.weight"]
    edit(tmp_path, lm_head__weight=head)
    assert_same_bits(model, load_pretrained(tmp_path)[0])
    edit(tmp_path, lm_head__weight=head + 1)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs.*tie_word_embeddings"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__norm__weight": None}, r"model\.norm\.weight is missing"),
        ({"model__layers__1__mlp__up_proj__weight": None}, r"layers\.1\.mlp\.up_proj\.weight"),
        ({"model__layers__2__x": np.ones(2, np.float32)}, r"model\.layers\.2\.x is unexpected"),
        ({"model__norm__weight": np.ones(5, np.float32)}, r"model\.norm\.weight has shape \(5,\)"),
        ({"model__norm__weight": np.ones(32, np.int8)}, r"model\.norm\.weight has dtype I8"),
    ],
    ids=["missing", "missing_layer", "unexpected", "shape", "dtype"],
)
def test_defects_are_named(changes, words, tmp_path):
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path)


def test_old_rotary_buffers_are_passed_over(tmp_path):
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    edit(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(8, np.float32))
    load_pretrained(tmp_path)


def test_an_untied_config_without_head_says_what_to_do(tmp_path):
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    fields = config_fields(BY_NAME["qwen2_tied"], "plain") | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        load_pretrained(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path):
    directory = write_checkpoint(tmp_path / "a", BY_NAME["qwen2"], "plain")
    shard = directory / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors: damaged"):
        load_pretrained(directory)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="download it again"):
        load_pretrained(directory)
    shard.write_bytes(whole)
    index = directory / INDEX_FILE
    fields = json.loads(index.read_text())
    fields["weight_map"]["model.extra"] = shard.name
    index.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"names model-00002.* for model\.extra, which is not in"):
        load_pretrained(directory)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not an index"):
        load_pretrained(directory)
    index.unlink()
    with pytest.raises(FileNotFoundError, match="3 safetensors files"):
        load_pretrained(directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"\.bin files are not read"):
        load_pretrained(directory)


def sharded(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A checkpoint of several files, and its weight_map."""
    directory = write_checkpoint(tmp_path, BY_NAME["qwen2"], "plain")
    return directory, json.loads((directory / INDEX_FILE).read_text())["weight_map"]


def write_weight_map(directory: Path, weight_map: dict) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def add_tensor(file: Path, name: str, value: np.ndarray) -> None:
    save_file(load_file(file) | {name: value}, file)


@pytest.mark.parametrize("holder", ["first", "last"])
def test_a_tensor_comes_from_the_file_that_the_index_names(holder, tmp_path):
    directory, weight_map = sharded(tmp_path)
    want, _ = load_pretrained(directory)
    name = "model.norm.weight"
    others = sorted(set(weight_map.values()) - {weight_map[name]})
    stale = np.full(32, 7, np.float32)
    add_tensor(directory / others[0 if holder == "first" else -1], name, stale)
    assert_same_bits(want, load_pretrained(directory)[0])
    # Named for a file that lacks it, it is not taken from the one that has it.
    lacking = others[-1 if holder == "first" else 0]
    write_weight_map(directory, weight_map | {name: lacking})
    with pytest.raises(ValueError, match=rf"names {lacking} for model\.norm\.weight, which is not"):
        load_pretrained(directory)


def test_a_tensor_in_two_files_without_a_word_of_the_index_is_refused(tmp_path):
    directory, weight_map = sharded(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    files = sorted(set(weight_map.values()))
    add_tensor(directory / files[0], name, np.ones(8, np.float32))
    load_pretrained(directory)
    add_tensor(directory / files[1], name, np.ones(8, np.float32))
    with pytest.raises(ValueError, match=rf"{files[1]}: has {name}, and so has {files[0]}"):
        load_pretrained(directory)


def test_the_single_file_goes_before_an_index_that_an_earlier_export_left(tmp_path):
    directory, _ = sharded(tmp_path)
    model = random_model("qwen2", rope="plain")
    save_pretrained(model, tmp_path / "new")
    (tmp_path / "new/model.safetensors").rename(directory / "model.safetensors")
    assert_same_bits(model, load_pretrained(directory)[0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "weight_map.model.norm.weight=3: expected the name of a file"),
        (None, "weight_map.model.norm.weight=None: expected the name"),
        (["a"], "expected the name"),
        ("", "expected the name"),
        ("/etc/model.safetensors", "leads out of the directory"),
        ("../other/model.safetensors", "leads out of the directory"),
        ("a/../../model.safetensors", "leads out of the directory"),
        ("gs://bucket/model.safetensors", "leads out of the directory"),
    ],
)
def test_an_index_names_files_of_its_directory(value, words, tmp_path):
    directory, weight_map = sharded(tmp_path)
    write_weight_map(directory, weight_map | {"model.norm.weight": value})
    with pytest.raises(ValueError, match=words) as error:
        load_pretrained(directory)
    assert str(directory / INDEX_FILE) in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_that_are_nothing_are_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such checkpoint directory"):
        load_config("missing.gguf")
    (tmp_path / "file.txt").touch()
    with pytest.raises(ValueError, match=r"no \.gguf"):
        load_config(tmp_path / "file.txt")


def test_a_hub_id_without_network_is_one_clear_line():
    with pytest.raises(ValueError, match="Hub cannot be reached") as error:
        load_pretrained("Qwen/no-such-model-of-ours")
    assert "'Qwen/no-such-model-of-ours'" in str(error.value)
    assert "name its directory" in str(error.value)
    assert "\n" not in str(error.value)


def test_tokenizer_goes_with_the_weights(tmp_path):
    model, tokenizer = random_model("qwen3"), build_tokenizer()
    save_pretrained(model, tmp_path / "a", tokenizer)
    fields = json.loads((tmp_path / "a/config.json").read_text())
    assert fields["eos_token_id"] == tokenizer.eos_token_id
    stream_convert(tmp_path / "a", tmp_path / "b")
    text = "<|im_start|>user\n12 + 7 = ?<|im_end|>\n<think>"
    for place in ("a", "b"):
        _, again = load_pretrained(tmp_path / place)
        assert again.encode(text) == tokenizer.encode(text)
        assert again.chat_template == tokenizer.chat_template
        assert again.eos_token == tokenizer.eos_token
    assert json.loads((tmp_path / "b/config.json").read_text()) == fields
    a, b = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert a == b


def test_missing_and_broken_tokenizers_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not valid JSON"):
        load_tokenizer(tmp_path)
    for broken in ("{}", '{"added_tokens": [], "model": {"type": "none"}}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match="tokenizer does not load") as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)


def test_converting_onto_itself_is_refused(tmp_path):
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    with pytest.raises(ValueError, match="source itself"):
        stream_convert(tmp_path, tmp_path)
    load_pretrained(tmp_path)


def test_an_export_that_fails_leaves_nothing_in_a_store(bucket):
    """A store has no folder before the first object, and none after the last."""
    place = epath.Path("gs://bucket/new")
    for names in ((), ("model.safetensors", "tokenizer.json")):
        with contextlib.suppress(InterruptedError), export_into(place):
            for name in names:
                (place / name).write_bytes(b"x")
            raise InterruptedError
    assert not bucket.objects


def test_an_object_store_is_read_and_written_without_a_rename(tmp_path, monkeypatch):
    mount(monkeypatch, tmp_path / "store")
    model, tokenizer = random_model("qwen3", "bfloat16"), build_tokenizer()
    save_pretrained(model, "gs://bucket/a", tokenizer, max_shard_bytes=6_000)
    assert (tmp_path / "store/bucket/a" / INDEX_FILE).is_file()
    again, tokenizer_again = load_pretrained("gs://bucket/a", dtype="auto")
    assert_same_bits(model, again)
    assert tokenizer_again.encode("12 + 7") == tokenizer.encode("12 + 7")
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    split = NamedSharding(mesh, PartitionSpec(None, "x"))
    shardings = {"layers/q_DNH": split, "layers/gate_DF": split}
    assert_same_bits(model, load_pretrained("gs://bucket/a", "auto", shardings=shardings)[0])
    stream_convert("gs://bucket/a", "gs://bucket/b")
    assert_same_bits(model, load_pretrained("gs://bucket/b", dtype="auto")[0])
    stream_convert("gs://bucket/a", tmp_path / "local[1]")
    assert_same_bits(model, load_pretrained(tmp_path / "local[1]", dtype="auto")[0])
    with pytest.raises(FileNotFoundError, match="gs://bucket/c"):
        load_pretrained("gs://bucket/c")


def test_a_tensor_may_lie_at_any_byte(tmp_path):
    """The format asks for no alignment; arrays of the file then have none."""
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    want, _ = load_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" " * 3
    header += b" " * (len(header) % 2 == 0)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert_same_bits(want, load_pretrained(tmp_path)[0])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "do not hold the header"),
        (lambda data: (1 << 60).to_bytes(8, "little") + data[8:], "do not hold the header"),
        (lambda data: data[:8] + b"x" + data[9:], "not valid JSON"),
        (lambda data: data[:-1], "its header wants"),
        (lambda data: data + b"x", "its header wants"),
        (lambda data: data.replace(b'"shape":[64,', b'"shape":[63,', 1), "bytes"),
        (lambda data: data.replace(b'"shape"', b'"shapf"', 1), "lacks dtype, shape"),
        (
            lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[-,', 1),
            "not valid JSON",
        ),
    ],
    ids=["empty", "length", "json", "short", "long", "shape", "entry", "offset"],
)
def test_damage_in_a_file_is_one_line(damage, words, tmp_path):
    write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    file = tmp_path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=words) as error:
        load_pretrained(tmp_path)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_presets_have_the_tensors_of_their_checkpoints():
    from polaris_jax.models.weights.tensors import hf_shapes

    shapes = hf_shapes(PRESETS["qwen3-4b"])
    assert len(shapes) == 398  # as the model page counts them
    assert shapes["model.layers.35.self_attn.q_proj.weight"] == (4096, 2560)
    assert shapes["model.layers.0.self_attn.o_proj.weight"] == (2560, 4096)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (2560, 9728)
    assert len(hf_shapes(PRESETS["r1-distill-qwen-7b"])) == 339


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("yarn", "rope_scaling='yarn': expected a RopeScaling or a dictionary"),
        ({"rope_type": "linear", "factor": 0.5}, "rope_scaling: factor=0.5: linear needs"),
        ({"rope_type": "default", "rope_theta": "1e6"}, "rope_scaling: rope_theta='1e6'"),
    ],
)
def test_a_bad_rope_scaling_is_one_clear_line(given, words, tmp_path):
    place = write_checkpoint(tmp_path, BY_NAME["qwen2_tied"], "plain")
    with pytest.raises(ValueError, match=words):
        load_pretrained(place, rope_scaling=given)


def test_rope_parameters_in_place_of_the_checkpoint_own_bring_their_base(tmp_path):
    place = write_checkpoint(tmp_path, ARCHITECTURES[0], "plain")
    linear = {"rope_type": "linear", "factor": 2.0}
    kept, _ = load_pretrained(place, rope_scaling=linear)
    other, _ = load_pretrained(place, rope_scaling=linear | {"rope_theta": 5e5})
    assert kept.config.rope_theta == load_config(place).rope_theta
    assert other.config == dataclasses.replace(kept.config, rope_theta=5e5)
