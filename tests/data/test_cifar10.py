import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from taugrad.data.cifar10 import cifar10
from taugrad.errors import DataError

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
PIXELS = np.random.default_rng(0).integers(256, size=(6, 4, 3072), dtype=np.uint8)
LABELS = np.arange(24).reshape(6, 4) % 10


def pickled(i, protocol=2):
    return pickle.dumps({b"data": PIXELS[i], b"labels": LABELS[i].tolist(), b"batch_label": b"x"}, protocol)


def binary(i):
    return np.concatenate([LABELS[i][:, None].astype(np.uint8), PIXELS[i]], 1).tobytes()


def write(root, kind, packed):
    name, folder, ending, content = {
        "python": ("cifar-10-python.tar.gz", "cifar-10-batches-py", "", pickled),
        "binary": ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", binary),
    }[kind]
    (root / folder).mkdir(parents=True)
    for i, batch in enumerate(NAMES):
        (root / folder / (batch + ending)).write_bytes(content(i))
    if not packed:
        return root / folder
    with tarfile.open(root / name, "w:gz") as archive:
        archive.add(root / folder, folder)
    for file in (root / folder).iterdir():
        file.unlink()
    return root / name


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_both_kinds_are_read_packed_and_unpacked_from_their_folder_or_themselves(kind, tmp_path):
    for packed in (False, True):
        inner = write(tmp_path / str(packed), kind, packed)
        for root in (tmp_path / str(packed), inner):
            splits = cifar10(root, validation=3)
            images = torch.cat([splits.train.images, splits.val.images, splits.test.images])
            assert images.shape == (24, 3, 32, 32)
            assert np.array_equal(images.numpy().reshape(24, -1), PIXELS.reshape(24, -1))
            assert torch.cat([part.labels for part in splits]).tolist() == LABELS.flatten().tolist()
            assert [len(part.labels) for part in splits] == [17, 3, 4]


def test_a_pickle_that_would_run_code_is_refused_and_every_protocol_of_arrays_is_read(tmp_path):
    folder = write(tmp_path, "python", packed=False)
    for protocol in range(6):
        (folder / "data_batch_1").write_bytes(pickled(0, protocol))
        assert len(cifar10(tmp_path, 0).train.labels) == 20

    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / "data_batch_1").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(DataError, match=r"data_batch_1 is no batch of CIFAR-10: it asks for .*mkdir, and only arrays"):
        cifar10(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_or_foreign_file_gets_a_sentence(tmp_path):
    python, records = (write(tmp_path / kind, kind, packed=False) for kind in ("python", "binary"))
    for content, sentence in {
        pickled(0)[:-100]: "is no batch of CIFAR-10",
        pickle.dumps([1]): "it holds no array data of uint8",
        pickle.dumps({"data": PIXELS[0], "labels": [1, 2]}): "it holds no list labels of 4 whole numbers",
        pickle.dumps({"data": PIXELS[0], "labels": [1, 2, 3, 10]}): "must hold images with labels 0 to 9",
    }.items():
        (python / "data_batch_2").write_bytes(content)
        with pytest.raises(DataError, match=f"data_batch_2 .*{sentence}"):
            cifar10(tmp_path / "python")
    (records / "test_batch.bin").write_bytes(b"123")
    with pytest.raises(DataError, match=r"test_batch.bin must hold records of 3073 bytes, got 3 bytes"):
        cifar10(tmp_path / "binary")
    packed = write(tmp_path / "packed", "python", packed=True)
    packed.write_bytes(packed.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be read"):
        cifar10(tmp_path / "packed")
    with tarfile.open(packed, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz holds no data_batch_1"):
        cifar10(tmp_path / "packed")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"data.source.root must be a folder, or one of"):
        cifar10(tmp_path / "file")


def test_without_a_network_a_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    asked = []

    def offline(url, sha256, *_, **__):
        asked.append((url, sha256))
        raise OSError

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(
        DataError, match=r"lacks cifar-10-python.tar.gz and it could not be downloaded \(OSError\): put"
    ):
        cifar10(Path(tmp_path) / "new")
    ((url, sha256),) = asked
    assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert len(sha256) == len("sha256:") + 64
