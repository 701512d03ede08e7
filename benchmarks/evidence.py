"""What is kept of the runs behind results/: benchmarks/evidence.py pack OUT | unpack OUT.

Those of earlier defaults are in evidence/earlier, and stay as they are. `unpack` lays them below OUT/earlier. There is
an archive a task: results.json and the sites' cases.json of every run, as `sweep.py` wrote them; no image, no tensor.
Unpacked, `make table` goes on from there.
"""

import argparse
import io
import sys
import tarfile
from pathlib import Path

from archives import files_in

from pfedsam.files import write_atomic

HERE = Path(__file__).parent / "evidence"
EARLIER = "earlier"
KEPT = ("results.json", "*/cases.json")


def main() -> None:
    """Pack what ended below OUT, or unpack all archives there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("pack", "unpack"))
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.verb == "unpack":
        unpack(options.out)
        unpack(options.out / EARLIER, HERE / EARLIER)
    elif not (tasks := sorted({path.parents[2] for path in options.out.glob("*/*/*/results.json")})):
        sys.exit(f"expected ended runs below {options.out}; came none; name the folder of sweep.py")
    else:
        for task in tasks:
            pack(task, HERE / f"{task.name}.tar.xz")


def pack(task: Path, archive: Path) -> None:
    """Put a task's ended runs into `archive`, alike each time; runs that are in it already stay."""
    found = dict(files_in(archive)) if archive.exists() else {}
    for run in sorted(path.parent for path in task.glob("*/*/results.json")):
        files = sorted(path for kind in KEPT for path in run.glob(kind))
        found |= {str(path.relative_to(task.parent)): path.read_bytes() for path in files}
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:xz", preset=9) as tar:
        for name, data in sorted(found.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    write_atomic(archive, whole.getvalue())


def unpack(out: Path, here: Path = HERE) -> None:
    """Lay the runs of all archives below `out`; one that ended there already is left as it is."""
    for archive in sorted(here.glob("*.tar.xz")):
        held = files_in(archive)
        ended = {run for name, _ in held if (out / (run := _run(name)) / "results.json").exists()}
        for name, data in held:
            if _run(name) not in ended:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(out / name, data)


def _run(name: str) -> str:
    """TASK/ROW/SEED of a file's name in an archive."""
    return "/".join(name.split("/")[:3])


if __name__ == "__main__":
    main()
