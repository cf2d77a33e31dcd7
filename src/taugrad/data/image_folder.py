"""A set of images from a folder of pictures, or from a zip archive of one, read without unpacking.

Classes are folders: `root/<class>/x.jpg`, or `root/train/<class>/x.jpg` with `val` and `test` next to `train`. Without
folders all pictures are of one class. Names are sorted, so that every system finds the same order.

A picture is turned as its EXIF data say, laid on white where it is transparent, and taken by its first frame.
"""

import io
import logging
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from taugrad.checks import check_count
from taugrad.data.images import Split, Splits
from taugrad.data.pictures_on_disk import PicturesOnDisk, each_of
from taugrad.errors import DataError
from taugrad.files import user_path

X = TypeVar("X")
Y = TypeVar("Y")

SPLIT_SEED = 0  # seed that chooses the images set aside

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jfif")
_MODES = {"rgb": "RGB", "grey": "L"}
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_DEEP_GREYS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_BROKEN = (  # errors of Pillow and zipfile for a damaged picture
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile),
    *(IndexError, KeyError, TypeError, OverflowError, MemoryError, Image.DecompressionBombError),
)


def image_folder(
    root: str | Path,
    size: int | Sequence[int] | None = None,
    mode: str = "rgb",
    validation: int | float = 0.1,
    test: int | float = 0.1,
    skip_broken: bool = False,
    in_memory: int | str = "2 GB",
) -> Splits:
    """Load pictures as uint8 images, (n, 3, height, width) in colour or (n, height, width) in grey.

    A picture of another size than `size` is scaled, with antialiasing, until it just covers it, and cut at its centre.

    Args:
        root: a folder of pictures, or a .zip of one.
        size: height and width, or one number for both; None if all pictures have one size.
        mode: `rgb` or `grey`.
        validation: training images to set aside where there is no folder of them, drawn by a fixed seed: a number, or
            a share below 1; 0 validates on the test split.
        test: the same for the test split, at least one image.
        skip_broken: leave out pictures that cannot be read, and log how many; otherwise they are errors.
        in_memory: most bytes, as a number or as "2 GB", that the decoded images may take. Larger sets are decoded
            from disk whenever a batch needs them.

    Raises:
        DataError: `root` is missing, is of another kind, or holds no pictures, or too few for three splits; a picture
            is broken; the sizes differ and `size` is None; the splits have different classes.
        TypeError: `size`, `validation` or `test` is no number.
        ValueError: an argument is out of range.
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode}")
    limit, shape = _bytes(in_memory), _shape(size)
    files = _Files.of(user_path(root))
    parts = _by_split(files)
    for split, name, amount in (("val", "validation", validation), ("test", "test", test)):
        if split not in parts:
            _check_amount(name, amount)
    classes = _classes(files, parts)
    names = [name for part in parts.values() for name in part]
    failures: list[str] = []

    def kept(checked: list[str], whats: Sequence[object]) -> list[str]:
        """Return the names without broken pictures, which are an error unless they may be skipped."""
        broken = [(name, what) for name, what in zip(checked, whats, strict=True) if isinstance(what, Exception)]
        if broken and not skip_broken:
            name, what = broken[0]
            raise DataError(
                f"{files.path(name)} cannot be read as a picture ({_why(what)}), one of {len(broken)}: mend or "
                "remove it, or leave such pictures out by data.source.skip_broken=true"
            )
        failures.extend(name for name, _ in broken)
        gone = {name for name, _ in broken}
        if len(gone) == len(checked):
            raise DataError(f"{files.root} holds no picture that can be read, of {len(checked)}")
        return [name for name in checked if name not in gone]

    if shape is None:
        sizes = each_of(partial(_caught, partial(_size_of, files)), names)
        names = kept(names, sizes)
        known = [found for found in sizes if not isinstance(found, Exception)]
        shape = known[0]
        other = next((i for i, found in enumerate(known) if found != shape), None)
        if other is not None:
            (a, b), (c, d) = shape, known[other]
            raise DataError(
                f"{files.root} holds pictures of several sizes, such as {files.path(names[0])} of {a} x {b} and "
                f"{files.path(names[other])} of {c} x {d} (height x width): set data.source.size to the size to take"
            )
    decode = partial(_decode, files, mode, shape)
    image = (3, *shape) if mode == "rgb" else shape
    if len(names) * int(np.prod(image)) <= limit:
        pixels = torch.empty(len(names), *image, dtype=torch.uint8)

        def fill(i: int) -> Exception | None:
            found = _caught(decode, names[i])
            if isinstance(found, Exception):
                return found
            pixels[i] = found
            return None

        whole = kept(names, each_of(fill, range(len(names))))
        gone = set(names) - set(whole)
        images = pixels[[name not in gone for name in names]] if gone else pixels
    else:
        whole = names
        if skip_broken:  # a picture whose header is whole may still be broken
            whole = kept(names, each_of(lambda name: _only_error(_caught(decode, name)), names))
        images = PicturesOnDisk(partial(_decoded, files, decode), whole, image)
    if failures:
        example = files.path(failures[0])
        logging.getLogger("taugrad").warning("left out %d broken pictures, such as %s", len(failures), example)
    return _splits(files, parts, classes, whole, images, validation, test)


@dataclass(frozen=True)
class _Files:
    """Pictures of a folder or a zip archive, by their names below it, sorted."""

    root: Path
    names: tuple[str, ...]
    archive: zipfile.ZipFile | None = None

    @classmethod
    def of(cls, root: Path) -> "_Files":
        """Find the pictures below a folder or in an archive."""
        if not root.exists():
            raise DataError(f"data.source.root={root} does not exist: name a folder of pictures, or a .zip of one")
        archive = None
        if root.is_dir():
            names = _walk(root)
        else:
            try:
                archive = zipfile.ZipFile(root)
            except (OSError, zipfile.BadZipFile) as error:
                if root.suffix.lower() == ".zip":
                    raise DataError(f"{root} is damaged, or no zip archive: {error}") from error
                raise DataError(
                    f"data.source.root must be a folder of pictures, or a .zip of one, got the file {root}"
                ) from error
            names = [name for name in dict.fromkeys(archive.namelist()) if not name.endswith(("/", "\\"))]
        pictures = sorted((name for name in names if _is_picture(name)), key=_parts)
        if not pictures:
            raise DataError(f"{root} holds no pictures: they end in {', '.join(_SUFFIXES)}")
        return cls(root, tuple(pictures), archive)

    def path(self, name: str) -> Path:
        """Return the path to show for a picture."""
        return self.root / name

    def read(self, name: str) -> bytes:
        """Read the file of a picture."""
        return (self.root / name).read_bytes() if self.archive is None else self.archive.read(name)


def _walk(root: Path) -> list[str]:
    """Return the files below a folder, links followed, but none of them into a folder that holds it."""
    names, above = [], {root: {root.resolve()}}
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        chain = above.pop(here)
        for name in list(folders):
            real = (here / name).resolve()
            if real in chain or name.startswith("."):
                folders.remove(name)
            else:
                above[here / name] = chain | {real}
        names += [(here / name).relative_to(root).as_posix() for name in files if (here / name).is_file()]
    return names


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part)  # some archives of Windows have \


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in _parts(name))
    return name.lower().endswith(_SUFFIXES) and not hidden


def _by_split(files: _Files) -> dict[str, dict[str, str]]:
    """Return the class of each picture, by its name and its split; without split folders all are of `train`."""
    paths = {name: _parts(name) for name in files.names}
    first = {parts[0] for parts in paths.values()}
    while len(first) == 1 and min(map(len, paths.values())) > 2 and not {x.lower() for x in first} & set(_SPLITS):
        paths = {name: parts[1:] for name, parts in paths.items()}  # one folder around all, as in most archives
        first = {parts[0] for parts in paths.values()}
    tops = {parts[0] for parts in paths.values() if len(parts) > 1}
    found = {_SPLITS[top.lower()] for top in tops if top.lower() in _SPLITS}
    if "train" not in found:
        if found and all(top.lower() in _SPLITS for top in tops):
            raise DataError(f"{files.root} holds {', '.join(sorted(tops))}, but no folder train")
        return {"train": {name: parts[0] if len(parts) > 1 else "" for name, parts in paths.items()}}
    splits: dict[str, dict[str, str]] = {"train": {}} | {split: {} for split in ("val", "test") if split in found}
    for name, parts in paths.items():
        if len(parts) < 2 or parts[0].lower() not in _SPLITS:
            raise DataError(f"{files.path(name)} is next to the folder train: move it into train, val or test, or away")
        splits[_SPLITS[parts[0].lower()]][name] = parts[1] if len(parts) > 2 else ""
    return splits


def _classes(files: _Files, splits: dict[str, dict[str, str]]) -> list[str]:
    """Return the sorted classes, the same in all splits."""
    classes = set(splits["train"].values())
    for split, pictures in splits.items():
        here = set(pictures.values())
        if "" in here and len(here) > 1:
            name = next(name for name, of_class in pictures.items() if not of_class)
            raise DataError(f"{files.path(name)} is next to folders of classes: move it into one of them, or away")
        if here != classes:
            lacking, more = sorted(classes - here), sorted(here - classes)
            named = [f"lacks {', '.join(filter(None, lacking)) or 'none'}"] if any(lacking) else []
            named += [f"has {', '.join(filter(None, more))} more"] if any(more) else []
            raise DataError(f"{files.root}: the classes of {split} must be train's, but it {' and '.join(named)}")
    return sorted(classes)


def _splits(
    files: _Files,
    parts: dict[str, dict[str, str]],
    classes: list[str],
    names: list[str],
    images: "Tensor | PicturesOnDisk",
    validation: int | float,
    test: int | float,
) -> Splits:
    """Part the images by their folders, and set aside what has no folder."""
    labels_of = {name: classes.index(label) for part in parts.values() for name, label in part.items()}
    labels = torch.tensor([labels_of[name] for name in names])
    rows = {split: torch.tensor([i for i, name in enumerate(names) if name in part]) for split, part in parts.items()}
    for split, found in rows.items():
        if not len(found):
            raise DataError(f"{files.root} holds no picture of {split} that can be read")
    uses = ["train"]
    uses += ["validate"] if "val" not in rows and validation != 0 else []
    uses += ["test"] if "test" not in rows else []
    if (n := len(rows["train"])) < len(uses):
        pictures = f"{n} picture{'s' if n > 1 else ''}{' of train' if len(parts) > 1 else ''}"
        to = " and ".join(filter(None, [", ".join(uses[:-1]), uses[-1]]))
        raise DataError(f"{files.root} holds {pictures}: at least {len(uses)} are needed to {to}")
    rng = np.random.default_rng(SPLIT_SEED)

    def aside(name: str, amount: int | float, fewest: int) -> Tensor | None:
        n = len(rows["train"])
        count = _count(name, amount, n, fewest)
        chosen = np.zeros(n, dtype=bool)
        chosen[rng.permutation(n)[:count]] = True
        picked, rows["train"] = rows["train"][chosen], rows["train"][~chosen]
        return picked if count else None

    if "test" not in rows and (picked := aside("test", test, 1)) is not None:
        rows["test"] = picked
    if "val" not in rows:
        picked = aside("validation", validation, 0)
        rows["val"] = rows["test"] if picked is None else picked
    return Splits(*(Split(images[rows[split]], labels[rows[split]]) for split in ("train", "val", "test")))


def _check_amount(name: str, amount: int | float) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise TypeError(f"{name} must be a number of images, or a share of them, got {amount!r}")
    if not 0 <= amount < math.inf or (amount > 1 and amount != int(amount)):
        raise ValueError(f"{name} must be a whole number of images, or a share of them in (0, 1), got {amount}")


def _count(name: str, amount: int | float, n: int, fewest: int) -> int:
    share = 0 < amount < 1
    count = max(1, round(amount * n)) if share else int(amount)
    if share and count >= n:
        raise ValueError(f"{name} must leave at least one of {n} images to train on, got {amount}")
    if not fewest <= count < n:
        raise ValueError(f"{name} must be in [{fewest}, {n - 1}], or a share in (0, 1), of {n} images, got {amount}")
    return count


def _shape(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, str) or not isinstance(size, (int, Sequence)):
        raise TypeError(f"size must be height and width, or one whole number for both, got {size!r}")
    sizes = [size, size] if isinstance(size, int) else list(size)
    if len(sizes) != 2:
        raise ValueError(f"size must be height and width, or one number for both, got {size}")
    for one in sizes:
        check_count("size", one)
    return sizes[0], sizes[1]


def _bytes(amount: int | str) -> int:
    """Return a number of bytes, such as 2_000_000_000 for "2 GB"."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(amount))
    if found is None or (found[2] or "b").lower() not in _UNITS:
        raise ValueError(f'in_memory must be a number of bytes, or such as "2 GB", got {amount}')
    return int(float(found[1]) * _UNITS[(found[2] or "b").lower()])


