"""Crafted model files: `verify` names what is wrong with each, and says ok to none that `load` refuses."""

import json
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import pfedsam
from conftest import tiny
from pfedsam.cli import main
from pfedsam.config import to_dict
from pfedsam.errors import UserFault
from pfedsam.export.verify import verify
from pfedsam.inference.facts import SEAL, seal
from pfedsam.tensors import PAYLOAD, Tensors, digest, facts_of, unpack

SECONDS, ROOM = 15, 300  # of CPU, and MB, that looking at one file may take


def packed(lines: dict[str, Any], tensors: Tensors, *, sealed: bool = True) -> bytes:
    """A file with right checksums and a right seal, as a careful forger writes it."""
    rest = {key: value for key, value in lines.items() if key not in (SEAL, PAYLOAD)}
    payload = digest(tensors)
    own = {SEAL: seal(rest, payload)} if sealed else {SEAL: lines[SEAL]} if SEAL in lines else {}
    return save(tensors, metadata={**rest, **own, PAYLOAD: payload})


Craft = Callable[[dict[str, str], Tensors], bytes]


def line(**changes: str | None) -> Craft:
    """Other lines in the header. None leaves one out."""

    def made(lines: dict[str, str], tensors: Tensors) -> bytes:
        new = {key: value for key, value in (lines | changes).items() if value is not None}
        return packed(new, tensors)

    return made


def setting(**changes: Any) -> Craft:
    """Other settings, with their digest. A section is a dict."""

    def made(lines: dict[str, str], tensors: Tensors) -> bytes:
        values = to_dict(tiny())
        for name, value in changes.items():
            values[name] = values[name] | value if isinstance(value, dict) and name in values else value
        text = json.dumps(values)
        return packed(lines | {"settings": text, "config": pfedsam.config.text_digest(text)}, tensors)

    return made


def tensors(change: Callable[[Tensors, str], object]) -> Craft:
    """Other tensors: `change` gets a copy, and the name of a shared one."""

    def made(lines: dict[str, str], held: Tensors) -> bytes:
        copy = dict(held)
        shared = (name for name in sorted(copy) if name.startswith("shared/"))
        change(copy, next(name for name in shared if len(set(copy[name].shape)) == 2))
        return packed(lines, copy)

    return made


def put(value: Callable[[torch.Tensor], torch.Tensor]) -> Craft:
    return tensors(lambda held, name: held.__setitem__(name, value(held[name]).contiguous()))


def header(change: Callable[[dict[str, Any]], Any]) -> Craft:
    """Another header of safetensors itself."""

    def made(lines: dict[str, str], held: Tensors) -> bytes:
        data = packed(lines, held)
        size = int.from_bytes(data[:8], "little")
        text = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return made


def first(entries: dict[str, Any], **fields: Any) -> dict[str, Any]:
    name = next(name for name in entries if name != "__metadata__")
    return entries | {name: entries[name] | fields}


