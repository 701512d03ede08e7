"""Methods of other distributions, found by their entry points."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import after_a_round, tiny
from pfedsam import methods
from pfedsam.errors import UserFault
from pfedsam.study import shared_schema

HALF = """
from dataclasses import dataclass, replace

from pfedsam.bounds import number
from pfedsam.methods import fedavg


@dataclass(frozen=True)
class Settings:
    share: float = number(0.5, least=0, most=1)
    free: float = 0.0


def losses(model, batch, config):
    return {name: config.own(Settings).share * loss for name, loss in fedavg.losses(model, batch, config).items()}


METHOD = replace(fedavg.METHOD, loss=losses, settings=Settings)
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one method."""

    def build(distribution: str, name: str, source: str = HALF) -> None:
        folder = tmp_path / distribution
        module, info = distribution.replace("-", "_"), folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[pfedsam.methods]\n{name} = {module}:METHOD\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return build


def test_a_loss_that_a_method_does_not_declare_is_told_at_the_first_site_that_trains(
    install: Install, open_site
) -> None:
    """Else the server would refuse each report."""
    renamed = HALF.replace("return {name:", 'return {f"half_{name}":')
    install("fed-named", "named", renamed)
    with pytest.raises(UserFault, match=r"losses of method named named global, personal; came half_global; .* terms"):
        after_a_round(open_site, tiny(method="named"))
    declared = renamed.replace("settings=Settings)", 'settings=Settings, terms=("half_global",))')
    install("fed-declared", "declared", declared)
    assert after_a_round(open_site, tiny(method="declared")).shared()


def test_a_method_of_another_distribution_trains_under_its_own_settings(install: Install, open_site) -> None:
    assert "half" not in methods.names()
    install("fed-half", "half")
    assert "half" in methods.names()
    config = tiny(method="half", own={"share": 0.25})
    assert shared_schema(config) == shared_schema(tiny(method="fedavg"))
    assert after_a_round(open_site, config).shared()
    for own, told in (({"share": 2}, "method.share"), ({"part": 1}, "among share, free"), ({"free": 1e400}, "inf")):
        with pytest.raises(UserFault, match=told):
            tiny(method="half", own=own)


def test_a_name_of_ours_or_of_two_distributions_is_refused(install: Install) -> None:
    install("fed-ditto", "ditto")
    with pytest.raises(UserFault, match=r"one method ditto; came several: one in pfedsam, one in .* fed-ditto"):
        tiny(method="ditto")
    assert tiny(method="fedavg").method == "fedavg"
    install("fed-one", "same")
    install("fed-other", "same")
    with pytest.raises(UserFault, match=r"one in distribution fed-(one|other), one in distribution fed-(one|other)"):
        tiny(method="same")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise RuntimeError('too old')", "RuntimeError: too old"),
        ("", "AttributeError"),
        ("METHOD = 3", "int at fed_bad:METHOD"),
    ],
)
def test_one_that_does_not_work_is_told_with_its_distribution(install: Install, source: str, told: str) -> None:
    install("fed-bad", "bad", source)
    with pytest.raises(UserFault, match=f"method bad in distribution fed-bad; came .*{told}"):
        tiny(method="bad")


def test_one_that_is_not_installed_is_told_with_what_to_install() -> None:
    with pytest.raises(UserFault, match=r"came half; to mend it: .*install the distribution that has the method"):
        tiny(method="half")
