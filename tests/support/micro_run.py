"""A run of seconds: a base model that answers well-formed but at random, and flags for `train`.

The base is trained on the spot to write `<think>x x x</think>` and one of four digits in a box, so
that groups mix right and wrong answers from the first step on and updates have something to do.
One to three x make lengths differ, and of three a 4-gram, for the temperature reset.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from polaris_jax.checkpoint import Checkpointer
from polaris_jax.checkpoint.step_folders import read_manifest
from polaris_jax.config import WarmstartSection
from polaris_jax.data.prompts import render_example
from polaris_jax.demo.tiny_tokenizer import build_tokenizer
from polaris_jax.demo.warmstart import warm_start
from polaris_jax.models import Decoder, ModelConfig, save_pretrained

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = " Answer."
PROBLEMS = 12


def small_qwen3(vocab_size: int, *, positions: int, hidden_size: int = 32) -> ModelConfig:
    """A Qwen3 of two layers."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        max_position_embeddings=positions,
        tie_embeddings=True,
        qkv_bias=False,
        qk_norm=True,
    )


def make_base(
    directory: Path, *, hidden_size: int = 32, trained: bool = True, tags: bool = True
) -> tuple[Path, Path]:
    """(model directory, problems.jsonl). Not `trained`: random weights; no `tags`: boxes alone.

    A process trains each kind of base once, and copies it.
    """
    shutil.copytree(_made_base(hidden_size, trained, tags), directory, dirs_exist_ok=True)
    return directory / "base", directory / "problems.jsonl"


@functools.cache
def _made_base(hidden_size: int, trained: bool, tags: bool) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="polaris_jax_base_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    tokenizer = build_tokenizer()
    config = small_qwen3(len(tokenizer), positions=64, hidden_size=hidden_size)
    texts = [f"Start with {i}." for i in range(PROBLEMS)]
    pick = random.Random(0)
    examples = [
        render_example(
            tokenizer,
            pick.choice(texts),
            f"{f'<think>{thought(pick)}</think>' if tags else thought(pick)}\n"
            f"\\boxed{{{pick.randrange(1, 5)}}}",
            suffix=SUFFIX,
        )
        for _ in range(256)
    ]
    section = WarmstartSection(steps=80, batch_size=32, learning_rate=1e-2)
    model = Decoder.init(config, jax.random.key(0))
    model = warm_start(model, examples, section) if trained else model
    save_pretrained(model, directory / "base", tokenizer=tokenizer)
    rows = [
        {"id": f"p{i}", "problem": text, "answer": str(1 + i % 4)} for i, text in enumerate(texts)
    ]
    (directory / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def thought(pick: random.Random) -> str:
    """One to three digits."""
    return " ".join(str(pick.randrange(10)) for _ in range(pick.randrange(1, 4)))


def flags(base: Path, problems: Path, *more: str) -> list[str]:
    """The command line of a micro run, without --workdir."""
    fields = {
        "model.path": base,
        "model.max_position_tokens": 64,
        "data.problems": problems,
        "data.prompt_suffix": SUFFIX,
        "data.max_prompt_tokens": 20,
        "warmstart.steps": 0,
        "rollout.prompts_per_step": 6,
        "rollout.responses_per_prompt": 4,
        "rollout.slots": 16,  # one program of decode; a batch has 24 responses
        "rollout.page_size": 8,
        "rollout.decode_steps": 8,
        "rollout.prefill_chunk": 32,
        "stages[0].steps": 5,
        "stages[0].temperature_rule": "fixed",
        "stages[0].max_response_tokens": 12,
        "stages[1].steps": 4,
        "stages[1].max_response_tokens": 16,
        "stages[1].rope_factor": 1.5,  # a resume inside stage 1 must find its scaling again
        "rope.yarn.original_max_position_embeddings": 32,
        "probe.problems": 4,
        "probe.n": 4,
        "probe.max_candidates": 2,
        "batch.row_len": 128,
        "batch.rows": 2,
        "optimizer.learning_rate": 3e-3,
        "checkpoint.every_steps": 2,
        "reward.workers": 1,
        "evaluate.max_response_tokens": 16,
    }
    lines = [f"--config={ROOT / 'configs' / 'tiny_cpu.py'}"]
    return [*lines, *(f"--config.{name}={value}" for name, value in fields.items()), *more]


def start_train(
    workdir: Path,
    line: list[str],
    *,
    program: Sequence[str] = ("polaris_jax",),
    command: str = "train",
    out: int | TextIO = subprocess.PIPE,
    **environment: str,
) -> subprocess.Popen[str]:
    """`polaris train`, or another `program` or command of that interface, in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", *program, command, *line, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **environment},
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(command: str, workdir: Path, *lines: list[str]) -> list[subprocess.Popen[str]]:
    """The processes of a run, one for each line of flags, without a launcher, which would end one
    when another ends."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "polaris_jax", command, *line, f"--workdir={workdir}"],
            cwd=ROOT,
            env={
                **os.environ,
                "XLA_FLAGS": "",
                "JAX_PLATFORMS": "cpu",
                "POLARIS_COORDINATOR": f"127.0.0.1:{port}",
                "POLARIS_NUM_PROCESSES": str(len(lines)),
                "POLARIS_PROCESS_ID": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, line in enumerate(lines)
    ]


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> str:
    """The output of a run that must end well."""
    out, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, out
    return out


def final_state(workdir: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The newest whole checkpoint, however many processes saved it: its arrays, its host state."""
    checkpointer = Checkpointer(workdir / "checkpoints")
    step = checkpointer.latest()
    assert step is not None
    arrays = read_manifest(workdir / "checkpoints" / str(step))["arrays"]
    abstract = {
        name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (dtype, shape) in arrays.items()
    }
    restored, host = checkpointer.restore(step, abstract)
    return {name: np.asarray(leaf) for name, leaf in restored.items()}, host


def final_leaves(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest whole checkpoint, by name."""
    return final_state(workdir)[0]