CRAFTED: dict[str, Craft] = {
    # what the header says
    "no settings": line(settings=None),
    "settings that are no JSON": line(settings="{"),
    "settings that are a list": line(settings="[1]"),
    "settings without an end": line(settings='{"model": ' * 50_000),
    "settings of a number": line(settings="9" * 5000),
    "an unknown setting": setting(sudo=True),
    "an unknown method": setting(method={"name": "../../x"}),
    "a million classes": setting(model={"num_classes": 10**6}),
    "images of a million pixels a side": setting(model={"image_size": 10**6}),
    "images of no pixels": setting(model={"image_size": 0}),
    "a rank of a million": setting(model={"lora_rank": 10**6}),
    "a million experts": setting(model={"experts": 10**6}),
    "256 experts of rank 1024": setting(model={"experts": 256, "experts_rank": 1024}),
    "a rate without end": setting(train={"lr": float("inf")}),
    "an unknown backbone": setting(model={"backbone": "vit_x"}),
    "another backbone": setting(model={"backbone": "tiny_vit"}),
    "a study that leads elsewhere": setting(study="../../x"),
    "weights that lead elsewhere": setting(model={"weights": {"name": "../../x", "sha256": "0" * 64}}),
    "a class of half a character": setting(data={"classes": ["\ud800"]}),
    "a round of text": line(round="one"),
    "a round without end": line(round="9" * 5000),
    "no branches": line(branches=""),
    "no line of branches": line(branches=None),
    "an unknown branch": line(branches="global third"),
    "branches of a path": line(branches="../../x"),
    "no versions": line(versions=None),
    "versions that are no JSON": line(versions="1.0"),
    "a base that is not there": line(whole="true"),
    "another base": line(base="0" * 64),
    "no base": line(base=None),
    "a newer format": line(version="2"),
    "another format": line(format="pickle"),
    "a wrong seal": lambda lines, held: packed(lines | {"run": "another"}, held, sealed=False),
    "no seal": lambda lines, held: packed({k: v for k, v in lines.items() if k != SEAL}, held, sealed=False),
    "words of another script": line(run="раунд\u202e", settings=None),
    # the tensors
    "no tensors": lambda lines, _: packed(lines, {}),
    "a tensor less": tensors(lambda held, name: held.pop(name)),
    "a tensor more": tensors(lambda held, _: held.__setitem__("shared/x", torch.ones(3))),
    "a name that leads elsewhere": tensors(lambda held, _: held.__setitem__("shared/../../x", torch.ones(3))),
    "a tensor renamed": tensors(lambda held, name: held.__setitem__(name.upper(), held.pop(name))),
    "another shape": put(lambda t: t[:1]),
    "another order of axes": put(lambda t: t.T),
    "no values": put(lambda t: t[:0]),
    "float64": put(lambda t: t.double()),
    "float16": put(lambda t: t.half()),
    "integers": put(lambda t: t.int()),
    "float8": put(lambda t: t.to(torch.float8_e4m3fn)),
    "truth values": put(lambda t: t.bool()),
    "NaN": put(lambda t: torch.full_like(t, torch.nan)),
    "infinite": put(lambda t: torch.full_like(t, torch.inf)),
    "no private part": lambda lines, held: packed(lines, {n: t for n, t in held.items() if n.startswith("shared/")}),
    "half a base": tensors(lambda held, _: held.__setitem__("base/encoder.x", torch.ones(3))),
    "half a base that is said": lambda lines, held: packed(
        lines | {"whole": "true"}, held | {"base/encoder.x": torch.ones(3)}
    ),
    "a base in float8 that is said": lambda lines, held: packed(
        lines | {"whole": "true"}, held | {"base/encoder.x": torch.ones(3).to(torch.float8_e5m2)}
    ),
    # the file
    "nothing": lambda *_: b"",
    "seven bytes": lambda *_: b"\1\0\0\0\0\0\0",
    "a header of 2**63 bytes": lambda *_: struct.pack("<Q", 2**63) + b"{}",
    "a header of 99 MB that is not there": lambda *_: struct.pack("<Q", 99 * 10**6) + b"{}",
    "a header of no bytes": lambda *_: bytes(8),
    "a header of brackets": lambda *_: struct.pack("<Q", 10**5) + b"[" * 10**5,
    "a header that is a list": header(lambda _: []),
    "facts that are a list": header(lambda entries: entries | {"__metadata__": [1]}),
    "facts that are numbers": header(lambda entries: entries | {"__metadata__": {"format": 1}}),
    "overlapping tensors": header(lambda entries: first(entries, data_offsets=[0, 4])),
    "offsets backwards": header(lambda entries: first(entries, data_offsets=[8, 0])),
    "offsets beyond the file": header(lambda entries: first(entries, data_offsets=[0, 2**40])),
    "a shape that overflows": header(lambda entries: first(entries, shape=[2**40, 2**40])),
    "a negative shape": header(lambda entries: first(entries, shape=[-1])),
    "an unknown number format": header(lambda entries: first(entries, dtype="F7")),
    "another number format": header(lambda entries: first(entries, dtype="U64")),
    "half of the file": lambda lines, held: packed(lines, held)[: len(packed(lines, held)) // 2],
    "a pickle": lambda *_: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "an archive": lambda *_: b"PK\x03\x04" + bytes(99),
}


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    assert len(CRAFTED) >= 60


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_refused_by_load_and_named_by_verify(model_file: Path, tmp_path: Path, name: str) -> None:
    held, _ = unpack(model_file.read_bytes())
    path = tmp_path / "m.safetensors"
    path.write_bytes(CRAFTED[name](facts_of(model_file), held))
    with bounded():
        fine = [check for check in verify(path) if check.ok is False] == []
        with pytest.raises(UserFault):
            pfedsam.load(path, device="cpu")
    assert not fine


def test_the_verb_says_so_without_a_traceback(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, _ = unpack(model_file.read_bytes())
    path = tmp_path / "m.safetensors"
    for name in ("a million classes", "a base that is not there", "overlapping tensors", "facts that are numbers"):
        path.write_bytes(CRAFTED[name](facts_of(model_file), held))
        assert main(["verify", str(path)]) == 1
        assert "FAILED" in capsys.readouterr().out


def test_an_untouched_copy_is_read_by_both(model_file: Path, tmp_path: Path) -> None:
    held, _ = unpack(model_file.read_bytes())
    path = tmp_path / "m.safetensors"
    for same in (line(), setting(), tensors(lambda *_: None), header(lambda entries: entries)):
        path.write_bytes(same(facts_of(model_file), held))
        assert all(check.ok is not False for check in verify(path))
        pfedsam.load(path, device="cpu")


class bounded:  # noqa: N801
    """Fails if what it holds takes too long, or too much memory."""

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.signal(signal.SIGPROF, self._ring)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before < ROOM * 1024

    def _ring(self, *_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")
