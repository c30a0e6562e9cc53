"""A written tokenizer: transformers 4 and 5 load it, and it is the one that was there before."""

import json

import pytest
from etils import epath

from polaris_jax.checkpoint import step_folders
from polaris_jax.data.prompts import read_template
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.models.tokenizer import load_tokenizer, replace_tokenizer, save_tokenizer
from polaris_jax.models.weights.identity import tokenizer_digests
from tests.support.models.object_store import mount
from tests.support.r1_tokenizer import write_r1_tokenizer

TEXTS = (
    "12 + 7",
    "<|im_start|>user\nHi<|im_end|><think>x</think>",
    "<｜User｜>é<｜end▁of▁sentence｜>",
)


def fields_of(directory):
    return json.loads((directory / "tokenizer_config.json").read_text())


def meaning(tokenizer):
    """What a run records of a tokenizer, and what prompts and responses depend on."""
    ids = [tokenizer.encode(text) for text in TEXTS]
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    named = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    special = set(tokenizer.all_special_tokens)
    return tokenizer_digests(tokenizer), ids, decoded, named, special


def one_of_transformers_4(directory):
    """The tiny tokenizer as that version's Qwen has it: all settings in tokenizer_config.json."""
    build_tokenizer().save_pretrained(directory)
    fields = fields_of(directory)
    template = directory / "chat_template.jinja"
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    fields |= {
        "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": fields.pop("extra_special_tokens"),
        "added_tokens_decoder": {str(token.pop("id")): token for token in added},
        "chat_template": template.read_text(),
        "add_prefix_space": False,
    }
    template.unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))


MADE = {
    "tiny": lambda directory: build_tokenizer().save_pretrained(directory),
    "r1": write_r1_tokenizer,
    "of transformers 4": one_of_transformers_4,
}


@pytest.fixture(params=MADE)
def directory(request, tmp_path):
    """A directory with a tokenizer."""
    place = tmp_path / "source"
    place.mkdir()
    MADE[request.param](place)
    return place


def folder(tmp_path, name):
    place = epath.Path(tmp_path / name)
    place.mkdir()
    return place


def test_what_is_written_names_nothing_that_transformers_4_lacks(directory, tmp_path):
    tokenizer, target = load_tokenizer(directory), folder(tmp_path, "written")
    save_tokenizer(tokenizer, target)
    fields = fields_of(target)
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(fields.get("extra_special_tokens"), list)
    assert meaning(load_tokenizer(target)) == meaning(tokenizer)


def test_a_tokenizer_in_memory_alone_keeps_its_special_tokens(tmp_path):
    save_tokenizer(build_tokenizer(), epath.Path(tmp_path))
    assert fields_of(tmp_path)["additional_special_tokens"] == ["<|im_start|>"]
    assert meaning(load_tokenizer(tmp_path)) == meaning(build_tokenizer())


def test_a_run_keeps_the_files_of_its_base(directory, tmp_path):
    sampling = {"temperature": 0.6, "top_k": 20, "eos_token_id": 5}
    (directory / "generation_config.json").write_text(json.dumps(sampling))
    tokenizer, target = load_tokenizer(directory), folder(tmp_path, "kept")
    # What an earlier version left there: the same tokenizer in another form.
    tokenizer.save_pretrained(target)
    (target / "generation_config.json").write_text("")
    before = meaning(load_tokenizer(target))
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "stale.jinja").write_text("x")
    replace_tokenizer(tokenizer, target, end_ids=(5, 7))
    assert json.loads((target / "generation_config.json").read_text()) == sampling | {
        "eos_token_id": [5, 7]
    }
    names = {path.name for path in directory.iterdir()}
    assert {path.name for path in target.iterdir() if path.is_file()} == names
    for name in names - {"generation_config.json"}:
        assert (target / name).read_bytes() == (directory / name).read_bytes(), name
    assert step_folders.list_files(target) == sorted(names)
    assert meaning(load_tokenizer(target)) == before == meaning(tokenizer)


def test_a_run_in_an_object_store_keeps_them_too(directory, tmp_path, monkeypatch):
    mount(monkeypatch, tmp_path / "store")
    tokenizer, target = load_tokenizer(directory), epath.Path("gs://bucket/run/tokenizer")
    target.mkdir(parents=True)
    (target / "added_tokens.json").write_text("{}")
    replace_tokenizer(tokenizer, target, end_ids=())
    names = {path.name for path in directory.iterdir()}
    assert {path.name for path in target.iterdir()} == names
    again = load_tokenizer(target)
    replace_tokenizer(again, folder(tmp_path, "local"), end_ids=())
    assert {path.name for path in (tmp_path / "local").iterdir()} == names
    assert meaning(again) == meaning(tokenizer)


def test_without_files_to_copy_a_tokenizer_is_written(tmp_path):
    replace_tokenizer(build_tokenizer(), epath.Path(tmp_path), end_ids=(5,))
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [5]}
    assert meaning(load_tokenizer(tmp_path)) == meaning(build_tokenizer())


def test_a_template_of_the_config_goes_with_the_weights(directory, tmp_path):
    """Whoever samples from an export writes its prompts as they were trained."""
    tokenizer, target = load_tokenizer(directory), folder(tmp_path, "kept")
    trained = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    replace_tokenizer(tokenizer, target, end_ids=(), template=trained)
    assert load_tokenizer(target).chat_template == trained
    replace_tokenizer(tokenizer, target, end_ids=(), template=read_template("none"))
    assert load_tokenizer(target).chat_template == tokenizer.chat_template
