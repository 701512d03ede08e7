"""Write the licences of all packages that pfedsam runs on: python scripts/licences.py FILE.

The list is what is installed here of pfedsam's own requirements and of theirs, as each package states it. A package
that states none in a field is looked up by the first line of its licence file.
"""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LONGEST = 60  # characters of a licence's name; some packages put the whole text there
HEAD = """# Licences

What pfedsam {version} runs on, as installed on this machine. None of these packages ships with it.

| package | version | licence | as stated in |
|---|---|---|---|
"""


def main(out: Path) -> None:
    """Write the table."""
    rows = [f"| {name} | {metadata.version(name)} | {' | '.join(licence(name))} |" for name in runtime()]
    out.write_text(HEAD.format(version=metadata.version("pfedsam")) + "\n".join(rows) + "\n")
    print(f"wrote {out}: {len(rows)} packages")


def runtime(root: str = "pfedsam") -> list[str]:
    """The packages that `root` needs to run, and what they need in turn, sorted. Test tools are not among them."""
    found: set[str] = set()
    todo = [Requirement(root)]
    while todo:
        need = todo.pop()
        for line in metadata.requires(need.name) or ():
            more = Requirement(line)
            wanted = any(more.marker.evaluate({"extra": e}) for e in ("", *need.extras)) if more.marker else True
            name = canonicalize_name(more.name)
            if wanted and name not in found and is_installed(name):
                found.add(name)
                todo.append(more)
    return sorted(found)


def is_installed(name: str) -> bool:
    """Whether a package is here. One that only another system needs is not."""
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def licence(name: str) -> tuple[str, str]:
    """A package's licence, and where it says so."""
    return next(_stated(name), ("not stated", "-"))


def _stated(name: str) -> Iterator[tuple[str, str]]:
    head = metadata.metadata(name)
    for field in ("License-Expression", "License"):
        text = (head[field] or "").strip() if field in head else ""
        if text and "\n" not in text and text.upper() != "UNKNOWN":
            yield _short(text), "its metadata"
    kinds = [line.split(" :: ")[-1] for line in head.get_all("Classifier") or () if line.startswith("License ::")]
    if named := [kind for kind in kinds if kind != "OSI Approved"]:
        yield ", ".join(named), "its classifiers"
    for file in sorted(metadata.files(name) or (), key=str):
        if file.name.upper().startswith(("LICEN", "COPYING")) and (lines := file.locate().read_text().split("\n")):
            yield _short(next((line.strip(" #*") for line in lines if line.strip()), "")), str(file.name)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


if __name__ == "__main__":
    main(Path(sys.argv[1]))
