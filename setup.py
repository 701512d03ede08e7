"""What pyproject.toml cannot say: jobs and project.yml go into the wheel from their one place in the checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("jobs", "poc/project.yml")  # pfedsam/shipped.py finds them below the package's assets


class WithShipped(build_py):
    """Copies them beside the package's own assets; an editable install reads them in the checkout."""

    def run(self) -> None:
        """Build as setuptools does, then copy."""
        super().run()
        for name in () if self.editable_mode else SHIPPED:
            target = Path(self.build_lib, "pfedsam/assets", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_dir():
                shutil.copytree(name, target, dirs_exist_ok=True)
            else:
                shutil.copy(name, target)


setup(cmdclass={"build_py": WithShipped})
