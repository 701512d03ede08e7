"""Pretrained weight files: which are known or named by a job, where they lie, and how they are read."""

import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pfedsam.config import ModelConfig
from pfedsam.errors import UserFault
from pfedsam.files import sha256, write_atomic
from pfedsam.layout import ASSETS
from pfedsam.model.backbones import BUILDERS, builder, looks_like
from pfedsam.model.sam_format import load_any, sam_tensors
from pfedsam.tensors import PAYLOAD, Tensors, facts_of, intact, pack

ENVIRONMENT = "PFEDSAM_WEIGHTS"
SAM = "github.com/facebookresearch/segment-anything"
MOBILE_SAM = "github.com/ChaoningZhang/MobileSAM"
MOBILE_SAM_FILE = f"https://{MOBILE_SAM} (weights/mobile_sam.pt)"
SOURCE, SOURCE_SHA256 = "source", "source_sha256"  # in a converted copy's header: the file that it was made of
UNKNOWN_LICENCE = "as its publisher says; not known to pfedsam"

PROVENANCE = {  # by backbone: where its weights come from, and their licence
    "demo": ("the demonstration backbone that ships with pfedsam, pretrained on synthetic images", "that of pfedsam"),
    "tiny_vit": (f"MobileSAM (TinyViT-5M), {MOBILE_SAM}", "Apache-2.0"),
    "vit_b": (f"SAM ViT-B, {SAM}", "Apache-2.0"),
    "vit_l": (f"SAM ViT-L, {SAM}", "Apache-2.0"),
    "vit_h": (f"SAM ViT-H, {SAM}", "Apache-2.0"),
}


@dataclass(frozen=True)
class WeightFile:
    """A file whose content is known by its sha256; `published`: where its authors give it, empty if a job names it."""

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


@dataclass(frozen=True)
class Converted:
    """What `convert` made of a file.

    Attributes:
        path: of the safetensors file.
        sha256: of the file that was given, which a job names.
        backbone: whose tensors it has.
        known: whether a job may leave it unnamed.
    """

    path: Path
    sha256: str
    backbone: str
    known: bool


def read(model: ModelConfig, folder: str | Path | None = None) -> Tensors:
    """The float32 state of the SAM that `model` begins with, keys as segment-anything has them.

    Args:
        folder: where the file lies; None reads the environment variable PFEDSAM_WEIGHTS.

    Raises:
        UserFault: the file is missing, damaged, not the one that is needed, or none of a SAM.
    """
    path = locate(model, folder)
    try:
        state = _loaded(path)
    except (SafetensorError, OSError) as error:
        source = facts_of(path).get(SOURCE) or _source_by_name(path)
        raise UserFault(expected=f"whole weights in {path}", came=str(error), do=_again(path, source)) from None
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def locate(model: ModelConfig, folder: str | Path | None = None) -> Path:
    """The checked path of the weight file (a converted copy beside the original wins).

    Of a converted copy only the header is looked at, which is quick; `read` checks its tensors.

    Raises:
        UserFault: the file is missing, damaged, or not the one that is needed.
    """
    return _checked(*_at(model, folder)) if _files(model) else _shipped(model)


def identity(model: ModelConfig, folder: str | Path | None = None) -> str:
    """The sha256 of the published file that `read` would read, as known or named, not computed (demo: as it is).

    Raises:
        UserFault: no such file.
    """
    return _at(model, folder)[1].sha256 if _files(model) else sha256(_shipped(model))


def provenance(model: ModelConfig) -> tuple[str, str]:
    """Where the weights come from, and their licence, in words."""
    if not model.pretrained:
        return "random weights, alike everywhere", "none"
    if named := model.weights:
        return f"{named.name}, a {model.backbone} that the job names by its sha256 `{named.sha256}`", UNKNOWN_LICENCE
    return PROVENANCE[model.backbone]


def _files(model: ModelConfig) -> tuple[WeightFile, ...]:
    """The files of which one is needed: the one that the job names, else the published ones."""
    if model.weights:
        return (WeightFile(model.weights.name, model.weights.sha256, ""),)
    return KNOWN.get(model.backbone, ())


def _shipped(model: ModelConfig) -> Path:
    if model.backbone == "demo":
        return ASSETS / "demo_sam.safetensors"
    builder(model.backbone)
    raise UserFault(
        expected=f"model.weights with model.backbone {model.backbone}: pfedsam knows no published file of it",
        came="none",
        do="write model.weights=NAME:SHA256, which pfedsam convert FILE prints",
    )


