"""Free memory within a container's limit."""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PAIRS = (  # limit, use, and idle file pages within the use, which the system returns on demand
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free(available: int, root: Path = CGROUP) -> int:
    """Free bytes: the machine's `available` ones, or those left to this process's control group if fewer.

    Args:
        root: where the system shows the group's limits, in version 2 or 1. A group without a limit has no effect.
    """
    left = [available]
    for limit, use, stat, idle in PAIRS:
        most, used, rows = (_words(root / name) for name in (limit, use, stat))
        if most[0].isdigit():  # "max", or no such file, where there is no limit
            given_back = dict(zip(rows[::2], rows[1::2], strict=False)).get(idle, "0")
            left.append(int(most[0]) - max(0, int(used[0] or 0) - int(given_back)))
    return max(0, min(left))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split() or [""]
    except OSError:
        return [""]
