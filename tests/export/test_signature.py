"""A signature says who vouches for a file, and whatever breaks it is told in words."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kits import Project
from safetensors.torch import load_file

from pfedsam.certificates import now, root_of
from pfedsam.cli import main
from pfedsam.errors import UserFault
from pfedsam.export.signature import beside, check, sign, signer_of


@pytest.fixture(scope="module")
def project() -> Project:
    return Project()


@pytest.fixture(scope="module")
def kit(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project.kit(tmp_path_factory.mktemp("kits") / "hospital-a", "hospital-a")


@pytest.fixture
def signed(kit: Path, model_file: Path, tmp_path: Path) -> Path:
    """A model file with hospital-a's signature."""
    path = Path(shutil.copy(model_file, tmp_path / "model.safetensors"))
    sign(path, signer_of(kit, now()), now())
    return path


def test_a_signature_says_who_signed_and_has_no_secret(signed: Path, kit: Path) -> None:
    assert str(check(signed, root_of(kit), now())).startswith("hospital-a of hub signed this file, on 20")
    assert "PRIVATE" not in beside(signed).read_text()
    assert load_file(signed), "the model itself is as it was"


def test_the_server_signs_with_its_own_certificate(project: Project, signed: Path, tmp_path: Path) -> None:
    server = project.kit(tmp_path / "fl-server", "fl-server", file="server")
    sign(signed, signer_of(server, now()), now())
    assert check(signed, root_of(server / "startup/rootCA.pem"), now(), signer="fl-server").signer == "fl-server"


def test_a_renamed_file_is_still_the_signed_one(signed: Path, kit: Path) -> None:
    new = signed.rename(signed.with_name("renamed.safetensors"))
    beside(signed).rename(beside(new))
    assert check(new, root_of(kit), now()).signer == "hospital-a"


def lines_of(path: Path) -> dict:
    return json.loads(beside(path).read_text())