def _at(model: ModelConfig, folder: str | Path | None) -> tuple[Path, WeightFile]:
    """The first file that is there of those of which one is needed, a converted copy before its original; unchecked."""
    where, files = folder or os.environ.get(ENVIRONMENT), _files(model)
    for known in files if where else ():
        original = Path(where or "") / known.name
        copy = original.with_suffix(".safetensors")
        ours = facts_of(copy).get(SOURCE) == known.name
        for path in (copy, original) if ours else (original, copy):
            if path.is_file():
                return path, known
    named = "; or ".join(
        f"{w.name} (sha256 {w.sha256}), {f'published at {w.published}' if w.published else 'which the job names'}"
        for w in reversed(files)  # the authors' own file first
    )
    raise UserFault(
        expected=f"the pretrained weights of {model.backbone}: {named}",
        came=f"no such file in {where}" if where else f"no weights folder ({ENVIRONMENT} is not set)",
        do=f"put the file in a folder and name that folder in {ENVIRONMENT} or in the site's settings",
    )


def _loaded(path: Path) -> Tensors:
    """The SAM's tensors in a file.

    Raises:
        OSError, SafetensorError: it is damaged.
        UserFault: it holds no SAM, or pickled objects.
    """
    content = load_any(path)
    noted = facts_of(path).get(PAYLOAD) if path.suffix == ".safetensors" else None
    if noted and isinstance(content, dict):
        with path.open("rb") as file:
            if not intact(noted, content, file):
                raise OSError("tensors that do not fit the checksum in it")
    return sam_tensors(content, path)


def convert(source: Path) -> Converted:
    """Write a SAM's torch file as safetensors beside it; the header has its origin and its tensors' digest.

    A file that is safetensors already stays as it is.

    Raises:
        UserFault: it is no SAM of a known backbone, or has a published file's name and other content; another file is
            in the way; or the disk is full or forbids writing.
    """
    if not source.is_file():
        raise UserFault(expected="a SAM's weight file", came=f"none at {source}", do="correct the path")
    known = FILES.get(source.name)
    digest = known.sha256 if known and _checked(source, known) else sha256(source)
    try:
        state = _loaded(source)
    except (SafetensorError, OSError) as error:
        raise UserFault(expected=f"whole weights in {source}", came=str(error), do="fetch it again") from None
    backbone = looks_like(state)
    if backbone is None:
        came = "another encoder: its image_encoder.patch_embed is none of theirs"
        raise UserFault(expected=f"a SAM of one of {', '.join(BUILDERS)}", came=came, do="name another file")
    target = source.with_suffix(".safetensors")
    if target != source:
        _check_free(target)
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        write_atomic(target, pack(tensors, {SOURCE: source.name, SOURCE_SHA256: digest}))
    return Converted(target, digest, backbone, known is not None)


def _check_free(target: Path) -> None:
    """Refuse to write over a file that is no conversion: it may be another publication."""
    if target.exists() and SOURCE_SHA256 not in facts_of(target):
        raise UserFault(
            expected=f"nothing at {target}, or an earlier conversion",
            came="another file",
            do="move it away, or delete it if it is damaged",
        )


def _checked(path: Path, known: WeightFile) -> Path:
    converted = path.name != known.name
    try:
        came = _source_of(path) if converted else sha256(path)
    except (SafetensorError, OSError) as error:
        came = getattr(error, "strerror", None) or str(error)
    if came != known.sha256:
        fetch = f"fetch it again from {known.published}; a file of your own needs another name and model.weights"
        named = "take the file from whoever made the job; or, if this is the right one, name its sha256 in the job"
        raise UserFault(
            expected=f"{path}{' converted from the file' if converted else ''} with sha256 {known.sha256}",
            came=came,
            do=_again(path, known.name) if converted else fetch if known.published else named,
        )
    return path


def _source_of(path: Path) -> str:
    """The sha256 of the file that a conversion was made of, as its header says."""
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get(SOURCE_SHA256))


def _source_by_name(path: Path) -> str | None:
    """The known file that a conversion of this name is of; where its header cannot say it."""
    return next((n for n in FILES if n != path.name and Path(n).with_suffix(".safetensors").name == path.name), None)


def _again(path: Path, source: str | None) -> str:
    return f"delete it and run: pfedsam convert {path.with_name(source)}" if source else "copy or fetch it again"
