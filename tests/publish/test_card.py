"""`polaris publish`: the card says what the files say, names the rest, and overwrites nobody's."""

import json

import pytest
import yaml
from etils import epath

from polaris_jax.__main__ import main
from polaris_jax.publish.card import UNKNOWN
from polaris_jax.publish.facts import license_of

EVALUATION = {
    "avg@k": 0.584,
    "stderr": 0.02,
    "interval": [0.541, 0.627],
    "k": 8,
    "problems": 256,
    "temperature": 0.6,
    "max_response_tokens": 72,
    "checkpoint": "latest",
}


def asked(problems: str) -> dict:
    """What `polaris evaluate` leaves beside responses.jsonl."""
    return {"settings": {"evaluate.problems": problems}, "inputs": {}, "rows": {}}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def run(tmp_path):
    """The files of a finished run on a base model and data with cards of their own."""
    base, data, run = tmp_path / "base", tmp_path / "data", tmp_path / "run"
    write(base / "README.md", "---\nlanguage: en\nlicense: mit\n---\n# Base\n")
    write(data / "README.md", "---\nlicense:\n- cc-by-4.0\n---\n")
    config = {
        "seed": 3,
        "model.path": str(base),
        "data.problems": str(data),
        "evaluate.problems": "aime24",
        "optimizer.learning_rate": 5e-7,
        "stages[0].steps": 4,
        "batch.rescue": True,
    }
    write(
        run / "run.json",
        {
            "config": config,
            "commit": "abc123",
            "devices": {"NVIDIA H100": 8},
            "processes": 1,
            "versions": {"polaris_jax": "0.3", "jax": "0.10"},
            "counts": {"sampled_tokens": 123_456},
            "starts": [{"ended": "finished"}],
        },
    )
    stage = {"stage": 0, "first_step": 0, "last_step": 3, "temperature": 1.4}
    write(run / "stages.json", [stage | {"max_response_tokens": 72, "dropped_ids_count": 5}])
    steps = [{"step": -1, "eval/avg@4": 0.3}, *({"step": i} for i in range(3))]
    steps.append({"step": 3, "eval/avg@4": 0.5})
    write(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in steps))
    timing = [{"step": i, "time/rollout_s": 6.0, "time/update_s": 4.0} for i in range(4)]
    write(run / "timing.jsonl", "".join(json.dumps(line) + "\n" for line in timing))
    sources = {"mine": {"source": f"{data},cap=9", "rows": 12, "kept": 9}}
    write(run / "prepare.json", {"source": str(data), "sources": sources})
    write(run / "calibrate.json", {"n": 8, "problems": 9, "kept": 7})
    write(run / "eval.json", EVALUATION)
    write(run / "before_eval.json", EVALUATION | {"avg@k": 0.334, "checkpoint": "base"})
    for tag in ("", "before_"):
        write(run / f"{tag}responses.identity.json", asked("aime24"))
    write(run / "export" / "config.json", {"model_type": "qwen3", "num_hidden_layers": 36})
    return run


def published(run, *words):
    assert main(["publish", str(run), *words]) == 0
    return (run / "export" / "README.md").read_text()


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_files_say(run):
    card = published(run)
    head = head_of(card)
    assert head["license"] == "mit"
    assert "grpo" in head["tags"] and head["library_name"] == "transformers"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    rows = [row for row in rows if row]
    score = ["avg@8", "58.4%", "54.1% to 62.7%", "256", "aime24", "0.6", "72", "off"]
    assert ["newest checkpoint", *score] in rows
    assert ["base model (before)", "avg@8", "33.4%", *score[2:]] in rows
    assert ["commit", "abc123"] in rows
    assert ["hardware", "8 x NVIDIA H100; processes: 1"] in rows
    assert ["time of all steps", "40 s"] in rows
    assert ["response tokens sampled", "123,456"] in rows
    assert ["0", "0 to 3", "1.4", "72"] in rows
    assert any(row[1:] == ["9", "cc-by-4.0"] for row in rows)
    assert "7 of 9 problems stayed" in card and "5 problems" in card
    assert "optimizer.learning_rate=5e-07" in card
    assert "batch.rescue" not in card  # the default
    assert "avg@4 30.0% before training, 50.0% after 4 steps" in card
    assert UNKNOWN not in card


