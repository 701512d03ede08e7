"""Print what an extra of pyproject.toml needs, a line each: python scripts/extra.py NAME."""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"

if __name__ == "__main__":
    print(*tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
