"""Synthetic hospitals: scan-like images with exact lesion masks, drawn from a seed.

No image is of a patient. The sites differ as real hospitals do: contrast and gamma, colour cast, noise, blur,
resolution, field of view, lesion size, and at one site the labelling habit.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pfedsam.config import Config
from pfedsam.data.datalist import Row, read, write_csv
from pfedsam.data.folder import new_folder

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Appearance:
    """How one site's scanner and annotators turn the same anatomy into an image.

    Attributes:
        side: pixels of the square image.
        gamma, contrast: tone curve; 1 and 1 change nothing.
        cast: gain of R, G, B.
        noise: standard deviation, in units of the full range.
        blur: Gaussian sigma in pixels.
        view: radius of the field of view, in units of half the side.
        lesion: mean lesion radius, in units of the side.
        lesion_gain: brightness of the lesion against tissue; negative is darker.
        margin: pixels that this site's annotators draw around the lesion (its labelling habit).
        inverted: bright background, dark tissue.
    """

    side: int = 128
    gamma: float = 1.0
    contrast: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.02
    blur: float = 0.6
    view: float = 1.0
    lesion: float = 0.10
    lesion_gain: float = 0.3
    margin: int = 0
    inverted: bool = False

    @property
    def dark(self) -> bool:
        """Whether a lesion looks darker than the tissue around it."""
        return (self.lesion_gain < 0) != self.inverted


DEMO_SITES: dict[str, Appearance] = {
    "site-1": Appearance(gamma=0.8, cast=(1.0, 0.7, 0.5), noise=0.03, view=0.95, lesion=0.13),
    "site-2": Appearance(
        side=96, gamma=1.3, contrast=0.85, cast=(0.8, 0.95, 1.0), noise=0.04, blur=1.0, lesion=0.12, lesion_gain=-0.33
    ),
    "site-3": Appearance(side=160, contrast=0.9, cast=(0.85, 1.0, 0.7), view=0.85, lesion=0.1, inverted=True),
    "site-4": Appearance(gamma=1.2, cast=(1.0, 0.8, 0.9), noise=0.035, blur=0.9, lesion=0.12, margin=3),
}
PRETRAIN_SITES: tuple[Appearance, ...] = (  # appearances that no demo site has; bright and dark lesions
    Appearance(lesion=0.15, lesion_gain=0.4),
    Appearance(gamma=0.85, contrast=1.1, cast=(0.9, 0.9, 1.0), noise=0.03, lesion=0.14, lesion_gain=0.35),
    Appearance(gamma=1.1, contrast=1.2, cast=(1.0, 1.0, 0.85), blur=1.0, lesion=0.17, lesion_gain=0.45),
    Appearance(noise=0.03, lesion=0.15, lesion_gain=-0.4),
    Appearance(gamma=0.8, contrast=0.9, cast=(1.0, 0.9, 0.9), blur=0.8, lesion=0.13, lesion_gain=-0.35),
    Appearance(contrast=1.1, cast=(0.9, 0.95, 1.0), lesion=0.15, lesion_gain=0.4, inverted=True),
)


def appearance_of(site: str) -> Appearance:
    """A demo site's appearance. For any other name it is drawn from the name."""
    if site in DEMO_SITES:
        return DEMO_SITES[site]
    rng = np.random.default_rng(_seed(0, site))
    return Appearance(
        side=int(rng.choice([96, 128, 160])),
        gamma=float(rng.uniform(0.7, 1.5)),
        contrast=float(rng.uniform(0.7, 1.1)),
        cast=(float(rng.uniform(0.7, 1)), float(rng.uniform(0.7, 1)), float(rng.uniform(0.5, 1))),
        noise=float(rng.uniform(0.02, 0.05)),
        blur=float(rng.uniform(0.4, 1.2)),
        view=float(rng.uniform(0.85, 1)),
        lesion=float(rng.uniform(0.08, 0.11)),
    )


def drawn(folder: Path, site: str, config: Config) -> Path:
    """The folder with the data of `site`, or of all demo sites if the job pools them. It is drawn at first use.

    It is below `folder`, and named after the settings that its images follow from: other settings have another one.

    Raises:
        UserFault: the folder contains something else, or cannot be written.
    """
    counts, seed = config.data.counts, config.seed
    drawn_by = json.dumps([config.data.pool, counts, seed], sort_keys=True)
    own = folder / hashlib.sha256(drawn_by.encode()).hexdigest()[:12]
    if not (own / "datalist.csv").exists():
        write_pool(own, counts, seed) if config.data.pool else write_site(own, site, counts, seed)
    return own


def write_site(folder: Path, site: str, counts: dict[str, int], seed: int) -> Path:
    """Write a site's images, masks and datalist.csv into `folder`, or nothing; returns the datalist's path.

    Args:
        counts: images per split, {"train": n, "val": n, "test": n}.
        seed: another seed gives other anatomy; the same seed gives the same bytes.

    Raises:
        UserFault: `folder` is not empty, or cannot be written.
    """
    with new_folder(folder) as new:
        _fill(new, site, counts, seed)
    return folder / "datalist.csv"