def test_what_is_not_known_is_said(run, capsys):
    record = json.loads((run / "run.json").read_text())
    record["config"] |= {"model.path": "org/base", "data.problems": ""}
    record |= {"commit": None, "starts": [{}], "deterministic": False, "local": []}
    del record["devices"], record["counts"]
    write(run / "run.json", record)
    (run / "prepare.json").unlink()
    (run / "eval.json").unlink()
    write(run / "before_eval.json", "{")
    card = published(run)
    head = head_of(card)
    assert head["license"] == "unknown" and head["base_model"] == ["org/base"]
    unknown = card.partition("## What this card does not know\n")[2].partition("\n## ")[0]
    for words in (
        "before\\_eval.json cannot be read",
        "its commit is unknown",
        "does not name the hardware",
        "More than config, data and seed",
        "No evaluation of the newest checkpoint",
        "licence of the base model (org/base)",
        "licence of the problems (unknown)",
    ):
        assert words in unknown, words
    assert card.count(UNKNOWN) >= 6
    assert "No evaluation is in the workdir." in card
    assert "not known: The licence of the base model (org/base)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "local", "hub", "doubtful"),
    [
        ("org/base", [], True, False),  # the run had no such path
        ("org/base", ["model.path"], False, False),
        ("org/base", None, False, True),  # a run of an earlier version
        ("models/base.gguf", None, False, False),
        ("mine", None, False, True),
        ("here/base", None, False, False),  # a path of this machine
        ("org/cached", None, True, False),
    ],
)
def test_a_path_of_another_folder_is_no_repository_of_the_hub(
    path, local, hub, doubtful, run, monkeypatch
):
    cache = run.parent / "cache"
    (cache / "models--org--cached").mkdir(parents=True)
    (run.parent / "here" / "base").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(run.parent)
    record = json.loads((run / "run.json").read_text())
    record["config"]["model.path"] = path
    record |= {} if local is None else {"local": local}
    write(run / "run.json", record)
    card = published(run)
    assert head_of(card).get("base_model") == ([path] if hub else None)
    assert (f"# base_model: {UNKNOWN}" in card) == doubtful
    assert (f"Whether {path} is a path, or a repository of the Hub." in card) == doubtful


@pytest.mark.parametrize(
    ("source", "local", "hub"),
    [
        ("data/rows.jsonl", None, False),
        ("org/set,split=train", False, True),
        ("data/mine,cap=9", True, False),
        ("data/mine", None, False),
    ],
)
def test_a_file_is_no_data_set_of_the_hub(source, local, hub, run):
    document = {"source": source, "rows": 12, "kept": 9}
    document |= {} if local is None else {"local": local}
    write(run / "prepare.json", {"source": source, "sources": {"mine": document}})
    wanted = [source.partition(",")[0]] if hub else None
    assert head_of(published(run)).get("datasets") == wanted


def test_each_score_has_its_own_problems_and_its_own_row_with_yarn(run):
    """`polaris evaluate` takes other problems than the run's config names."""
    scaled = EVALUATION | {"avg@k": 0.6, "rope": "both", "yarn": EVALUATION | {"avg@k": 0.7}}
    factors = {"1.0405": EVALUATION | {"avg@k": 0.65, "interval": None}}
    write(run / "long_eval.json", scaled | {"attention_factors": factors})
    minerva = asked("minerva+/mine/own.jsonl")
    for suffix in ("", "_yarn", "_yarn_1.0405"):
        write(run / f"long_responses{suffix}.identity.json", minerva)
    (run / "before_responses.identity.json").unlink()
    card = published(run)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    named = "newest checkpoint (long)"
    found = [(row[2], row[3], row[5], row[8]) for row in rows if row and row[0] == named]
    own = "minerva+.../own.jsonl"
    assert found == [
        ("60.0%", "54.1% to 62.7%", own, "off"),
        ("70.0%", "54.1% to 62.7%", own, "on"),
        ("65.0%", "none", own, "on, attention 1.0405"),
    ]
    assert [row[5] for row in rows if row and row[0] == "base model (before)"] == [UNKNOWN]
    assert "Which problems were asked for the scores of base model (before)." in card


