"""The text of a config file: short, commented, and like the files in configs/."""

from __future__ import annotations

import dataclasses
import shlex

from polaris_jax.guide.choices import Choices
from polaris_jax.system.text import printable

COMMANDS = (
    ("prepare", ""),
    ("calibrate", ""),
    ("probe", ""),
    ("train", ""),
    ("evaluate", " --checkpoint=latest"),
    ("report", ""),
)


@dataclasses.dataclass(frozen=True)
class Names:
    """What the file names.

    Attributes:
        file: the file itself.
        workdir: a workdir for its commands.
        model: model.path.
        problems: data.problems.
        evaluate: evaluate.problems; "": no held-out problems.
        reward: reward.function; "": the math grader.
        hardware: what people call it, such as h100:8.
        about: lines on model, data and responses, for the docstring.
    """

    file: str
    workdir: str
    model: str
    problems: str
    evaluate: str
    reward: str
    hardware: str
    about: tuple[str, ...]


def config_text(names: Names, choices: Choices) -> str:
    """The text of the file."""
    parts = [
        _docstring(names, choices),
        "from ml_collections import ConfigDict\n\n"
        "from polaris_jax.config import default_config, stage\n\n",
        'def get_config(target: str = "") -> ConfigDict:',
        '    """The run; `target` quick: a step of two prompts, to see that all works."""',
        "    config = default_config()",
        *_data(names, choices),
        *_machine(names, choices),
        *_rollout(choices),
        *_stages(choices),
        *_scores(names, choices),
        *_QUICK,
        "    return config.lock()",
    ]
    return "\n".join(parts) + "\n"


def _docstring(names: Names, choices: Choices) -> str:
    lines = [
        'r"""Written by `polaris init`. Change what you like; docs/config.md has every field.',
        "",
    ]
    for command, more in COMMANDS:
        if command == "evaluate" and not names.evaluate:
            continue
        if command == "probe" and not choices.probes:
            continue
        lines.append(
            f"    polaris {command:<9} {_flag('config', names.file)} "
            f"{_flag('workdir', names.workdir)}{more}"
        )
    lines += [
        "",
        f"`{_flag('config', f'{names.file}:quick')}` is a short trial of the same.",
        "",
        *names.about,
        '"""\n',
    ]
    # A quote or a backslash of another's text must not end the docstring.
    return "\n".join([lines[0], *(line.replace('"""', "'''") for line in lines[1:-1]), lines[-1]])


def _flag(name: str, value: str) -> str:
    return shlex.quote(f"--{name}={value}")


def _data(names: Names, choices: Choices) -> list[str]:
    lines = [
        "",
        f"    config.model.path = {_quoted(names.model)}",
        f"    config.data.problems = {_quoted(names.problems)}",
        f"    config.data.max_prompt_tokens = {choices.max_prompt_tokens}  # others are left out",
    ]
    if names.reward:
        return [*lines, f"    config.reward.function = {_quoted(names.reward)}"]
    return [*lines, f'    config.reward.mode = "{choices.mode}"  # {choices.mode_why}']


def _machine(names: Names, choices: Choices) -> list[str]:
    memory = choices.memory
    lines = ["", f"    # For {names.hardware}; the estimate of its memory stands above."]
    if choices.cpu:
        return [
            *lines,
            '    config.model.dtype = "float32"',
            "    config.mesh.fsdp = 1",
            f"    config.rollout.slots = {memory.slots}",
            "    config.rollout.prefill_chunk = 64",
        ]
    if memory.context > 1:  # the TPU's attention takes blocks of 128 tokens, two a part
        unit = 256 * memory.context
        length = choices.max_prompt_tokens + max(choices.budgets)
        lines.append(f"    config.batch.row_len = {-(-length // unit) * unit}")
    return [
        *lines,
        f"    config.mesh.context = {memory.context}  # devices that share a row of the trainer",
        f"    config.rollout.tensor = {memory.tensor}  # devices that share the sampler's weights",
        f"    config.rollout.slots = {memory.slots}",
        "    config.rollout.page_size = 64",
        "    config.rollout.max_logp_gap_mean = 0.05  # nats; bfloat16 alone gives 0.02 to 0.03",
    ]


def _rollout(choices: Choices) -> list[str]:
    lines = ["", f"    config.rollout.prompts_per_step = {choices.prompts_per_step}"]
    lines.append("    config.rollout.responses_per_prompt = 8")
    lines.append(f"    config.optimizer.learning_rate = {choices.learning_rate:g}")
    if choices.cpu:
        lines += [
            "    config.probe.start, config.probe.stop, config.probe.step = 0.4, 1.2, 0.2",
            "    config.probe.problems, config.probe.n = 16, 8",
        ]
    return lines


def _stages(choices: Choices) -> list[str]:
    first = "The first temperature is probe.json's, if `polaris probe` has run."
    if not choices.probes:
        first = "No sampled response was correct: the first temperature is not probed."
    lines = ["", f"    # {first}", "    config.stages = ["]
    for index, budget in enumerate(choices.budgets):
        rule = "match_diversity" if index else "probe" if choices.probes else "fixed"
        lines += [
            "        stage(",
            f"            steps={choices.steps},",
            f"            max_response_tokens={budget},",
            "            temperature=1.0,",
            f'            temperature_rule="{rule}",',
            "        ),",
        ]
    return [*lines, "    ]", "    config.checkpoint.every_steps = 10"]


def _scores(names: Names, choices: Choices) -> list[str]:
    longest = choices.budgets[-1]
    lines = ["", f"    config.evaluate.length_edges = ({longest // 2}, {longest * 3 // 4})"]
    if not names.evaluate:
        return [
            *lines,
            "    # No held-out problems: name a file in evaluate.problems to see a score.",
        ]
    return [
        *lines,
        f"    config.evaluate.problems = {_quoted(names.evaluate)}",
        "    config.evaluate.every_steps = 10",
        "    config.evaluate.n = 4",
    ]


_QUICK = [
    "",
    '    if target == "quick":',
    "        config.rollout.prompts_per_step = 2",
    "        config.rollout.responses_per_prompt = 4",
    "        for entry in config.stages:",
    "            entry.steps = 1",
    "            entry.max_response_tokens = min(64, entry.max_response_tokens)",
    '            entry.temperature_rule = "fixed"',
    "        config.evaluate.every_steps = 0",
    "    elif target:",
    '        raise ValueError(f"--config=...:{target}: take quick, or nothing")',
]


def _quoted(text: str) -> str:
    """A text as a Python literal in double quotes."""
    single = repr(text)
    if '"' in text or single[0] == '"':
        return single
    return f'"{single[1:-1]}"'.replace("\\'", "'")


def about_lines(*groups: tuple[str, list[str]]) -> tuple[str, ...]:
    """`Name: text` lines for the docstring, wrapped, each in printable characters."""
    import textwrap

    lines = []
    for name, texts in groups:
        for text in texts:
            lines += textwrap.wrap(
                f"{name}: {printable(text)}", 96, break_long_words=True, break_on_hyphens=False
            )
    return tuple(lines)