def write_pool(folder: Path, counts: dict[str, int], seed: int) -> Path:
    """Write every demo site below `folder`, with one datalist for all: the pooled baseline. See `write_site`."""
    rows = []
    with new_folder(folder) as new:
        for site in DEMO_SITES:
            for of_split in read(_fill(new / site, site, counts, seed)).values():
                rows += [
                    Row(f"{site}/{row.image}", f"{site}/{row.mask}", row.split, f"{site}/{row.group}")
                    for row in of_split
                ]
        write_csv(new / "datalist.csv", rows)
    return folder / "datalist.csv"


def _fill(folder: Path, site: str, counts: dict[str, int], seed: int) -> Path:
    look, rows = appearance_of(site), []
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for split, count in counts.items():
        for i in range(count):
            name = f"synthetic_{split}_{i:03d}.png"
            image, mask = draw(look, np.random.default_rng(_seed(seed, site, name)))
            Image.fromarray(image).save(folder / "images" / name)
            Image.fromarray(mask).save(folder / "masks" / name)
            rows.append(Row(f"images/{name}", f"masks/{name}", split, f"synthetic_{split}_{i:03d}"))
    return write_csv(folder / "datalist.csv", rows)


def draw(look: Appearance, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image (side, side, 3) in 0..255 and its mask (side, side) of 0 and 1."""
    side = look.side
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    tissue, inside = _tissue(x, y, rng)
    lesion = _lesions(x, y, inside, look, rng)
    texture = 1 + 0.3 * _smooth(rng, side, side / 40)
    picture = tissue + look.lesion_gain * ndimage.gaussian_filter(lesion.astype(float), look.blur) * texture
    mask = ndimage.binary_dilation(lesion, iterations=look.margin) if look.margin else lesion
    return _expose(picture, np.hypot(x, y) * 2 < look.view, look, rng), mask.astype(np.uint8)


def _tissue(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Body outline with texture, bright vessels and dark cysts that resemble lesions."""
    side = len(x)
    a, b = rng.uniform(0.38, 0.46, 2)
    body = (x / a) ** 2 + (y / b) ** 2 < 1
    value = np.where(body, 0.42 + 0.1 * _smooth(rng, side, side / 12), 0.05)
    for _ in range(rng.integers(3, 6)):
        value += np.where(body, 0.22 * _vessel(x, y, rng), 0)
    for _ in range(rng.integers(1, 4)):
        cx, cy, radius = *rng.uniform(-0.25, 0.25, 2), rng.uniform(0.015, 0.03)
        value -= 0.25 * (np.hypot(x - cx, y - cy) < radius)
    return value, (x / a) ** 2 + (y / b) ** 2 < 0.6


def _vessel(x: Array, y: Array, rng: np.random.Generator) -> Array:
    angle, offset, wave = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3), rng.uniform(4, 9)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    centre = offset + 0.04 * np.sin(wave * along + rng.uniform(0, 6))
    return np.asarray(np.exp(-(((across - centre) / 0.008) ** 2)))


def _lesions(
    x: Array, y: Array, inside: NDArray[np.bool_], look: Appearance, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """One or two blobs with wavy outlines and centres inside the body."""
    mask = np.zeros_like(inside)
    for _ in range(rng.integers(1, 3)):
        row, column = rng.choice(np.argwhere(inside))
        dx, dy = x - x[row, column], y - y[row, column]
        angle, radius = np.arctan2(dy, dx), look.lesion * rng.uniform(0.7, 1.3)
        waves = sum(rng.uniform(0, 0.14) * np.sin(n * angle + rng.uniform(0, 6.3)) for n in (2, 3, 5))
        mask |= np.hypot(dx, dy * rng.uniform(0.8, 1.25)) < radius * (1 + waves)
    return mask


def _expose(picture: Array, view: NDArray[np.bool_], look: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scanner's effects: tone, cast, blur, noise, field of view."""
    tone = np.clip(picture, 0, 1) ** look.gamma
    tone = 0.5 + look.contrast * (tone - 0.5)
    tone = 1 - tone if look.inverted else tone
    tone = ndimage.gaussian_filter(tone, look.blur)
    colour = tone[..., None] * np.array(look.cast) + rng.normal(0, look.noise, (*tone.shape, 3))
    return (np.clip(np.where(view[..., None], colour, 0), 0, 1) * 255).round().astype(np.uint8)


def _smooth(rng: np.random.Generator, side: int, sigma: float) -> Array:
    field = ndimage.gaussian_filter(rng.normal(size=(side, side)), sigma)
    return np.asarray(field / field.std())


def _seed(seed: int, *names: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join([str(seed), *names]).encode()).digest()[:8], "big")