def rewritten(path: Path, **changes: object) -> None:
    beside(path).write_text(json.dumps({**lines_of(path), **changes}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def say_another_sum(path: Path) -> None:
    """As a forger without the key would: the changed file's own sum in the statement."""
    flip(path)
    import hashlib

    said = json.loads(lines_of(path)["statement"]) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewritten(path, statement=json.dumps(said, sort_keys=True))


def sign_with_a_stranger_s_key(path: Path) -> None:
    stranger = Project("pfedsam").kit(path.parent / "stranger", "hospital-a")
    theirs = lines_of(path)["certificates"]
    sign(path, signer_of(stranger, now()), now())
    rewritten(path, certificates=theirs)


def sign_in_another_project(path: Path) -> None:
    sign(path, signer_of(Project("pfedsam").kit(path.parent / "other", "hospital-a"), now()), now())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another byte": (flip, "signature of other content: model.safetensors was changed"),
    "a forged sum": (say_another_sum, "a signature that the key of hospital-a did not make"),
    "a stranger's key": (sign_with_a_stranger_s_key, "a signature that the key of hospital-a did not make"),
    "another project": (sign_in_another_project, "pfedsam did not issue the certificate of hospital-a"),
    "no signature": (lambda path: beside(path).unlink(), "came none; to mend it: ask the file's owner for it"),
    "half a signature": (lambda path: beside(path).write_text(beside(path).read_text()[:200]), "came something else"),
    "not JSON of ours": (lambda path: beside(path).write_text("[]"), "came something else"),
    "a huge one": (lambda path: rewritten(path, more="x" * 200_000), "came something else"),
    "no certificate": (lambda path: rewritten(path, certificates=[]), "came something else"),
    "an empty mark": (lambda path: rewritten(path, signature=""), "the key of hospital-a did not make"),
    "a number as mark": (lambda path: rewritten(path, signature=7), "came something else"),
    "another version": (lambda path: rewritten(path, version=2), "came something else"),
    "a list as statement": (lambda path: rewritten(path, statement="[]"), "came something else"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_breaks_a_signature_is_told_in_words(signed: Path, kit: Path, how: str) -> None:
    breaks, told = BROKEN[how]
    root = root_of(kit)
    breaks(signed)
    with pytest.raises(UserFault) as caught:
        check(signed, root, now())
    assert told in str(caught.value)


def test_a_signature_made_for_another_purpose_does_not_count(signed: Path, kit: Path) -> None:
    """A kit's key also signs FLARE's own messages. None of them is a signature of a file."""
    from nvflare.lighter.utils import load_private_key_file, sign_content

    key = load_private_key_file(kit / "startup/client.key")
    mark = sign_content(lines_of(signed)["statement"], key, return_str=False)
    rewritten(signed, signature=base64.b64encode(mark).decode())
    with pytest.raises(UserFault, match="did not make"):
        check(signed, root_of(kit), now())


def test_an_ended_certificate_proves_nothing_and_signs_nothing(tmp_path: Path) -> None:
    project = Project()
    kit = project.kit(tmp_path / "kit", "hospital-a", days=10)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    sign(file, signer_of(kit, now()), now())
    later = now().replace(year=now().year + 1)
    with pytest.raises(UserFault, match="the certificate of hospital-a ended on 20"):
        check(file, root_of(kit), later)
    with pytest.raises(UserFault, match=r"ended on 20.*ask the project's administrator to renew it"):
        signer_of(kit, later)


def test_an_ended_root_proves_nothing(signed: Path, kit: Path) -> None:
    short = Project(days=-1)
    ended = short.kit(signed.parent / "short", "hospital-a")
    with pytest.raises(UserFault, match="the certificate of pfedsam ended"):
        signer_of(ended, now())


def test_only_a_root_certificate_is_trusted(signed: Path, kit: Path) -> None:
    """Else a party could name its own certificate as what others should trust."""
    with pytest.raises(UserFault, match="the certificate of hospital-a, which may issue none"):
        root_of(kit / "startup/client.crt")


def test_a_party_s_certificate_issues_no_other(kit: Path, signed: Path, tmp_path: Path, project: Project) -> None:
    """hospital-a signs a certificate for fl-server with its own key."""
    fake = Project("hospital-a")
    from nvflare.lighter.utils import load_private_key_file

    fake.key = load_private_key_file(kit / "startup/client.key")
    forged = fake.kit(tmp_path / "forged", "fl-server", file="server")
    (forged / "startup/rootCA.pem").write_bytes((kit / "startup/rootCA.pem").read_bytes())
    with pytest.raises(UserFault, match="pfedsam did not issue the certificate of fl-server"):
        signer_of(forged, now())


def test_a_kit_whose_key_is_another_s_or_has_a_password_is_refused(project: Project, tmp_path: Path) -> None:
    one, other = (project.kit(tmp_path / name, name) for name in ("a", "b"))
    shutil.copy(other / "startup/client.key", one / "startup/client.key")
    with pytest.raises(UserFault, match="came another key"):
        signer_of(one, now())
    (one / "startup/client.key").unlink()
    with pytest.raises(UserFault, match=r"a key without a password at .*client\.key; came No such file"):
        signer_of(one, now())
    with pytest.raises(UserFault, match=r"a certificate \(PEM\) at .*client\.crt; came No such file"):
        signer_of(tmp_path, now())


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_verify_says_who_signed_and_refuses_another_signer(
    signed: Path, kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(signed)]) == 0
    assert "-       signature         not checked: --by ROOT" in told(capsys)
    assert main(["verify", str(signed), "--by", str(kit)]) == 0
    assert "ok      signature         hospital-a of hub signed this file" in told(capsys)
    assert main(["verify", str(signed), "--by", str(kit), "--signer", "fl-server"]) == 1
    assert "by fl-server; came one of hospital-a; to mend it: do not use the file" in told(capsys)
    beside(signed).unlink()
    assert main(["verify", str(signed), "--by", str(kit)]) == 1
    assert main(["verify", str(signed)]) == 0
    assert "FAILED  signature" in (out := told(capsys))
    assert out.count("signature ") == 2, "without --by and without a signature there is no line"
    assert main(["verify", str(signed), "--signer", "x"]) == 2
    assert main(["verify", str(signed), "--by", str(signed)]) == 2


def test_of_a_file_without_tensors_only_the_signature_is_checked(kit: Path, tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"a graph")
    sign(graph, signer_of(kit, now()), now())
    assert main(["verify", str(graph), "--by", str(kit)]) == 0
    graph.write_bytes(b"another")
    assert main(["verify", str(graph), "--by", str(kit)]) == 1
    assert main(["verify", str(tmp_path / "none.onnx"), "--by", str(kit)]) == 1
