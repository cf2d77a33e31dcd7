import math
import os
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cases import each
from PIL import Image

from taugrad.data.batches import ShuffledBatches
from taugrad.data.datamodule import ImageData
from taugrad.data.image_folder import image_folder
from taugrad.data.pictures_on_disk import PicturesOnDisk
from taugrad.errors import DataError

LIMITS = (0, "2 GB")  # from disk, in memory


def whole(images):
    return images.take(torch.arange(len(images))) if isinstance(images, PicturesOnDisk) else images


def picture(path, value=100, size=(4, 6), mode="RGB"):
    """Write a picture of one value; its size is height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], (value,) * len(mode) if mode == "RGB" else value).save(path)


def folder(root, n=6, classes=("cat", "dog"), split=""):
    for c, name in enumerate(classes):
        for i in range(n):
            picture(root / split / name / f"{i}.png", 10 * (c * n + i))
    return root


def zipped(root, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, Path("outer") / file.relative_to(root))
    return path


@each("limit", LIMITS)
def test_folders_are_classes_and_images_are_set_aside_at_random_but_always_the_same(tmp_path, limit):
    root = folder(tmp_path / "set", 10)
    (root / ".DS_Store").write_bytes(b"x")
    picture(root / "__MACOSX" / "cat" / "._0.png")
    (root / "cat" / "notes.txt").write_text("x")
    splits = image_folder(root, validation=3, test=0.2, in_memory=limit)
    assert [len(part.labels) for part in splits] == [13, 3, 4]
    values = [whole(part.images)[:, 0, 0, 0] for part in splits]
    assert sorted(torch.cat(values).tolist()) == list(range(0, 200, 10))
    for part, found in zip(splits, values, strict=True):
        assert part.images.shape[1:] == (3, 4, 6)
        assert torch.equal(part.labels, (found >= 100).long())
    packed = image_folder(zipped(root, tmp_path / f"{limit}.zip"), validation=3, test=0.2, in_memory=limit)
    assert all(torch.equal(whole(a.images), whole(b.images)) for a, b in zip(splits, packed, strict=True))
    assert len(set(splits.train.labels.tolist())) == 2
    assert image_folder(root, validation=0).val.labels.tolist() == image_folder(root).test.labels.tolist()


def test_split_folders_are_kept_and_a_flat_folder_is_one_class(tmp_path):
    for split, n in {"Train": 4, "valid": 2, "test": 3}.items():
        folder(tmp_path / "set", n, split=split)
    splits = image_folder(tmp_path / "set", validation=None, test=None)  # of no use where there are folders
    assert [part.labels.tolist() for part in splits] == [[0] * 4 + [1] * 4, [0] * 2 + [1] * 2, [0] * 3 + [1] * 3]
    for i in range(5):
        picture(tmp_path / "flat" / f"{i}.PNG")
    (tmp_path / "flat" / "again").symlink_to(tmp_path / "flat")  # into itself: not followed
    splits = image_folder(tmp_path / "flat", validation=1, test=1)
    assert [part.labels.tolist() for part in splits] == [[0] * 3, [0], [0]]


def test_pictures_of_every_kind_are_read_as_they_are_shown(tmp_path):
    ramp = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    turned = Image.Exif()
    turned[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(np.rot90(ramp).copy()).save(tmp_path / "0.png", exif=turned)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "1.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "2.GIF", save_all=True, append_images=[Image.new("P", (6, 4))])
    alpha = Image.merge("RGBA", [Image.fromarray(ramp)] * 3 + [Image.new("L", (6, 4), 255)])
    alpha.putpixel((0, 0), (9, 9, 9, 0))
    alpha.save(tmp_path / "3.png")
    Image.merge("CMYK", [Image.fromarray(255 - ramp)] * 3 + [Image.new("L", (6, 4))]).save(tmp_path / "4.tiff")
    for mode in ("rgb", "grey"):
        splits = image_folder(tmp_path, mode=mode, validation=1, test=1)
        images = torch.cat([part.images for part in splits])
        assert images.shape == ((5, 3, 4, 6) if mode == "rgb" else (5, 4, 6))
        assert sorted(int(x.flatten()[0]) for x in images) == [0, 0, 0, 0, 255]  # the transparent corner is white
        for x in images:
            different = x.view(-1, 24)[:, 1:].int() - torch.from_numpy(ramp).flatten()[1:].int()
            assert different.abs().max() <= 1


def test_a_picture_is_scaled_until_it_covers_the_size_and_cut_at_its_centre(tmp_path):
    stripes = np.zeros((8, 24), np.uint8)
    stripes[:, 8:16] = 200
    for i in range(3):
        Image.fromarray(stripes).save(tmp_path / f"{i}.png")
    assert (image_folder(tmp_path, size=2, mode="grey", validation=1, test=1).train.images.int() - 200).abs().max() < 40
    assert image_folder(tmp_path, size=[4, 2], validation=1, test=1).train.images.shape == (1, 3, 4, 2)


def test_broken_pictures_are_named_or_left_out_and_counted(tmp_path, caplog):
    root = folder(tmp_path / "set")
    content = (root / "cat" / "3.png").read_bytes()
    (root / "cat" / "3.png").write_bytes(content[:48])  # within its pixels
    (root / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cat/3.png cannot be read as a picture \(.*\), one of 2: mend or remove it"):
        image_folder(root, size=4)
    for limit in LIMITS:
        for size in (None, 4):
            splits = image_folder(root, size, skip_broken=True, in_memory=limit)
            assert sum(len(whole(part.images)) for part in splits) == 10
    assert "left out 2 broken pictures, such as" in caplog.text
    lazy = image_folder(root, 4, in_memory=0)  # found when a batch needs it
    with pytest.raises(DataError, match=r"cannot be read as a picture .*skip_broken=true"):
        [whole(part.images) for part in lazy]


def test_batches_from_disk_are_those_from_memory_also_after_a_resume(tmp_path):
    root = folder(tmp_path / "set", 12)
    for binarize in ("none", "static", "dynamic"):
        data = [ImageData(partial(image_folder, root, in_memory=limit), 4, 3, 2, binarize) for limit in LIMITS]
        assert data[0].image_size == (3, 4, 6)
        loaders = [[part.train_dataloader(), part.val_dataloader(), part.test_dataloader()] for part in data]
        for disk, memory in zip(*loaders, strict=True):
            torch.manual_seed(0)
            found = list(disk)
            torch.manual_seed(0)
            for (x, labels), (y, others) in zip(found, memory, strict=True):
                assert torch.equal(x, y)
                assert torch.equal(labels, others)
    split = data[0].source().train
    whole_run, first, second = (ShuffledBatches(split, 4, seed=0) for _ in range(3))
    expected = [x for x, _ in whole_run]
    next(iter(first))
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(x, y) for (x, _), y in zip(second, expected[1:], strict=True))


def test_a_folder_that_cannot_be_used_gets_a_sentence(tmp_path):
    good = folder(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("x")
    (tmp_path / "bad.zip").write_bytes(zipped(good, tmp_path / "good.zip").read_bytes()[:-40])
    picture(folder(tmp_path / "sizes") / "dog" / "big.png", size=(5, 7))
    folder(folder(tmp_path / "classes", split="train"), classes=("cat", "cow"), split="test")
    folder(tmp_path / "tests", split="test")
    picture(folder(tmp_path / "beside") / "x.png")
    picture(folder(tmp_path / "extra", split="train") / "more" / "x.png")
    folder(tmp_path / "one", 1, ["cat"])
    folder(tmp_path / "two", 1)
    folder(folder(tmp_path / "tested", 1, ["cat"], split="train"), 1, ["cat"], split="test")
    assert [len(part.labels) for part in image_folder(tmp_path / "two", validation=0)] == [1, 1, 1]
    assert [len(part.labels) for part in image_folder(tmp_path / "tested", validation=0)] == [1, 1, 1]
    cases = {
        "absent": "data.source.root=.*absent does not exist: name a folder of pictures, or a .zip of one",
        "empty": "empty holds no pictures: they end in .jpg",
        "text": "data.source.root must be a folder of pictures, or a .zip of one, got the file .*text",
        "bad.zip": "bad.zip is damaged, or no zip archive",
        "sizes": r"cat/0.png of 4 x 6 and .*dog/big.png of 5 x 7 \(height x width\): set data.source.size to the size",
        "classes": "classes: the classes of test must be train's, but it lacks dog and has cow more",
        "tests": "tests holds test, but no folder train",
        "beside": "x.png is next to folders of classes: move it into one of them",
        "extra": "more/x.png is next to the folder train: move it into train, val or test",
        "one": "one holds 1 picture: at least 3 are needed to train, validate and test",
        "two": "two holds 2 pictures: at least 3 are needed to train, validate and test",
        "tested": "tested holds 1 picture of train: at least 2 are needed to train and validate",
    }
    for name, sentence in cases.items():
        with pytest.raises(DataError, match=sentence):
            image_folder(tmp_path / name)
    arguments = {
        "size must be at least 1, got 0": {"size": 0},
        "size must be height and width, or one number for both, got": {"size": [1, 2, 3]},
        "mode must be one of rgb, grey, got blue": {"mode": "blue"},
        r"validation must be in \[0, 9\], or a share in \(0, 1\), of 10 images, got 10": {"validation": 10, "test": 2},
        r"test must be in \[1, 11\]": {"test": 0},
        "test must leave at least one of 12 images to train on, got 0.99": {"test": 0.99},
        "validation must leave at least one of 1 images to train on, got 0.1": {"test": 11},
        r"validation must be a whole number of images, or a share of them in \(0, 1\), got nan": {
            "validation": math.nan
        },
        r"test must be a whole number of images, or a share of them in \(0, 1\), got inf": {"test": math.inf},
        r"test must be a whole number of images, or a share of them in \(0, 1\), got 2.5": {"test": 2.5},
        'in_memory must be a number of bytes, or such as "2 GB", got much': {"in_memory": "much"},
    }
    for sentence, given in arguments.items():
        with pytest.raises(ValueError, match=sentence):
            image_folder(good, **given)
    arguments = {
        "^size must be height and width, or one whole number for both, got 16.0": {"size": 16.0},
        "^size must be height and width, or one whole number for both, got '16'": {"size": "16"},
        "^size must be a whole number, got 4.5": {"size": [4, 4.5]},
        "^validation must be a number of images, or a share of them, got '3'": {"validation": "3"},
    }
    for sentence, given in arguments.items():
        with pytest.raises(TypeError, match=sentence):
            image_folder(tmp_path / "sizes", **given)  # before a picture is read


def test_a_real_set_of_jpegs_is_whole():
    path = os.environ.get("TAUGRAD_CIFAR10_JPEG")
    if path is None:
        pytest.skip("set TAUGRAD_CIFAR10_JPEG to a zip of CIFAR-10's pictures as train|test/<class>/*.jpg")
    splits = image_folder(path, size=32, validation=5_000, in_memory=0)
    assert [len(part.labels) for part in splits] == [20_000, 5_000, 5_000]
    assert splits.test.labels.bincount().tolist() == [500] * 10
    assert 100 < splits.test.images.take(torch.arange(0, 5_000, 50)).float().mean() < 140
