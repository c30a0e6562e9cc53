"""What this process may use of its machine: memory and cores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def total_memory() -> int | None:
    """Bytes that this process may use: the machine's, a container's or a limit's, the least."""
    found = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for text in [*cgroup_texts("memory.max"), *cgroup_texts("memory.limit_in_bytes", "memory")]:
        with contextlib.suppress(ValueError):  # "max": no limit
            found.append(int(text))
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [limit] if limit != resource.RLIM_INFINITY else []
    except ImportError:
        pass
    return min(found, default=None)


def core_count() -> int:
    """Cores that this process may use: those of its affinity, or its container's share."""
    usable = getattr(os, "sched_getaffinity", None)
    found = [len(usable(0)) if usable else os.cpu_count() or 1]
    for text in cgroup_texts("cpu.max"):
        with contextlib.suppress(ValueError):  # "max 100000": no limit
            quota, period = map(int, text.split())
            found.append(max(1, -(-quota // period)))
    return min(found)


def cgroup_texts(
    name: str, controller: str = "", *, root: Path = CGROUPS, own: Path = OWN_CGROUP
) -> list[str]:
    """What the files of a name say, in this process's control group and in those around it.

    Args:
        name: such as memory.max.
        controller: the controller of version 1, or empty for version 2 of control groups.
        root: where the groups lie.
        own: the file that names this process's groups.
    """
    top = root / controller
    places = {top}
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if controller in names.split(","):
                below = (top / path.lstrip("/")).resolve()
                places |= {p for p in (below, *below.parents) if p.is_relative_to(top.resolve())}
    found = []
    for place in sorted(places):
        with contextlib.suppress(OSError):
            found.append((place / name).read_text().strip())
    return found
