"""Small data sets in IDX files."""

import gzip
import struct

import numpy as np

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array, magic=None):
    header = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_set(root, n=30, m=20, size=28, labels=10, compress=False):
    rng = np.random.default_rng(0)
    arrays = (
        rng.integers(256, size=(n, size, size)),
        rng.integers(labels, size=n),
        rng.integers(256, size=(m, size, size)),
        rng.integers(labels, size=m),
    )
    root.mkdir(exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        if compress:
            (root / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (root / name).write_bytes(idx(array))
    return arrays
