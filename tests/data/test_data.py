import gzip
import hashlib
import lzma
import os
import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
import torch
from helpers.idx import NAMES, idx, write_set
from helpers.samples import FALSE_FAILURE
from scipy import stats

from taugrad.data import binarized_mnist as embedded
from taugrad.data import mnist as module
from taugrad.data.batches import Batches, ShuffledBatches, images_to_show
from taugrad.data.datamodule import ImageData
from taugrad.data.images import Split, balanced, binarize, split
from taugrad.data.mnist import fashion_mnist, mnist, read_idx
from taugrad.data.mnist import idx as idx_files
from taugrad.data.pictures_on_disk import PicturesOnDisk
from taugrad.errors import ConfigError, DataError

# IDX


@pytest.mark.parametrize("pack", [lambda raw: raw, gzip.compress])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_idx_is_read_back_gzipped_or_not(shape, pack, tmp_path):
    array = np.random.default_rng(0).integers(256, size=shape)
    (tmp_path / "file").write_bytes(pack(idx(array)))
    read = read_idx(tmp_path / "file")
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), array)


GOOD = idx(np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not an IDX file of unsigned bytes: it starts with nothing"),
        (b"\x89PNG....", "is not an IDX file of unsigned bytes: it starts with 89 50 4e 47"),
        (
            idx(np.arange(3), magic=bytes([0, 0, 0x0D, 1])),
            "is not an IDX file of unsigned bytes: it starts with 00 00 0d 01",
        ),
        (GOOD[:6], "is truncated: its header ends after 6 of 12 bytes"),
        (GOOD[:-1], r"should hold 12 bytes for shape \(3, 4\), but holds 11"),
        (GOOD + b"x", r"should hold 12 bytes for shape \(3, 4\), but holds 13"),
        (idx(np.zeros((0, 4))), r"holds no data: its shape is \(0, 4\)"),
        (gzip.compress(GOOD, mtime=0)[:-5], "cannot be read"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"xxxx" + gzip.compress(GOOD, mtime=0)[16:], "cannot be read"),
    ],
)
def test_a_damaged_or_foreign_file_gets_a_sentence_that_names_it(content, sentence, tmp_path):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"some-file {sentence}"):
        read_idx(path)


def test_a_missing_file_and_a_directory_get_a_sentence(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=f"{path} cannot be read"):
            read_idx(path)


# The embedded set


def test_the_embedded_set_is_whole():
    splits = embedded.binarized_mnist()
    assert [len(s.labels) for s in splits] == [50_000, 10_000, 10_000]
    for images, labels in splits:
        assert images.shape == (len(labels), 28, 28)
        assert set(images.unique().tolist()) == {0, 255}
        assert set(labels.unique().tolist()) == set(range(10))
    assert embedded.PATH.stat().st_size < 2_000_000


def test_the_embedded_set_is_packed_from_the_idx_files_bit_for_bit():
    directory = os.environ.get("TAUGRAD_MNIST")
    if directory is None:
        pytest.skip("set TAUGRAD_MNIST to the directory of MNIST's gzipped IDX files")
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "pack_binarized_mnist.py"))
    assert hashlib.sha256(script["payload"](Path(directory))).hexdigest() == embedded.SHA256
    from_files = ImageData(partial(mnist, directory))
    labels = [from_files.train_dataloader().split.labels, embedded.binarized_mnist().train.labels]
    assert torch.equal(*labels)


def test_packing_and_unpacking_are_inverse():
    payload = lzma.decompress(embedded.PATH.read_bytes())
    assert embedded.pack(*embedded.unpack(payload)) == payload


def test_a_damaged_embedded_file_gets_a_sentence(tmp_path):
    whole = embedded.PATH.read_bytes()
    damaged = tmp_path / "binarized.xz"
    for content, sentence in [
        (whole[:1000], "cannot be read"),
        (whole[:5000] + b"x" + whole[5001:], "cannot be read"),
        (b"", "is damaged|cannot be read"),
        (lzma.compress(b"something else"), "is damaged: its content has SHA-256"),
    ]:
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=f"binarized.xz ({sentence})"):
            embedded.binarized_mnist(damaged)
    with pytest.raises(DataError, match=r"absent.xz cannot be read"):
        embedded.binarized_mnist(tmp_path / "absent.xz")


