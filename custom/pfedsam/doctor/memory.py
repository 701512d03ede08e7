"""Free memory, as a container's limit leaves it."""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PAIRS = (  # limit, use, and what of the use are files that nobody works with: given back when memory is asked for
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free(available: int, root: Path = CGROUP) -> int:
    """Bytes: what the machine has `available`, or what this process's control group may still take if that is less.

    Args:
        root: where the system shows the group's limits, version 2 or 1; a group without a limit changes nothing.
    """
    return min(available, *(_left(root, *names) for names in PAIRS if _number(root / names[0]) is not None), available)


def _left(root: Path, limit: str, use: str, stat: str, idle: str) -> int:
    used = (_number(root / use) or 0) - _idle(root / stat, idle)
    return max(0, (_number(root / limit) or 0) - max(0, used))


def _idle(stat: Path, name: str) -> int:
    rows = (line.split() for line in _text(stat).splitlines())
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name and row[1].isdigit()), 0)


def _number(path: Path) -> int | None:
    """None where there is no such file, or it says "max"."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
