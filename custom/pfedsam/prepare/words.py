"""The words in folder and file names that show what they contain: mask, image, modality, split, class, date."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pfedsam.data import classes
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
WEAK = re.compile(  # a mask only beside an image of the same name
    rf"rois?|contours?|lesions?|tumou?rs?|{LONG_READERS}"
)
SPLITS = r"train|training|val|valid|validation|test|testing"
SURE_SIDES = "|".join((classes.SIDES, *classes.EYES, "ou"))
SIDES = rf"{SURE_SIDES}|{classes.SHORT_SIDES}"
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
MASK_END = re.compile(rf"(?:^|(?P<stem>.*?)[ _.-]+)(?:{MASK_WORDS})")
MASK_START = re.compile(rf"(?:{MASK_WORDS})[ _.-]+(?P<stem>.+)")
IMAGE_END = re.compile(r"(?:^|(?P<stem>.*?)[ _.-]+)(?:image|img|imaging|scan)")
CHANNEL = re.compile(r"(?P<stem>.+)_\d{4}")  # nnU-Net's imagesTr/case_0000.nii.gz
ONLY_CHANNEL = re.compile(r"(?P<stem>.+)_0000")  # the same in a folder of another name
NUMBER = re.compile(r"\d")
NNUNET = {"tr": "train", "ts": "test"}  # imagesTr and labelsTr
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


def cut(stem: str, *patterns: re.Pattern[str]) -> str:
    """The stem without the word that a pattern finds; empty if the pattern matches all of it."""
    found = next((m for p in patterns if (m := p.fullmatch(stem))), None)
    return stem if found is None else found["stem"] or ""


def keys_of_mask(stem: str) -> tuple[Words, ...]:
    """A mask's names for pairing: complete, without the end, without words such as mask, without modalities."""
    short = cut(cut(stem, MASK_END, MASK_START), IMAGE_END)
    return (*_whole(stem, short), without(words(stem), IMAGE, MASK), without(words(short), IMAGE, MASK, MODALITY))


def keys_of_image(stem: str, folders: Words) -> tuple[Words, ...]:
    """The same of an image.

    An image may name its split although its mask does not, as in DRIVE's 21_training and 21_manual1. The last level
    also leaves out nnU-Net's channel: images/p1_0000 belongs to labels/p1.
    """
    case = cut(stem, CHANNEL) if {"imagestr", "imagests"} & set(folders) else stem
    lone = without(words(cut(case, ONLY_CHANNEL)), IMAGE, MODALITY, SPLIT)
    return (*_whole(stem, cut(case, IMAGE_END)), without(words(case), IMAGE), lone)


def _whole(*stems: str) -> tuple[Words, ...]:
    return tuple((stem,) if stem else () for stem in stems)


def differ(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether plain names say other modalities or splits than others: p1_us and p1_mri, 1_train and 1_test."""
    for pattern in (MODALITY, SPLIT):
        kinds = [
            {_kind(word) for name in names for word in words(name) if pattern.fullmatch(word)} for names in (one, other)
        ]
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
    """The folders without the words that say mask or image. `train_masks` and `labelsTr` become `train`."""
    return tuple(rest for name in map(spelling, folders) if (rest := name if role(name) is None else _rest(name)))


def _rest(folder: str) -> str:
    """What a folder of images or masks says besides that; empty if nothing."""
    if MASK.fullmatch(folder) or IMAGE.fullmatch(folder):
        return NNUNET.get(folder[-2:], "")
    found = COMPOUND.fullmatch(folder)
    return found["rest"] if found else ""


def besides(folders: Sequence[str]) -> Words:
    """What the nearest folder that says images or masks says besides: `p1` in `p1_masks`."""
    return place([next((folder for folder in reversed(folders) if role(folder) is not None), "masks")])


def beyond(path: Words, known: Words) -> Words:
    """The folders of a path that another lacks. One that names a split does not count."""
    return without((folder for folder in path if folder not in known), SPLIT)


def other_numbers(one: Words, other: Words) -> bool:
    """Whether folders have other numbers than others: `P1` and `P2`."""
    return _apart(*({w for folder in folders for w in words(folder) if NUMBER.search(w)} for folders in (one, other)))


def agree(one: Words, other: Words) -> bool:
    """Whether the folders of one are among those of the other, in the same order."""
    short, long = sorted((one, other), key=len)
    rest = iter(long)
    return all(folder in rest for folder in short)


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