# Binarization and splits


def test_a_pixel_is_on_with_the_probability_of_its_intensity():
    levels = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    on = (binarize(levels.repeat(60_000, 1)) == 255).sum(0)  # misses six levels too many with a probability of 3e-8
    for k, level in zip(on.tolist(), levels.tolist(), strict=True):
        assert stats.binomtest(k, 60_000, level / 255).pvalue > FALSE_FAILURE
    assert stats.binomtest(int(on[3]), 60_000, 134 / 255).pvalue < FALSE_FAILURE  # the test has power


def test_binarization_is_fixed_and_known():
    images = torch.full((2, 28, 28), 128, dtype=torch.uint8)
    raw = np.random.PCG64(0)
    expected = [(raw.random_raw() >> 32) / 2**32 < 128 / 255 for _ in range(images.numel())]
    assert (binarize(images) == 255).flatten().tolist() == expected
    assert (binarize(images) == 255).sum(dim=(1, 2)).tolist() == [373, 390]


def test_splits_set_the_last_training_images_aside():
    train = Split(torch.arange(10).view(10, 1, 1), torch.arange(10))
    test = Split(torch.zeros(3, 1, 1), torch.zeros(3))
    splits = split(train, test, validation=4)
    assert splits.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert splits.val.images.flatten().tolist() == splits.val.labels.tolist() == [6, 7, 8, 9]
    assert splits.test is test
    assert split(train, test, validation=0).val is test
    for validation in (-1, 10):
        with pytest.raises(ValueError, match=rf"validation must be in \[0, 9\], got {validation}"):
            split(train, test, validation)


# MNIST and Fashion-MNIST from a directory


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
@pytest.mark.parametrize("compress", [False, True])
def test_the_four_files_are_read_from_a_directory_gzipped_or_not(load, compress, tmp_path):
    arrays = write_set(tmp_path / "set", compress=compress)
    splits = load(tmp_path / "set", validation=10)
    assert np.array_equal(splits.train.images.numpy(), arrays[0][:20])
    assert np.array_equal(splits.val.labels.numpy(), arrays[1][20:])
    assert np.array_equal(splits.test.images.numpy(), arrays[2])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 32}, r"train-images-idx3-ubyte must hold images of 28 x 28, got shape \(30, 32, 32\)"),
        ({"labels": 100}, r"train-labels-idx1-ubyte must hold labels 0 to 9, got \d\d"),
    ],
)
def test_a_set_of_another_kind_gets_a_sentence(changes, sentence, tmp_path):
    write_set(tmp_path / "set", **changes)
    with pytest.raises(DataError, match=sentence):
        mnist(tmp_path / "set", validation=10)


def test_labels_that_do_not_match_the_images_get_a_sentence(tmp_path):
    write_set(tmp_path)
    (tmp_path / NAMES[1]).write_bytes(idx(np.zeros(29)))
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte must hold one label for each of 30 images, got shape \(29,\)"
    ):
        mnist(tmp_path)


def as_published(monkeypatch, arrays, **changes):
    """Let `mnist` take these arrays for the published ones."""
    contents = tuple(hashlib.sha256(a.astype(np.uint8).tobytes()).hexdigest() for a in arrays)
    monkeypatch.setattr(module, "_MNIST", replace(module._MNIST, contents=contents, **changes))


@pytest.fixture
def no_download(monkeypatch):
    def retrieve(*_, **__):
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(pooch, "retrieve", retrieve)


def test_a_missing_file_of_the_set_is_fetched_with_its_checksum(tmp_path, monkeypatch):
    arrays = write_set(tmp_path)
    as_published(monkeypatch, arrays)
    (tmp_path / NAMES[2]).unlink()
    calls = []

    def retrieve(url, known_hash, fname, path, progressbar):
        calls.append((url, known_hash, progressbar))
        target = Path(path) / fname
        target.write_bytes(gzip.compress(idx(arrays[2])))
        return str(target)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert np.array_equal(mnist(tmp_path, validation=10).test.images.numpy(), arrays[2])
    ((url, known_hash, progressbar),) = calls
    assert url.endswith("/mnist/t10k-images-idx3-ubyte.gz")
    assert known_hash == "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    assert progressbar == sys.stderr.isatty()  # a log file gets no bar