def _caught(function: Callable[[X], Y], of: X) -> Y | Exception:
    """Return what `function` returns, or the error of a broken picture."""
    try:
        return function(of)
    except _BROKEN as error:
        return error


def _why(error: Exception) -> str:
    """Return what is wrong with a picture; Pillow's own words may name the address of a buffer."""
    unknown = isinstance(error, UnidentifiedImageError)
    return "its content is no picture" if unknown else str(error).rstrip(".") or type(error).__name__


def _only_error(found: object) -> Exception | None:
    return found if isinstance(found, Exception) else None


def _size_of(files: _Files, name: str) -> tuple[int, int]:
    """Return height and width as shown."""
    with Image.open(io.BytesIO(files.read(name))) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations that exchange them
        return (image.width, image.height) if turned else (image.height, image.width)


def _decode(files: _Files, mode: str, shape: tuple[int, int], name: str) -> Tensor:
    """Return a picture as uint8, (3, height, width) or (height, width)."""
    height, width = shape
    with Image.open(io.BytesIO(files.read(name))) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in _DEEP_GREYS:  # Pillow's own conversion would cut every level above 255
            levels = np.asarray(image)
            if levels.min() < 0 or levels.max() > 65_535:
                raise ValueError("its greys have more than 16 bits")
            image = Image.fromarray(((levels.astype(np.int64) * 255 + 32_767) // 65_535).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("its greys are floats, of a range that it does not say")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = ImageOps.fit(image.convert(_MODES[mode]), (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1) if mode == "rgb" else pixels


def _decoded(files: _Files, decode: Callable[[str], Tensor], name: str) -> Tensor:
    found = _caught(decode, name)
    if isinstance(found, Exception):
        raise DataError(
            f"{files.path(name)} cannot be read as a picture ({_why(found)}): mend or remove it, or "
            "leave such pictures out by data.source.skip_broken=true"
        ) from found
    return found
