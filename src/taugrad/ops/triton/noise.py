r"""Gumbel(0,1) noise in Triton: the CPU kernels' random words, word for word, and their logarithms.

The words are Threefry-4x32 with 12 rounds, keyed by the 64-bit seed and a stream; `taugrad/ops/native/noise.h` says how
they are laid over the elements, and with which uniform numbers. A word is a function of (seed, stream, element), so a
backward draws the forward's noise again, and a CPU draws the same.
"""

import triton
import triton.language as tl


@triton.jit
def _mixed(a, b, c, d, n: tl.constexpr, m: tl.constexpr):
    """Half of the words of a round: b and d turned by n and m."""
    a += b
    b = ((b << n) | (b >> (32 - n))) ^ a
    c += d
    d = ((d << m) | (d >> (32 - m))) ^ c
    return a, b, c, d


@triton.jit
def _four_words(counter, seed, stream):
    """The four words of each counter, an int64; `stream` is one number or as many."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    k2 = tl.zeros_like(k0) + stream
    k4 = k0 ^ k1 ^ k2 ^ 0x1BD11BDA
    a = counter.to(tl.uint32) + k0
    b = (counter >> 32).to(tl.uint32) + k1
    c = tl.zeros_like(a) + k2
    d = tl.zeros_like(a)
    a, b, c, d = _mixed(a, b, c, d, 10, 26)
    a, d, c, b = _mixed(a, d, c, b, 11, 21)
    a, b, c, d = _mixed(a, b, c, d, 13, 27)
    a, d, c, b = _mixed(a, d, c, b, 23, 5)
    a, b, c, d = a + k1, b + k2, c, d + k4 + 1
    a, b, c, d = _mixed(a, b, c, d, 6, 20)
    a, d, c, b = _mixed(a, d, c, b, 17, 11)
    a, b, c, d = _mixed(a, b, c, d, 25, 10)
    a, d, c, b = _mixed(a, d, c, b, 18, 20)
    a, b, c, d = a + k2, b, c + k4, d + k0 + 2
    a, b, c, d = _mixed(a, b, c, d, 10, 26)
    a, d, c, b = _mixed(a, d, c, b, 11, 21)
    a, b, c, d = _mixed(a, b, c, d, 13, 27)
    a, d, c, b = _mixed(a, d, c, b, 23, 5)
    return a, b + k4, c + k0, d + k1 + 3


@triton.jit
def _split(x):
    """(m, e) with |x| = m 2^e, m in [1/2, 1); float32, normal."""
    bits = x.to(tl.int32, bitcast=True)
    m = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    return m, (((bits >> 23) & 0xFF) - 126).to(tl.float32)


@triton.jit
def _log1p_half(r):
    """log(1 + r), r in [-1/2, 0], accurate relative to its value; the CPU kernels' polynomial."""
    q = r * r
    odd = q * -1.1849161386489868 - 0.785412609577179
    even = q * -1.0815134048461914 + 0.03802432864904404
    odd = odd * q - 0.2722494304180145
    even = even * q + 0.3318627178668976
    odd = odd * q - 0.5000365376472473
    even = even * q + 0.9999998807907104
    return (odd * r + even) * r


@triton.jit
def _log_half(r):
    """log(1 + r), r in [-1/2, 0], accurate in absolute terms; the CPU kernels' polynomial."""
    q = r * r
    odd = q * 1.3419477939605713 + 0.9171360731124878
    even = q * 1.2338998317718506 - 0.059347160160541534
    odd = odd * q + 0.3600061237812042
    even = even * q - 0.4981977045536041
    odd = odd * q + 1.0000460147857666
    even = even * q + 1.9218381908103765e-07
    return odd * r + even


@triton.jit
def _gumbel32(word):
    """g = -log E, E = -log(1 - u), u = (word + 1/2) 2^-32."""
    x = word.to(tl.int32, bitcast=True)
    t = x.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32, 2^-33; the smaller of u, u - 1
    m, e = _split(t)
    above = x < 0
    E = tl.where(above, e, 0.0) * -0.6931471805599453 - _log1p_half(tl.where(above, m - 1.0, -t))
    m, e = _split(E)
    return e * -0.6931471805599453 - _log_half(m - 1.0)


@triton.jit
def _gumbel64(high, low):
    """The same of u = (word + 1/2) 2^-64, of two words; float64."""
    x = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)).to(tl.int64, bitcast=True)
    t = (x.to(tl.float64) + 0.5) * 5.421010862427522e-20  # 2^-64
    w = 1.0 - t  # log(1 - t) = log(w) * (1 - w corrected), for t in [0, 1/2]
    log1p = tl.where(w == 1.0, -t, tl.log(w) * (-t / tl.where(w == 1.0, 1.0, w - 1.0)))
    return -tl.log(-tl.where(x < 0, tl.log(tl.abs(t)), log1p))


@triton.jit
def gumbel(element, seed, stream, DOUBLE: tl.constexpr):
    """Noise of the elements, an int64 tensor: float32, or float64 if DOUBLE."""
    if DOUBLE:
        a, b, c, d = _four_words((element >> 5) * 16 + (element & 15), seed, stream)
        later = (element & 16) != 0
        return _gumbel64(tl.where(later, c, a), tl.where(later, d, b))
    else:
        a, b, c, d = _four_words((element >> 6) * 16 + (element & 15), seed, stream)
        which = (element >> 4) & 3
        return _gumbel32(tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d)))


@triton.jit
def gumbel_run(first, seed, stream, N: tl.constexpr):
    """Noise of N elements from `first` on, both multiples of 64: each counter once, a quarter of `gumbel`'s work."""
    counter = first // 4 + tl.arange(0, N // 4)
    a, b, c, d = _four_words(counter, seed, stream)
    words = tl.join(tl.join(a, b), tl.join(c, d))  # counter 16 i + j, word w + 2 v: element 64 i + 16 (w + 2 v) + j
    words = tl.permute(tl.reshape(words, (N // 64, 16, 2, 2)), (0, 3, 2, 1))
    return _gumbel32(tl.reshape(words, (N,)))
