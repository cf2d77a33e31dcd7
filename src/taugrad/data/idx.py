"""Reader of IDX, the format of MNIST's four files: magic, sizes, then bytes, gzipped or not.

The magic is two zero bytes, 0x08 for unsigned bytes, and the number of dimensions; the sizes are big-endian uint32.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from taugrad.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file; gzip is detected by its first bytes, not by its name.

    Returns:
        uint8, in the shape that the file declares.

    Raises:
        DataError: the file cannot be read, is not IDX of unsigned bytes, or is empty, truncated or too long.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if raw[:4] == b"PK\x03\x04":
        raise DataError(f"{path} is a zip archive: unpack it")
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex(' ') or 'nothing'}")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path} is truncated: its header ends after {len(raw)} of {header} bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if math.prod(shape) == 0:
        raise DataError(f"{path} holds no data: its shape is {shape}")
    if len(raw) - header != math.prod(shape):
        raise DataError(f"{path} should hold {math.prod(shape)} bytes for shape {shape}, but holds {len(raw) - header}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).view(shape)
