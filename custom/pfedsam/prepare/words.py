"""The words in folder and file names that show what they contain: mask, image, modality, split, class, date."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pfedsam.errors import UserFault
from pfedsam.names import spelling

MASK_WORDS = (
    r"masks?|msks?|segs?|segm|dseg|segmentations?|labels?|lbls?|labelmaps?|labels?t[rs]|gts?|ground[ _-]?truth"
    r"|annotations?|annots?|annos?|manual\d?"
)
IMAGE_WORDS = r"images?|images?t[rs]|imgs?|imaging|scans?|slices?|pictures?|photos?|volumes?|vols?|inputs?|originals?"
MODALITIES = (
    r"t1(?:w|c|n|ce|gd)?|t2(?:w|f|star)?|flair|dwi|adc|swi|pd(?:w)?|bold|cine|lge|bssfp|ct|cta|cbct|mri?|mra|pet|suv"
    r"|us|cxr|x-?ray|oct|angio"
)
LONG_READERS = r"(?:rater|reader|annotator|expert|observer|grader|radiologist|doctor)\d*"
READERS = rf"{LONG_READERS}|(?:user|version|ver|v|r)\d*"
COPIES = r"copy|kopie|old|new|final|draft|corrected|reviewed|backup|bak|auto|pred|prediction|consensus|staple|\(\d+\)"
WEAK = rf"rois?|contours?|lesions?|tumou?rs?|{LONG_READERS}"  # a mask only beside an image of the same name
SPLITS = r"train|training|val|valid|validation|test|testing"
SIDES = r"left|right|l|r|od|os|ou|lt|rt"
DATE = (  # a whole one
    r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[1-9]|[12]\d|3[01])[-_.](?:0[1-9]|1[0-2])[-_.](?:19|20)\d\d"
)
TIMES = (
    rf"{DATE}|"
    r"(?:19|20)\d\d(?:[-_.]?(?:0[1-9]|1[0-2])(?:[-_.]?(?:0[1-9]|[12]\d|3[01]))?)?"
    r"|(?:ses|session|visit|time|timepoint|tp|baseline|followup|follow-up|day|week|month|year)[-_ ]?\d*"
)
PLACES = (
    r"(?:site|scanner|cent(?:er|re)|hospital|vendor|fold|batch|part|class|grade|stage|type|category|level|score"
    r"|bi-?rads|group|cohort|data-?set|set|series|sequence|anat|dwi|perf|func|pet|derivatives|ge|siemens"
    r"|philips)[-_ ]?\d*"
)
GENERIC = (
    r"patients?|subjects?|cases?|data|dicom|dcm|nifti|nii|png|jpe?g|tiff?|export|raw|axial|coronal|sagittal|pre|post"
    r"|contrast|all|processed|cropped|resized"
)
CLASSES = (  # names of folders that sort pictures: findings and organs
    r"(?:no|non|not|without|with)?[-_ ]?(?:tumou?rs?|cancer|disease[ds]?|findings?|lesions?|polyps?|covid(?:[-_ ]?19)?"
    r"|infect(?:ed|ion)|defects?|stroke|bleed(?:ing)?|dr)"
    r"|benign|malignant|(?:ab)?normal|positives?|negatives?|pos|neg|healthy|sick|controls?|viral[-_ ]\w+|bacterial"
    r"|nev(?:us|i)|cysts?|pituitary|mild|moderate|severe|low|high|early|late|advanced|others?|unknown|male|female|adults?"
    r"|child(?:ren)?|liver|spleen|kidneys?|lungs?|breasts?|brain|prostate|colon|heart|pancreas|stomach|bladder|skin|eyes?"
    r"|bones?|thyroid|ovary|cervix|uterus|esophagus|adrenal\w*|bile-?duct|\w+(?:oma|omas|osis|itis|pathy|plasia|monia)"
)
OWNERS = r"patients?|pat|pt|p|patid|pid|mrn|subjects?|subj|sub|person|participant|proband|donor"  # before their numbers
OWNED = r"cases?|ids?|slides?|wsi|videos?|vid"  # a patient's number follows, or that of a part of a patient
SURE_SLICES = r"slices?|frames?|tiles?|layers?"
SLICES = rf"{SURE_SLICES}|sl|z|ax(?:ial)?|cor(?:onal)?|sag(?:ittal)?"
SEQUENCES = frozenset({"t1", "t2", "pd", "flair", "dwi", "adc", "swi", "bold", "cine", "lge", "bssfp", "mra"})  # of MR
SAME = {"mri": "mr", "cta": "ct", "cbct": "ct", "suv": "pet", "cxr": "xray"}
BEGUN = re.compile(r"t1|t2|pd|tr|te|va")  # t1w and t1c are T1; val and validation are one split
SEPARATOR = re.compile(r"[ _.\-]+")
GLUED = re.compile(rf"(?P<word>(?:{MASK_WORDS}|{IMAGE_WORDS}))(?P<number>\d+)")
COMPOUND = re.compile(rf"(?P<rest>.+)[ _.-]+(?:(?P<mask>{MASK_WORDS})|(?P<image>{IMAGE_WORDS}|data))")
MASK, IMAGE, MODALITY, SPLIT = (re.compile(w) for w in (MASK_WORDS, IMAGE_WORDS, MODALITIES, SPLITS))

Words = tuple[str, ...]


@lru_cache(maxsize=100_000)
def words(stem: str) -> Words:
    """The parts of a plain name between its separators. `mask1` has two parts."""
    parts = [part for part in SEPARATOR.split(stem) if part]
    return tuple(word for part in parts for word in _unglued(part))


def _unglued(part: str) -> Words:
    found = GLUED.fullmatch(part)
    return (part,) if found is None else (found["word"], found["number"])


def without(parts: Iterable[str], *patterns: re.Pattern[str]) -> Words:
    """The parts without those that a pattern matches completely."""
    return tuple(part for part in parts if not any(pattern.fullmatch(part) for pattern in patterns))


def differ(one: str, other: str) -> bool:
    """Whether two plain names say different modalities or splits: p1_us and p1_mri, 1_train and 1_test."""
    for pattern in (MODALITY, SPLIT):
        kinds = [{_kind(word) for word in words(name) if pattern.fullmatch(word)} for name in (one, other)]
        if _apart(*kinds):
            return True
    return False


def _kind(word: str) -> str:
    begun = BEGUN.match(word)
    return begun[0] if begun else SAME.get(word, word)


def _apart(one: set[str], other: set[str]) -> bool:
    if {"mr"} in (one, other):
        one, other = ({"mr" if kind in SEQUENCES else kind for kind in kinds} for kinds in (one, other))
    return bool(one and other) and not (one <= other or other <= one)


@lru_cache(maxsize=100_000)
def role(folder: str) -> bool | None:
    """Whether a folder of this name contains masks (True) or images (False); None: the name does not show it.

    `train_masks` contains masks; `dataset_with_gt` may contain both.
    """
    name = spelling(folder)
    if MASK.fullmatch(name) or IMAGE.fullmatch(name):
        return MASK.fullmatch(name) is not None
    found = COMPOUND.fullmatch(name)
    if found is None or {"with", "and"} & set(words(name)):
        return None
    return found["mask"] is not None


def place(folders: Iterable[str]) -> Words:
    """The folders without those that say mask or image. `train_masks` becomes `train`."""
    kept = []
    for name in map(spelling, folders):
        if role(name) is None:
            kept.append(name)
        elif not MASK.fullmatch(name) and not IMAGE.fullmatch(name) and (found := COMPOUND.fullmatch(name)):
            kept.append(found["rest"])
    return tuple(kept)


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def pattern_of(text: str, option: str, group: str, example: str = "") -> re.Pattern[str]:
    """The regular expression that the user gave with an option.

    Args:
        group: what its group is for; `example` shows one.

    Raises:
        UserFault: it is not a regular expression, or has no group.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserFault(
            expected=f"a regular expression for {option}", came=f"{text!r} ({error})", do="correct the expression"
        ) from None
    if not pattern.groups:
        raise UserFault(expected=f"a group (...) in {option} {group}", came=text, do=f"put it in brackets{example}")
    return pattern