@pytest.mark.parametrize(("load", "name"), [(mnist, "MNIST"), (fashion_mnist, "Fashion-MNIST")])
def test_no_download_completes_a_set_of_ones_own(load, name, tmp_path, no_download):
    write_set(tmp_path, compress=True)
    for test in NAMES[2:]:
        (tmp_path / f"{test}.gz").unlink()
    lacks = rf"{tmp_path} lacks t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
    with pytest.raises(
        DataError, match=rf"{lacks}, and train-images-idx3-ubyte.gz is not known as {name}'s, .*data=idx"
    ):
        load(tmp_path, validation=10)
    with pytest.raises(DataError, match=rf"{lacks}: put them there"):
        idx_files(tmp_path, validation=10)


@pytest.mark.parametrize(
    "names",
    [
        "train-images.idx3-ubyte train-labels.idx1-ubyte t10k-images.idx3-ubyte t10k-labels.idx1-ubyte",
        "train-images-idx3-ubyte.idx train-labels-idx1-ubyte.idx t10k-images-idx3-ubyte.idx t10k-labels-idx1-ubyte.idx",
        "train-images.idx train-labels.idx test-images.idx test-labels.idx",
        "train_images train_labels test_images test_labels",
    ],
)
@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
def test_the_files_are_found_by_the_names_and_places_that_people_have(names, folder, tmp_path, no_download):
    arrays = write_set(tmp_path)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for i, (published, name) in enumerate(zip(NAMES, names.split(), strict=True)):
        content = (tmp_path / published).read_bytes()
        (tmp_path / published).unlink()
        (tmp_path / folder / (f"{name}.gz" if i % 2 else name)).write_bytes(
            gzip.compress(content) if i % 2 else content
        )
    assert np.array_equal(mnist(tmp_path, validation=10).test.images.numpy(), arrays[2])


def test_a_set_elsewhere_below_a_file_and_an_archive_get_a_sentence(tmp_path, no_download):
    write_set(tmp_path / "mine")
    with pytest.raises(
        DataError, match=f"{tmp_path} holds none of the four files, but {tmp_path}/mine does: give that"
    ):
        mnist(tmp_path)
    file = tmp_path / "mine" / NAMES[0]
    with pytest.raises(
        DataError, match=f"must be the directory of four IDX files, got the file {file}: name its directory"
    ):
        mnist(file)
    (tmp_path / "mnist.zip").write_bytes(b"PK\x03\x04....")
    with pytest.raises(DataError, match=r"got the file .*mnist.zip: unpack it, if it is an archive"):
        mnist(tmp_path / "mnist.zip")
    file.write_bytes(b"PK\x03\x04....")
    with pytest.raises(DataError, match=f"{file} is a zip archive: unpack it"):
        mnist(file.parent)


def test_a_directory_that_cannot_be_read_gets_a_sentence(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=f"data.source.root={tmp_path} cannot be read: Permission denied"):
        mnist(tmp_path)


def test_another_set_under_mnists_names_and_sizes_is_told_apart_and_has_its_source(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setattr(module, "_SIZES", (30, 30, 20, 20))
    hint = f"another set of its size and names, as KMNIST, is read by data=idx data.source.root={tmp_path}"
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte is damaged, or not of MNIST: .*; {hint}"):
        mnist(tmp_path, validation=10)
    assert len(idx_files(tmp_path, validation=10).train.labels) == 20


def test_the_users_home_and_environment_are_expanded_in_a_root(tmp_path, monkeypatch):
    write_set(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", str(tmp_path))
    for root in ("~/set", "$SETS/set"):
        assert len(mnist(root, validation=10).train.labels) == 20


@pytest.mark.parametrize("error", [ConnectionError("offline"), ValueError("SHA256 hash does not match")])
def test_offline_and_absent_is_one_sentence_that_says_what_to_put_where(error, tmp_path, monkeypatch):
    def retrieve(*_, **__):
        raise error

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError) as caught:
        mnist(tmp_path / "nothing")
    message = str(caught.value)
    assert str(tmp_path / "nothing") in message
    assert all(name in message for name in NAMES)
    assert "\n" not in message


def test_a_real_download_that_fails_its_checksum_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in NAMES:
        (source / f"{name}.gz").write_bytes(gzip.compress(b"not the file"))
    import http.server
    import threading

    handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=str(source))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(module, "_MNIST", replace(module._MNIST, url=f"http://127.0.0.1:{server.server_port}/"))
        with pytest.raises(DataError, match="could not be downloaded"):
            mnist(tmp_path / "target")
        server.shutdown()
    assert list((tmp_path / "target").iterdir()) == []


