"""Make the package's binarized MNIST from the four IDX files: python scripts/pack_binarized_mnist.py DIRECTORY."""

import argparse
import hashlib
import lzma
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from taugrad.data.binarized_mnist import PATH, pack
from taugrad.data.images import binarize
from taugrad.data.mnist import read_split


def payload(directory: Path) -> bytes:
    """The uncompressed content of the data file, from MNIST's gzipped IDX files in `directory`."""
    train, test = (
        read_split(directory / f"{name}-images-idx3-ubyte.gz", directory / f"{name}-labels-idx1-ubyte.gz")
        for name in ("train", "t10k")
    )
    images = [cast(Tensor, split.images) for split in (train, test)]
    return pack(binarize(torch.cat(images)), torch.cat([train.labels, test.labels]))


def main() -> None:
    """Write the file and print its checksum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds MNIST's IDX files, gzipped")
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    content = payload(arguments.directory)
    arguments.out.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    print(f"SHA-256 of its content: {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
