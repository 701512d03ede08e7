"""Pretrained weight files: which are known, where they lie, and how they are read without pickle."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pfedsam.errors import UserFault
from pfedsam.files import PAYLOAD, facts_of, intact, pack, write_atomic

ASSETS = Path(__file__).parent.parent / "assets"
ENVIRONMENT = "PFEDSAM_WEIGHTS"
SAM = "github.com/facebookresearch/segment-anything"
MOBILE_SAM = "github.com/ChaoningZhang/MobileSAM"
MOBILE_SAM_FILE = f"https://{MOBILE_SAM} (weights/mobile_sam.pt)"


PROVENANCE = {  # by backbone: where its weights come from, and their licence
    "demo": ("the demonstration backbone that ships with pfedsam, pretrained on synthetic images", "that of pfedsam"),
    "tiny_vit": (f"MobileSAM (TinyViT-5M), {MOBILE_SAM}", "Apache-2.0"),
    "vit_b": (f"SAM ViT-B, {SAM}", "Apache-2.0"),
    "vit_l": (f"SAM ViT-L, {SAM}", "Apache-2.0"),
    "vit_h": (f"SAM ViT-H, {SAM}", "Apache-2.0"),
}


@dataclass(frozen=True)
class WeightFile:
    """A file whose content is known by its sha256; `published` is where its authors give it."""

    name: str
    sha256: str
    published: str


def _sam(name: str, sha256: str) -> tuple[WeightFile, ...]:
    return (WeightFile(name, sha256, f"https://{SAM}#model-checkpoints"),)


KNOWN: dict[str, tuple[WeightFile, ...]] = {
    "vit_b": _sam("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit_l": _sam("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit_h": _sam("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "tiny_vit": (
        WeightFile(
            "mobile_sam_fp16.safetensors",
            "6bc78fdf060f1a700d2ead373a3e0cadd5f293bc056765d07bcc6561d172a8a8",
            MOBILE_SAM_FILE + ", rounded to float16",
        ),
        WeightFile(
            "mobile_sam.pt", "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f", MOBILE_SAM_FILE
        ),
    ),
}
FILES = {file.name: file for files in KNOWN.values() for file in files}


def read(backbone: str, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The float32 state of a backbone's SAM, keys as its authors publish them.

    Args:
        backbone: a name of `KNOWN`, or "demo" (ships with the package).
        folder: where the file lies; None reads the environment variable PFEDSAM_WEIGHTS.

    Raises:
        UserFault: the file is missing, damaged, or not the known one.
    """
    path = locate(backbone, folder)
    try:
        state = load_any(path)
        if not _intact(path, state):
            raise OSError("tensors that do not fit the checksum in it")
    except (SafetensorError, OSError) as error:
        raise UserFault(expected=f"whole weights in {path}", came=str(error), do=_again(path)) from None
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def locate(backbone: str, folder: str | Path | None = None) -> Path:
    """The checked path of a backbone's weight file (a converted copy beside the original wins).

    Of a converted copy only the header is looked at, which is quick; `read` checks its tensors.

    Raises:
        UserFault: the file is missing, damaged, or not the known one.
    """
    if backbone == "demo":
        return ASSETS / "demo_sam.safetensors"
    return _checked(*_at(backbone, folder))


def identity(backbone: str, folder: str | Path | None = None) -> str:
    """The sha256 of the published file that `read` would read, as known, not computed (demo: as it is).

    Raises:
        UserFault: no such file.
    """
    if backbone == "demo":
        return sha256(locate(backbone))
    return _at(backbone, folder)[1].sha256


def _at(backbone: str, folder: str | Path | None) -> tuple[Path, WeightFile]:
    """The first file of a backbone that is there, a converted copy before its original; unchecked."""
    where = folder or os.environ.get(ENVIRONMENT)
    for known in KNOWN[backbone] if where else ():
        original = Path(where or "") / known.name
        for path in (original.with_suffix(".safetensors"), original):
            if path.is_file():
                return path, known
    files = "; or ".join(f"{w.name} (sha256 {w.sha256}), published at {w.published}" for w in KNOWN[backbone])
    raise UserFault(
        expected=f"the pretrained weights of {backbone}: {files}",
        came=f"no such file in {where}" if where else f"no weights folder ({ENVIRONMENT} is not set)",
        do=f"put the file in a folder and name that folder in {ENVIRONMENT} or in the site's settings",
    )


def load_any(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, or in a torch file read with `weights_only=True`."""
    if path.suffix == ".safetensors":
        return load_file(path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def convert(source: Path) -> Path:
    """Write the known torch file `source` as safetensors beside it; the header has its origin and its tensors' digest.

    Raises:
        UserFault: the file is not one of the known ones, or the disk is full or forbids writing.
    """
    known = FILES.get(source.name)
    if known is None or not source.is_file():
        raise UserFault(
            expected="a published SAM file (" + ", ".join(FILES) + ")",
            came=str(source),
            do="give the path of the file as its authors named it",
        )
    target = source.with_suffix(".safetensors")
    state = {k: v.contiguous() for k, v in load_any(_checked(source, known)).items()}
    write_atomic(target, pack(state, {"source": known.name, "source_sha256": known.sha256}))
    return target


def sha256(path: Path) -> str:
    """The file's sha256, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: Path, known: WeightFile) -> Path:
    converted = path.name != known.name
    try:
        came = _source_of(path) if converted else sha256(path)
    except (SafetensorError, OSError) as error:
        came = getattr(error, "strerror", None) or str(error)
    if came != known.sha256:
        raise UserFault(
            expected=f"{path}{' converted from the file' if converted else ''} with sha256 {known.sha256}",
            came=came,
            do=_again(path) if converted else f"fetch it again from {known.published}",
        )
    return path


def _source_of(path: Path) -> str:
    """The sha256 of the file that a conversion was made of, as its header says."""
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get("source_sha256"))


def _intact(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether the tensors fit the checksum in their file; files made by others have none."""
    noted = facts_of(path).get(PAYLOAD) if path.suffix == ".safetensors" else None
    if not noted:
        return True
    with path.open("rb") as file:
        return intact(noted, state, file)


def _again(path: Path) -> str:
    source = next((n for n in FILES if n != path.name and Path(n).with_suffix(".safetensors").name == path.name), None)
    return f"delete it and run: pfedsam convert {path.with_name(source)}" if source else "copy or fetch it again"