def test_a_flipped_bit_in_a_real_file_is_refused_by_checksum(tmp_path):
    directory = os.environ.get("TAUGRAD_MNIST")
    if directory is None:
        pytest.skip("needs MNIST's files in TAUGRAD_MNIST")
    for name in NAMES:
        (tmp_path / name).write_bytes(gzip.decompress((Path(directory) / f"{name}.gz").read_bytes()))
    assert len(mnist(tmp_path).train.labels) == 50_000
    path = tmp_path / NAMES[2]
    content = bytearray(path.read_bytes())
    content[123_456] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte is damaged, or not of MNIST: its content does not"):
        mnist(tmp_path)


# Batches


def numbered(n):
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1)
    return Split(images, torch.arange(n))


def test_an_epoch_visits_each_image_once_in_an_order_of_seed_and_epoch():
    batches = ShuffledBatches(numbered(20), 4, seed=0)
    first, second = ([label for _, y in batches for label in y.flatten().tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == [label for _, y in ShuffledBatches(numbered(20), 4, seed=0) for label in y.flatten().tolist()]
    assert first != [label for _, y in ShuffledBatches(numbered(20), 4, seed=1) for label in y.flatten().tolist()]


def test_seeds_and_epochs_do_not_alias():
    orders = set()
    for seed in range(4):
        batches = ShuffledBatches(numbered(20), 20, seed=seed)
        orders |= {tuple(y.flatten().tolist()) for _ in range(4) for _, y in batches}
    assert len(orders) == 16


def test_training_drops_the_incomplete_batch_and_evaluation_keeps_it():
    shuffled, ordered = ShuffledBatches(numbered(10), 4, seed=0), Batches(numbered(10), 4)
    assert [y.shape for _, y in shuffled] == [(1, 4), (1, 4)]
    assert [y.tolist() for _, y in ordered] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (len(shuffled), len(ordered)) == (2, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 50, 233, 1000])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_images_to_show_are_spread_over_a_sorted_split_and_so_are_the_first_of_them(size, where):
    images, labels = numbered(size)
    if where == "disk":
        images = PicturesOnDisk(lambda name: torch.full((1, 1), name % 256, dtype=torch.uint8), range(size), (1, 1))
    x, rows = images_to_show(Batches(Split(images, labels), 1), 100)
    assert len({*rows.tolist()}) == len(rows) == min(100, size)
    assert torch.equal(x.flatten(), rows.to(torch.uint8).float() / 255)
    for n in (10, 50, 100):
        first = rows[:n].sort().values
        gaps = torch.diff(torch.cat([first, torch.tensor([size])]))
        assert gaps.max() <= max(1, 3 * size / n)
    own = [(x[:3], rows[:3]), (x[3:], rows[3:])]  # of a user's own loader only the first can be had
    assert torch.equal(images_to_show(own, 2)[1], rows[:2])


def test_images_become_floats_in_the_unit_interval_and_stay_with_their_labels():
    for x, y in ShuffledBatches(numbered(20), 5, seed=0):
        assert x.dtype == torch.float32
        assert x.shape == (1, 5, 1, 1)
        assert torch.equal(x.flatten(), y.flatten().float() / 255)


def test_stacks_hold_the_same_batches_in_the_same_order():
    single, stacked = (ShuffledBatches(numbered(23), 4, seed=0, stack=stack) for stack in (1, 3))
    assert (len(single), len(stacked)) == (5, 2)
    batches = [y for _, y in stacked]
    assert [y.shape for y in batches] == [(3, 4), (2, 4)]
    assert torch.equal(torch.cat(batches), torch.cat([y for _, y in single]))


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 5, 9])
def test_a_loaded_state_goes_on_with_the_batches_that_were_left(taken, stack):
    def stream(batches):
        while True:
            for _, y in batches:
                yield y.tolist()

    original = ShuffledBatches(numbered(16), 4, seed=0, stack=stack)
    left = stream(original)
    for _ in range(taken):
        next(left)
    resumed = ShuffledBatches(numbered(16), 4, seed=0, stack=stack)
    resumed.load_state_dict(original.state_dict())
    right = stream(resumed)
    for _ in range(10):
        assert next(left) == next(right)


