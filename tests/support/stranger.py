"""What a stranger brings: small models in a directory and a GGUF file, and sets in usual forms."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

from polaris_jax.demo.tiny_tokenizer import CHATML, build_tokenizer
from polaris_jax.models import save_pretrained
from tests.fixtures.parity_cases import Architecture, tensors
from tests.support.micro_run import small_qwen3
from tests.support.models.gguf_files import write_gguf
from tests.support.r1_tokenizer import write_r1_tokenizer
from tests.support.random_models import random_model

POSITIONS = 512
ROWS = 40


def random_qwen3(directory: Path, *, positions: int = POSITIONS) -> Path:
    """A Hugging Face directory of a random Qwen3 of 30 thousand parameters, with ChatML."""
    tokenizer = build_tokenizer()
    config = small_qwen3(len(tokenizer), positions=positions)
    save_pretrained(random_model(config), directory, tokenizer=tokenizer)
    return directory


def random_gguf(path: Path, *, positions: int = POSITIONS) -> Path:
    """A GGUF file of a random model of Llama's family, without thinking tags, with ChatML."""
    files = write_r1_tokenizer(path.parent / f"{path.stem}_tokenizer")
    backend = json.loads((files / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]]
    tokenizer = {
        "pre": "smollm",
        "tokens": [*tokens, *special],
        "types": [1] * len(tokens) + [3] * len(special),
        "merges": merges,
        "bos": len(tokens),
        "eos": len(tokens) + 2,
        "pad": len(tokens),
        "template": CHATML,
    }
    sizes = Architecture(
        "llama", "llama", 32, 2, 1, 16, True, 1e4, spelling=5, vocab_size=len(tokenizer["tokens"])
    )
    return write_gguf(
        path, "llama", sizes, tensors(sizes), tokenizer=tokenizer, positions=positions
    )


def sums(count: int = ROWS) -> list[tuple[str, str]]:
    """(question, answer) of sums."""
    pick = random.Random(0)
    pairs = [(pick.randrange(100), number) for number in range(count)]
    return [(f"What is {a} plus {b}?", str(a + b)) for a, b in pairs]


def as_gsm8k(path: Path) -> Path:
    """GSM8K's form: the answer ends a worked solution."""
    return _jsonl(
        path.with_suffix(".jsonl"),
        [{"question": q, "answer": f"It is <<{a}={a}>>{a}.\n#### {a}"} for q, a in sums()],
    )


def as_verl(path: Path) -> Path:
    """verl's form: a parquet file of chats with a reward_model column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "data_source": "sums",
            "prompt": [
                {"role": "system", "content": "Add the numbers."},
                {"role": "user", "content": q},
            ],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": a},
            "extra_info": {"split": "train", "index": number},
        }
        for number, (q, a) in enumerate(sums())
    ]
    pq.write_table(pa.Table.from_pylist(rows), path := path.with_suffix(".parquet"))
    return path


def as_trl(path: Path) -> Path:
    """TRL's conversational form: chats in `prompt`, the gold in a column of its own."""
    return _jsonl(
        path.with_suffix(".jsonl"),
        [{"prompt": [{"role": "user", "content": q}], "ground_truth": a} for q, a in sums()],
    )


def as_csv(path: Path) -> Path:
    """A csv file with a head."""
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("problem", "answer"), *sums()])
    return path


def _jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MODELS: dict[str, Callable[[Path], Path]] = {
    "qwen3": lambda folder: random_qwen3(folder / "model"),
    "gguf": lambda folder: random_gguf(folder / "model.gguf"),
}
SETS: dict[str, Callable[[Path], Path]] = {
    "gsm8k": as_gsm8k,
    "verl": as_verl,
    "trl": as_trl,
    "csv": as_csv,
}
