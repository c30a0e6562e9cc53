"""Which weights an evaluation scores, as --checkpoint and --tag name them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath

from polaris_jax.config import ConfigError
from polaris_jax.system.files import as_place

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Scored:
    """Which weights are scored, and what stands before the names of their files.

    Attributes:
        checkpoint: "" is the base model, "latest" the workdir's newest checkpoint, else a path.
        tag: the tag, "" for none.
    """

    checkpoint: str
    tag: str

    @property
    def name(self) -> str:
        """What people call them."""
        return self.tag or self.checkpoint or BASE


def scored_by(checkpoint: str, tag: str) -> list[Scored]:
    """The weights that --checkpoint and --tag name, one or several.

    Args:
        checkpoint: "", a checkpoint, or several with commas between them; `base` is the base model.
        tag: "", a tag, or one for each checkpoint; several checkpoints without tags are tagged by
            their names.

    Raises:
        ConfigError: tags and checkpoints differ in number, or two tags are equal.
    """
    alone = "," not in checkpoint or as_place(checkpoint).exists()
    given = [checkpoint] if alone else [part.strip() for part in checkpoint.split(",")]
    given = ["" if part == BASE and not as_place(part).exists() else part for part in given]
    tags = tag.split(",") if "," in tag else [tag]
    if len(given) > 1 and tags == [""]:
        tags = [_own_tag(part) for part in given]
    if len(tags) != len(given):
        raise ConfigError(
            f"--tag={tag}: {len(tags)} for {len(given)} checkpoints; give one each, as in "
            "--checkpoint=base,latest --tag=before,after"
        )
    if len(set(tags)) < len(tags):
        raise ConfigError(
            f"--tag={','.join(tags)}: two are equal, and their files would be the same; name them "
            "apart, as in --checkpoint=base,latest --tag=before,after"
        )
    return [Scored(part, own) for part, own in zip(given, tags, strict=True)]


def _own_tag(checkpoint: str) -> str:
    parts = PurePosixPath(checkpoint or BASE).parts[-2:]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", "_".join(parts)).strip("_")