def test_dynamic_binarization_draws_anew_at_every_visit_and_by_intensity():
    split = Split(torch.full((1000, 4, 4), 51, dtype=torch.uint8), torch.zeros(1000))
    batches = ShuffledBatches(split, 1000, seed=0, sample_pixels=True)
    (a, _), (b, _) = next(iter(batches)), next(iter(batches))
    assert set(a.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(a, b)
    assert stats.binomtest(int(a.sum()), a.numel(), 0.2).pvalue > FALSE_FAILURE


def partly_labelled(stack=1):
    split = Split(numbered(20).images, torch.arange(20) % 2)
    return ShuffledBatches(split, 4, seed=0, stack=stack, labelled=torch.tensor([3, 6, 9]), labelled_batch_size=2)


def test_only_the_labelled_images_keep_their_labels_and_stand_behind_every_batch():
    seen = []
    for x, y in partly_labelled():
        assert x.shape == (1, 6, 1, 1)
        assert y[0, :4].tolist() == [-1] * 4
        index = x[0, 4:].flatten().mul(255).round().long()
        assert len(set(index.tolist())) == 2  # none twice
        assert torch.equal(y[0, 4:], index % 2)
        seen += index.tolist()
    assert set(seen) == {3, 6, 9}
    unlabelled = [x[:, :4].flatten() for x, _ in partly_labelled()]
    whole = [x.flatten() for x, _ in ShuffledBatches(numbered(20), 4, seed=0)]
    assert all(torch.equal(a, b) for a, b in zip(unlabelled, whole, strict=True))


@pytest.mark.parametrize("stack", [1, 3])
def test_labelled_images_do_not_depend_on_the_stack_and_follow_from_a_loaded_state(stack):
    def flat(batches):
        return torch.cat([x.flatten(0, 1) for x, _ in batches])

    assert torch.equal(flat(partly_labelled(stack)), flat(partly_labelled()))
    original, resumed = partly_labelled(stack), partly_labelled(stack)
    epoch = iter(original)
    next(epoch)
    resumed.load_state_dict(original.state_dict())
    assert torch.equal(flat(epoch), flat(resumed))


def test_balanced_labels_are_as_many_of_each_class_and_depend_on_the_seed():
    labels = torch.tensor([0, 1, 2] * 30 + [0] * 50)
    chosen = balanced(labels, 12, seed=0)
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert len(set(chosen.tolist())) == 12
    assert torch.equal(chosen, balanced(labels, 12, seed=0))
    assert not torch.equal(chosen, balanced(labels, 12, seed=1))


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (2, "labels must be a positive multiple of the number of classes, 3, got 2"),
        (0, "labels must be a positive multiple of the number of classes, 3, got 0"),
        (10, "labels must be a positive multiple of the number of classes, 3, got 10"),
        (15, "labels must be at most 12, as one class has 4, got 15"),
    ],
)
def test_a_number_of_labels_that_does_not_fit_the_classes_gets_a_sentence(count, sentence):
    with pytest.raises(ValueError, match=sentence):
        balanced(torch.tensor([0, 1, 2] * 4 + [0, 0]), count, seed=0)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_size_outside_the_split_gets_a_sentence(size):
    for build in (Batches, lambda split, size: ShuffledBatches(split, size, seed=0)):
        with pytest.raises(ValueError, match=rf"batch_size must be in \[1, 10\], the size of the split, got {size}"):
            build(numbered(10), size)


# The datamodule


@pytest.fixture
def source(tmp_path):
    write_set(tmp_path / "set")
    return partial(mnist, str(tmp_path / "set"), validation=10)


