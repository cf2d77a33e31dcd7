"""The kernels' random words and their noise, by arithmetic of Python."""

import numpy as np


def threefry(counter: np.ndarray, key: np.ndarray, rounds: int) -> np.ndarray:
    """Threefry-4x32 (Salmon et al. 2011) of counters (n, 4) under a key (4,), a round at a time."""
    turns = [(10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20)]
    k = np.append(key, np.uint32(0x1BD11BDA) ^ np.bitwise_xor.reduce(key)).astype(np.uint32)
    v = (counter + k[:4]).astype(np.uint32)
    for r in range(rounds):
        order = [0, 1, 2, 3] if r % 2 == 0 else [0, 3, 2, 1]
        for (a, b), n in zip((order[:2], order[2:]), turns[r % 8], strict=True):
            v[:, a] += v[:, b]
            v[:, b] = (v[:, b] << np.uint32(n) | v[:, b] >> np.uint32(32 - n)) ^ v[:, a]
        if r % 4 == 3:
            s = r // 4 + 1
            for i in range(4):
                v[:, i] += k[(s + i) % 5]
            v[:, 3] += np.uint32(s)
    return v


def words_of(seed: int, first_counter: int, counters: int, rounds: int = 12, stream: int = 0) -> np.ndarray:
    """The four words of each of `counters` counters, (counters, 4), under a 64-bit seed."""
    c = first_counter + np.arange(counters, dtype=np.uint64)
    zero = np.zeros(counters, np.uint32)
    counter = np.stack([c.astype(np.uint32), (c >> np.uint64(32)).astype(np.uint32), zero, zero], 1)
    return threefry(counter, np.array([seed % 2**32, seed >> 32, stream, 0], np.uint32), rounds)


def double_words(seed: int, blocks: int, stream: int = 0) -> np.ndarray:
    """Element 32 b + 16 k + j is words 2 k and 2 k + 1 of counter 16 b + j, the high one first."""
    w = words_of(seed, 0, 16 * blocks, stream=stream).reshape(blocks, 16, 2, 2).astype(np.uint64)
    return (w[..., 0] << np.uint64(32) | w[..., 1]).transpose(0, 2, 1).ravel()


def float_words(seed: int, first_block: int, blocks: int, rounds: int = 12, stream: int = 0) -> np.ndarray:
    """Element 64 b + 16 w + j is word w of counter 16 b + j."""
    words = words_of(seed, 16 * first_block, 16 * blocks, rounds, stream)
    return words.reshape(blocks, 16, 4).transpose(0, 2, 1).ravel()


def gumbel_of(words: np.ndarray) -> np.ndarray:
    """-log(-log(1 - u)) in float64, u = (word + 1/2) / 2^bits, by the side on which u keeps its bits."""
    bits = 8 * words.itemsize
    low = words < words.dtype.type(1) << words.dtype.type(bits - 1)
    t = (np.where(low, words, ~words).astype(np.float64) + 0.5) * 2.0**-bits  # the smaller of u and 1 - u
    return -np.log(-np.where(low, np.log1p(-t), np.log(t)))