def test_folders_of_this_machine_are_nobodys_business(run):
    record = json.loads((run / "run.json").read_text())
    record["config"]["evaluate.problems"] = "aime24+gs://bucket/own/held_out.jsonl"
    record["config"]["reward.function"] = "~/mine/a.py:f*0.8,/home/me/b.py:g*0.2"
    write(run / "run.json", record)
    write(run / "responses.identity.json", asked("aime24+gs://bucket/own/held_out.jsonl"))
    card = published(run)
    assert str(run.parent) not in card and "bucket" not in card and "mine" not in card
    assert 'reward.function=".../a.py:f*0.8,.../b.py:g*0.2"' in card
    assert 'model.path=".../base"' in card
    assert "# base after POLARIS" in card
    assert ".../data,cap=9" in card and "aime24+.../held\\_out.jsonl" in card


@pytest.mark.parametrize(
    ("head", "known"),
    [
        ("license: mit\nlanguage: en", "mit"),
        ("license:\n- mit", "mit"),
        ("license:\n  - mit\nlanguage:\n- en", "mit"),
        ("license:\n- mit\n- cc-by-nc-4.0", ""),
        ("license: [mit, cc-by-nc-4.0]", ""),
    ],
)
def test_one_license_is_known_and_of_several_none(tmp_path, head, known):
    write(tmp_path / "README.md", f"---\n{head}\n---\n# Base\n")
    assert license_of(str(tmp_path)) == known


def test_responses_that_could_not_be_graded_are_named(run):
    write(run / "eval.json", EVALUATION | {"grading_failed": 3})
    assert "Whether 3 responses of newest checkpoint (YaRN off) are right: grading" in published(
        run
    )


def test_a_license_is_the_publishers_word(run):
    assert head_of(published(run, "--license=apache-2.0"))["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("link", "known"), [("https://example.com/terms", True), ("LICENSE", False)]
)
def test_a_license_that_has_a_name_of_its_own_keeps_it(run, link, known):
    base = run.parent / "base" / "README.md"
    write(base, f"---\nlicense: other\nlicense_name: qwen-research\nlicense_link: {link}\n---\n")
    card = published(run)
    head = head_of(card)
    assert (head["license"], head["license_name"]) == ("other", "qwen-research")
    assert head.get("license_link") == (link if known else None)
    assert card.count("other (qwen-research") == 2  # these weights and the base
    own = published(run, "--license=mit", "--overwrite")
    assert "license_name" not in head_of(own)


def test_a_small_model_of_the_warm_start_owes_nothing_to_others(run):
    record = json.loads((run / "run.json").read_text())
    record["config"] |= {"model.path": "", "warmstart.steps": 8}
    write(run / "run.json", record)
    card = published(run)
    assert head_of(card)["license"] == "unknown"
    assert "a small model of the warm start" in card


@pytest.mark.parametrize("before", ["# My model\n", "edited"], ids=["another's", "edited"])
def test_it_overwrites_only_what_it_wrote(run, before, capsys):
    card = published(run)
    assert published(run) == card  # its own, as it left it
    path = run / "export" / "README.md"
    text = card.replace("mit", "my own", 1) if before == "edited" else before
    path.write_text(text)
    capsys.readouterr()
    assert main(["publish", str(run)]) == 2
    assert f"error: {path}: is there" in capsys.readouterr().err
    assert path.read_text() == text
    assert published(run, "--overwrite") == card


def test_texts_of_others_cannot_leave_their_cell(run):
    record = json.loads((run / "run.json").read_text())
    record["devices"] = {"a | b\n# <script>": 1}
    record["config"]["data.system_prompt"] = "```\n# own heading"
    write(run / "run.json", record)
    lines = published(run).splitlines()
    assert "1 x a \\| b # \\<script\\>; processes: 1" in "\n".join(lines)
    assert not [line for line in lines if line.startswith("# own")]
    assert lines.count("```") == 3  # the settings' and that of the example


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no such directory"),
        ([".", "--license=a b"], "--license=a b"),
        ([".", "--export=nowhere"], "no config.json"),
    ],
    ids=["no run", "no license", "no export"],
)
def test_mistakes(run, words, said, monkeypatch, capsys):
    monkeypatch.chdir(run)
    assert main(["publish", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: two words\n---\n", ""),
        ("license: mit\n", ""),
        ("---\ntags: []\n---\nlicense: mit\n", ""),
        (b"\xff", ""),
    ],
    ids=["quoted", "windows", "no identifier", "no head", "below the head", "no text"],
)
def test_a_licence_is_read_in_the_head_alone(tmp_path, text, found):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "README.md").write_bytes(data)
    assert license_of(str(tmp_path)) == found
    assert license_of(str(epath.Path(tmp_path) / "problems.jsonl")) == found