@pytest.mark.parametrize(("choice", "train_is_binary"), [("none", False), ("static", True), ("dynamic", True)])
def test_binarize_decides_what_a_pixel_is(choice, train_is_binary, source):
    data = ImageData(source, batch_size=20, binarize=choice)
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    binary = [all(((x == 0) | (x == 1)).all() for x, _ in loader) for loader in loaders]
    assert binary == [train_is_binary] * 3
    again = [torch.equal(next(iter(loader))[0], next(iter(loader))[0]) for loader in loaders[1:]]
    assert again == [True, True]


def test_the_datamodule_raises_before_training_for_a_batch_larger_than_the_set(source):
    with pytest.raises(
        ConfigError, match=r"data.batch_size must be at most 20, the size of the training split, got 21"
    ):
        ImageData(source, batch_size=21).setup("fit")


def test_the_datamodule_keeps_as_many_labels_as_asked_for():
    source = embedded.binarized_mnist
    data = ImageData(source, batch_size=100, stack=5, labels=100, labelled_batch_size=100, seed=1)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (5, 200, 28, 28)
    assert (y[:, :100] == -1).all()
    assert all(labels.bincount().tolist() == [10] * 10 for labels in y[:, 100:])
    few = ImageData(source, stack=1, labels=20)  # fewer than labelled_batch_size
    few.setup("fit")
    assert next(iter(few.train_dataloader()))[0].shape == (1, 120, 28, 28)
    ordered = [{tuple(image.flatten().tolist()) for image in images[100:]} for images in x]
    assert all(images == ordered[0] for images in ordered)  # the same hundred
    x, y = next(iter(data.val_dataloader()))
    assert (y >= 0).all()


def test_too_few_labels_for_the_classes_stop_a_run_before_it_starts():
    data = ImageData(embedded.binarized_mnist, labels=5)
    with pytest.raises(ConfigError, match=r"data.labels must be a positive multiple of the number of classes, 10"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labelled_batch_size": 0}, "labelled_batch_size must be at least 1, got 0"),
        ({"binarize": "maybe"}, "binarize must be one of none, static, dynamic, got maybe"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -5}, "eval_batch_size must be at least 1, got -5"),
    ],
)
def test_bad_arguments_of_the_datamodule_get_a_sentence(changes, sentence, source):
    with pytest.raises(ValueError, match=sentence):
        ImageData(source, **changes)


@pytest.mark.parametrize("source", [{"_target_": "taugrad.data.mnist.mnist"}, "mnist", None])
def test_a_source_that_is_no_function_gets_a_sentence(source):
    kind = type(source).__name__
    with pytest.raises(
        TypeError, match=f"source must be a function, in a config a node with _partial_: true, got {kind}"
    ):
        ImageData(source)


def test_a_refusal_of_the_source_names_it(tmp_path):
    write_set(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"data.source: validation must be in \[0, 29\], got 30"):
        ImageData(partial(mnist, str(tmp_path / "set"), validation=30)).setup("fit")
    with pytest.raises(ConfigError, match=r"data.source: .*unexpected keyword argument 'roof'"):
        ImageData(partial(mnist, roof="set")).setup("fit")
    with pytest.raises(DataError, match="holds none of"):  # an error of our own keeps its kind and its words
        ImageData(partial(idx_files, str(tmp_path))).setup("fit")


@pytest.mark.parametrize(("limit", "items"), [(2, 2), (0.5, 2), (1, 1), (1.0, 5)])
def test_a_limited_epoch_that_is_over_is_followed_by_the_next_also_after_a_resume(limit, items):
    def batches(trainer):
        data = ImageData(embedded.binarized_mnist, batch_size=5000, stack=2)
        data.trainer = trainer
        return data.train_dataloader()

    place = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(limit_train_batches=limit, global_rank=0, world_size=1, strategy=place)
    loader = batches(trainer)
    assert len(loader) == 5  # of which a trainer takes its share by itself
    undisturbed = [x for _ in range(2) for x, _ in loader]
    assert len(undisturbed) == 2 * items
    first = batches(trainer)
    list(first)
    resumed = batches(trainer)
    resumed.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for (a, _), b in zip(resumed, undisturbed[items:], strict=True))
