import ctypes
import math
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.backends import by_torch_alone
from helpers.cases import each
from helpers.samples import FALSE_FAILURE, distribution_p_value, frequencies_p_value, generator
from helpers.words import double_words, float_words, gumbel_of, threefry, words_of
from scipy import stats

from taugrad.compiler import find_compiler
from taugrad.ops._conditional import seeded_noise
from taugrad.ops._fused import draw_seeds
from taugrad.ops.gumbel import gumbel_argmax
from taugrad.ops.native import build, kernels
from taugrad.ops.noise import gumbel_noise


def on_both_backends(test):
    return pytest.mark.usefixtures("backend")(
        pytest.mark.parametrize("backend", ["native", "torch"], indirect=True)(test)
    )


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WORDS = 2**32


@on_both_backends
@each("dtype", [torch.float32, torch.float64])
def test_noise_is_gumbel_distributed(dtype):
    g = gumbel_noise(torch.empty(2_000_000, dtype=dtype))
    assert distribution_p_value(g, stats.gumbel_r.cdf) > FALSE_FAILURE


def test_the_noise_test_has_power():
    shifted = gumbel_noise(torch.empty(2_000_000)) + 0.01
    assert distribution_p_value(shifted, stats.gumbel_r.cdf) < FALSE_FAILURE


@on_both_backends
def test_neighbours_in_the_noise_are_independent():
    g = gumbel_noise(torch.empty(2, 200_000, dtype=torch.float64))
    g = (g - g.mean()) / g.std()
    n = g.shape[1]
    correlations = [(g[0] * g[1]).mean(), (g[0, 1:] * g[0, :-1]).mean()]
    for r in correlations:
        assert 2 * stats.norm.sf(abs(r.item()) * n**0.5) > FALSE_FAILURE


@on_both_backends
@each("dtype", DTYPES)
def test_noise_is_finite_for_every_number_that_torch_rand_can_give(dtype, monkeypatch):
    step = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    extremes = lambda like, dtype, memory_format: torch.tensor([0.0, step, 0.5, 1 - step, 1.0], dtype=dtype)  # noqa: E731
    monkeypatch.setattr(torch, "rand_like", extremes)
    with by_torch_alone():
        g = gumbel_noise(torch.empty(5, dtype=dtype))
    assert torch.isfinite(g).all()
    assert (g.diff() >= 0).all()


@on_both_backends
def test_ten_million_draws_are_finite_and_within_the_documented_range(backend):
    g = gumbel_noise(torch.empty(10_000_000))
    low, high = {"torch": (-2.86, 16.64), "native": (-3.13, 22.9)}[backend]
    assert g.min() >= low
    assert g.max() <= high


@on_both_backends
@each("dtype", DTYPES)
def test_noise_has_the_dtype_of_the_calculation(dtype):
    assert gumbel_noise(torch.empty(3, dtype=dtype)).dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )


@on_both_backends
def test_a_generator_determines_the_noise_and_spares_the_global_state():
    before = torch.get_rng_state()
    a, b = (gumbel_noise(torch.empty(100), generator=generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a, gumbel_noise(torch.empty(100), generator=generator(4)))


TAILS = (-2.5, 10.0, 13.0)
DRAWS = 30_000_000


def tail_counts(edges: tuple[float, float, float]) -> list[int]:
    """Count, of DRAWS in chunks, those below the first edge, above the second and above the third."""
    counts = np.zeros(3, int)
    for _ in range(10):
        g = gumbel_noise(torch.empty(DRAWS // 10))
        counts += [int(n.sum()) for n in (g < edges[0], g > edges[1], g > edges[2])]
    return counts.tolist()


def tail_p_values(counts: list[int]) -> list[float]:
    """Binomial, that so many lie beyond TAILS."""
    probabilities = [stats.gumbel_r.cdf(TAILS[0]), *stats.gumbel_r.sf(TAILS[1:])]
    return [stats.binomtest(n, DRAWS, p).pvalue for n, p in zip(counts, probabilities, strict=True)]


@on_both_backends
def test_the_tails_hold_as_many_of_thirty_million_draws_as_they_should():
    assert min(tail_p_values(tail_counts(TAILS))) > FALSE_FAILURE


def test_the_tails_test_has_power_in_each_tail():
    # As if the noise were 0.1 or 0.2 too high, and in the far tail, where 68 draws are expected, 0.9.
    assert max(tail_p_values(tail_counts((-2.6, 9.8, 12.1)))) < FALSE_FAILURE


@on_both_backends
def test_two_million_indices_have_the_frequencies_of_softmax():
    logits = torch.linspace(-3, 3, 10)
    counts = sum(gumbel_argmax(logits.expand(1_000_000, 10)).bincount(minlength=10) for _ in range(2))
    assert frequencies_p_value(counts, logits.double().softmax(-1)) > FALSE_FAILURE
    assert frequencies_p_value(counts, (logits.double() + 0.025 * logits.sin()).softmax(-1)) < FALSE_FAILURE  # power


# The generator, against one of numpy's integers


SEEDS = [0, 1, 2**32, 2**63 - 1, 0x123456789ABCDEF]


@each(
    "counter, key, words",
    [
        ("00000000 " * 4, "00000000 " * 4, "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
        ("ffffffff " * 4, "ffffffff " * 4, "2a881696 57012287 f6c7446e a16a6732"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0 082efa98 ec4e6c89",
            "59cd1dbb b8879579 86b5d00c ac8b6d84",
        ),
    ],
)
def test_the_oracle_gives_the_published_words_at_twenty_rounds(counter, key, words):
    counter, key, words = (np.array([int(w, 16) for w in s.split()], np.uint32) for s in (counter, key, words))
    assert (threefry(counter[None], key, 20) == words).all()


@pytest.mark.usefixtures("binding")
@each("n", [1, 15, 64, 2048, 2049, 20_000])
@each("seed", SEEDS)
def test_the_noise_is_that_of_twelve_rounds_of_threefry(seed, n):
    blocks = n // 32 + 1
    oracles = {
        torch.float32: (gumbel_of(float_words(seed, 0, blocks)), 1e-6, 1e-7),
        torch.float64: (gumbel_of(double_words(seed, blocks)), 1e-12, 0),
    }
    for dtype, (oracle, atol, rtol) in oracles.items():
        g = kernels.noise(torch.empty(n, dtype=dtype), torch.tensor(seed))
        torch.testing.assert_close(g.double(), torch.from_numpy(oracle)[:n], rtol=rtol, atol=atol)


@pytest.mark.usefixtures("binding")
def test_thirteen_rounds_are_not_twelve():
    g = kernels.noise(torch.empty(64), torch.tensor(0))
    oracle = gumbel_of(float_words(0, 0, 1, rounds=13))
    assert np.abs(g.numpy() - oracle).max() > 1


# What lies below the kernels, by a program of its own over their headers

HARNESS = r"""
#include "noise.h"
using namespace taugrad;

extern "C" void float_words(uint64_t seed, uint32_t stream, int64_t first, int64_t n, float* out) {
  float* room = new float[n + 2 * kBlock<float>];
  std::memcpy(out, words(room, first, first + n, Threefry(seed, stream)), n * sizeof(float));
  delete[] room;
}

template <class T> void gumbel_of(const T* words, int64_t n, T* out) {
  for (int64_t i = 0; i < n; i += Simd<T>::W) store(out + i, gumbel(load<V<T>>(words + i)));
}
extern "C" void gumbel_of_floats(const float* words, int64_t n, float* out) { gumbel_of(words, n, out); }
extern "C" void gumbel_of_doubles(const double* words, int64_t n, double* out) { gumbel_of(words, n, out); }

// Of all words: the least and the largest noise, the largest rise from a word to the next, and the words without any.
extern "C" int64_t every_float(float told[3]) {
  constexpr int W = Simd<float>::W;
  U word;
  for (int i = 0; i < W; ++i) word[i] = uint32_t(i);
  I<float> infinite = {};
  V<float> low = all<V<float>>(kInf<float>), high = all<V<float>>(-kInf<float>), rise = high;
  float row[W + 1] = {kInf<float>};  // the last of the vector before, and a vector
  for (int64_t n = 0; n < int64_t(1) << 32; n += W, word += uint32_t(W)) {
    const V<float> g = gumbel((V<float>)word);
    infinite -= (g - g) != V<float>{};
    low = vmin(low, g), high = vmax(high, g);
    store(row + 1, g);
    rise = vmax(rise, g - load<V<float>>(row));
    row[0] = row[W];
  }
  told[0] = -hmax<float>(-low), told[1] = hmax<float>(high), told[2] = hmax<float>(rise);
  int64_t count = 0;
  for (int i = 0; i < W; ++i) count += infinite[i];
  return count;
}

// name 0 to 3: the mathematics of one lane
extern "C" void lanes(int64_t name, const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += Simd<float>::W) {
    const V<float> v = load<V<float>>(x + i);
    store(out + i, name == 0 ? log1p_half(v) : name == 1 ? log_half(v) : name == 2 ? exp2_nonpositive(v)
                                                                                    : log2_positive(v));
  }
}
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory, binding) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("harness")
    source, library = directory / "harness.cpp", directory / "harness.so"
    source.write_text(HARNESS)
    flags = [*build._FLAGS, "-std=c++17", "-march=native", f"-I{Path(build.__file__).parent}"]
    subprocess.run([*find_compiler("a test"), *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    loaded.float_words.argtypes = [ctypes.c_uint64, ctypes.c_uint32, integer, integer, pointer]
    loaded.gumbel_of_floats.argtypes = loaded.gumbel_of_doubles.argtypes = [pointer, integer, pointer]
    loaded.every_float.argtypes, loaded.every_float.restype = [pointer], integer
    loaded.lanes.argtypes = [integer, pointer, integer, pointer]
    return loaded


def kernel_words(harness, seed: int, first: int, n: int, stream: int = 0) -> np.ndarray:
    out = np.empty(n, np.uint32)
    harness.float_words(seed, stream, first, n, out.ctypes.data)
    return out


def kernel_gumbel(harness, words: np.ndarray) -> np.ndarray:
    n = words.size
    words = np.concatenate([words, np.zeros(-n % 16, words.dtype)])  # whole vectors
    out = np.empty(words.size, np.float32 if words.itemsize == 4 else np.float64)
    (harness.gumbel_of_floats if words.itemsize == 4 else harness.gumbel_of_doubles)(
        words.ctypes.data, words.size, out.ctypes.data
    )
    return out[:n]


def test_every_float_of_the_noise_is_finite_and_in_the_documented_range_and_falls_with_the_word(harness):
    told = np.empty(3, np.float32)
    assert harness.every_float(told.ctypes.data) == 0
    low, high, rise = told.tolist()
    assert low == pytest.approx(-math.log(33 * math.log(2)), abs=1e-6)  # u = 1 - 2^-33
    assert high == pytest.approx(33 * math.log(2), abs=2e-6)  # u = 2^-33
    assert low >= -3.13
    assert high <= 22.9
    assert rise <= 2**-22  # the last bit, where a polynomial of the logarithm rounds the other way


def test_a_float_of_the_noise_is_the_formula_of_its_word_within_a_millionth_and_a_rounding(harness):
    ends = np.arange(100_000, dtype=np.uint32)
    middle = np.uint32(2**31) + ends - np.uint32(50_000)
    words = np.concatenate([np.arange(0, WORDS, 10_007, dtype=np.uint32), ends, ~ends, middle])
    error = np.abs(kernel_gumbel(harness, words) - gumbel_of(words))
    assert (error <= 8e-7 + 8e-8 * np.abs(gumbel_of(words))).all()


def test_a_double_of_the_noise_is_the_formula_of_its_word_and_in_the_documented_range(harness):
    rng = np.random.default_rng(0)
    ends = np.arange(1000, dtype=np.uint64)
    middle = np.uint64(2**63) + ends - np.uint64(500)
    words = np.concatenate([rng.integers(2**64, size=100_000, dtype=np.uint64), ends, ~ends, middle])
    g = kernel_gumbel(harness, words)
    np.testing.assert_allclose(g, gumbel_of(words), rtol=0, atol=2e-14)
    assert (g.min(), g.max()) == pytest.approx((-math.log(65 * math.log(2)), 65 * math.log(2)))
    assert g.min() >= -3.81
    assert g.max() <= 45.1


@each("block", [0, 5, 2**28 - 1, 2**28, 3 * 2**40 + 7])
def test_counters_go_on_in_their_high_word(harness, block):
    expected = float_words(0x123456789ABCDEF, block, 3)
    assert (kernel_words(harness, 0x123456789ABCDEF, 64 * block, 192) == expected).all()
    assert (kernel_words(harness, 0x123456789ABCDEF, 64 * block + 7, 100) == expected[7:107]).all()


@each("stream", [1, 2, 2**32 - 1])
def test_a_stream_is_a_word_of_the_key(harness, stream):
    assert (kernel_words(harness, 2**63 - 1, 0, 192, stream) == float_words(2**63 - 1, 0, 3, stream=stream)).all()


@each(
    "name, first, last, oracle, relative, bound",
    [
        (0, 1e-30, 0.5, lambda x: np.log1p(-x), True, 3.5e-7),
        (1, 1e-30, 0.5, lambda x: np.log1p(-x), False, 3e-7),
        (2, 1e-30, 125.0, lambda x: np.exp2(-x), True, 2.5e-7),
    ],
)
def test_the_mathematics_of_a_lane_is_accurate(harness, name, first, last, oracle, relative, bound):
    bits = np.array([first, last], np.float32).view(np.int32)
    x = np.arange(bits[0], bits[1] + 1, 997, dtype=np.int32).view(np.float32)
    x = np.append(x[x.size % 16 :], [np.float32(last)] * 16)
    out = np.empty_like(x)
    negated = -x
    harness.lanes(name, negated.ctypes.data, x.size, out.ctypes.data)
    expected = oracle(x.astype(np.float64))
    error = np.abs(out - expected) / (np.abs(expected) if relative else 1)
    assert error.max() <= bound


def test_the_mathematics_of_a_lane_keeps_nan_and_knows_its_limits(harness):
    edges = np.array([0, 1, np.nan, -np.inf, -1000, -1, *[0] * 10], np.float32)
    out = np.empty_like(edges)
    harness.lanes(2, edges.ctypes.data, edges.size, out.ctypes.data)
    np.testing.assert_array_equal(out[[0, 3, 4]], [1, 0, 0])
    assert out[5] == pytest.approx(0.5)
    assert np.isnan(out[2])
    harness.lanes(3, edges.ctypes.data, edges.size, out.ctypes.data)
    assert out[0] <= -126
    assert out[1] == pytest.approx(0, abs=1e-6)
    assert np.isnan(out[2])


# Independence


def dependence_p_value(pairs) -> float:
    """Chi-square of pairs of Gumbel(0,1) numbers in 8 x 8 cells, given how many lie in each row and column.

    The margins are the business of other tests, and here not independent: a number is of many pairs.
    """
    edges = torch.from_numpy(-np.log(-np.log(np.arange(1, 8) / 8)))
    counts = torch.zeros(64)
    for a, b in pairs:
        counts += torch.bincount(8 * torch.bucketize(a, edges) + torch.bucketize(b, edges), minlength=64)
    return float(stats.chi2_contingency(counts.view(8, 8).numpy(), correction=False).pvalue)


def noise_of(seed: int, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return kernels.noise(torch.empty(n, dtype=dtype), torch.tensor(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each("lag", [1, 4, 10, 16, 32, 64, 1000, 2048])
def test_noise_at_no_distance_is_dependent(lag, dtype):
    g = gumbel_noise(torch.empty(2_000_000 + lag, dtype=dtype))
    assert dependence_p_value([(g[:-lag], g[lag:])]) > FALSE_FAILURE


def test_noise_of_successive_calls_is_independent():
    calls = [gumbel_noise(torch.empty(100_000)) for _ in range(21)]
    assert dependence_p_value(pairwise(calls)) > FALSE_FAILURE
    first = torch.stack([gumbel_noise(torch.empty(16)) for _ in range(40_000)])
    assert dependence_p_value([(first[1:].flatten(), first[:-1].flatten())]) > FALSE_FAILURE


@pytest.mark.usefixtures("binding")
@each("start", [0, 2**32 - 10, 2**62])
def test_noise_of_neighbouring_seeds_is_independent(start):
    seeds = [noise_of(start + i, 100_000) for i in range(21)]
    assert dependence_p_value(pairwise(seeds)) > FALSE_FAILURE


@pytest.mark.usefixtures("binding")
@each("shift", [1, 16, 64])
def test_noise_at_a_later_place_is_independent_of_that_of_the_next_seed(shift):
    # Counter c + 1 under one seed and c under the next start from the same sum: only the later rounds part them.
    seeds = [noise_of(i, 100_000) for i in range(21)]
    pairs = [(a[shift:], b[:-shift]) for a, b in pairwise(seeds)]
    assert dependence_p_value(pairs) > FALSE_FAILURE


def test_noise_of_neighbouring_streams_is_independent(harness):
    streams = [torch.from_numpy(kernel_gumbel(harness, kernel_words(harness, 7, 0, 96_000, i))) for i in range(21)]
    assert dependence_p_value(pairwise(streams)) > FALSE_FAILURE
    next_seed = [torch.from_numpy(kernel_gumbel(harness, kernel_words(harness, 8, 0, 96_000, i))) for i in range(21)]
    assert dependence_p_value(zip(streams, next_seed, strict=True)) > FALSE_FAILURE
    assert dependence_p_value(zip(streams[1:], next_seed[:-1], strict=True)) > FALSE_FAILURE


@pytest.mark.usefixtures("binding")
@each("seed", [0, 0x123456789ABCDEF])
def test_noise_of_seeds_that_differ_by_a_bit_is_independent(seed):
    g = noise_of(seed, 32_000)
    assert dependence_p_value((g, noise_of(seed ^ (1 << bit), 32_000)) for bit in range(63)) > FALSE_FAILURE


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("seed", [0, 0x123456789ABCDEF])
def test_noise_at_one_place_under_consecutive_seeds_is_gumbel_distributed_and_independent(seed):
    g = torch.stack([noise_of(seed + i, 16) for i in range(30_000)])
    assert distribution_p_value(g[:, 0], stats.gumbel_r.cdf) > FALSE_FAILURE
    assert dependence_p_value([(g[1:].flatten(), g[:-1].flatten())]) > FALSE_FAILURE


@pytest.mark.usefixtures("binding")
def test_the_independence_test_has_power():
    a, b = noise_of(0, 2_000_000), noise_of(1, 2_000_000)
    assert dependence_p_value([(a, b)]) > FALSE_FAILURE
    assert dependence_p_value([(a, torch.where(torch.rand(2_000_000) < 0.01, a, b))]) < FALSE_FAILURE
    # ... and sees that three rounds of Threefry are too few: neighbouring counters then have related words.
    weak = torch.from_numpy(gumbel_of(words_of(0, 0, 2_000_000, rounds=3)[:, 0]))
    assert dependence_p_value([(weak[1:], weak[:-1])]) < FALSE_FAILURE


# The words


def collisions_p_value(words: np.ndarray) -> float:
    """The p-value of how many words repeat an earlier one, against Poisson's law, two-sided."""
    n = words.size
    collisions = int((np.diff(np.sort(words)) == 0).sum())
    expected = n - WORDS * -math.expm1(n * math.log1p(-1 / WORDS))
    return min(1.0, 2 * min(stats.poisson.cdf(collisions, expected), stats.poisson.sf(collisions - 1, expected)))


def bits_p_value(words: np.ndarray) -> float:
    """P-value of each bit of the words (..., n) being set in half of them: binomial, Bonferroni-corrected."""
    n = words.shape[-1]
    ones = np.unpackbits(words[..., None].view(np.uint8), axis=-1).sum(-2, dtype=np.int64)
    worst = np.abs(ones - n / 2).max()
    return min(1.0, 2 * stats.binom.sf(math.ceil(n / 2 + worst) - 1, n, 0.5) * ones.size)


def test_words_collide_as_often_as_random_ones(harness):
    assert collisions_p_value(kernel_words(harness, 7, 0, 2**22)) > FALSE_FAILURE


def test_the_collision_test_has_power():
    permutation = np.arange(2**22, dtype=np.uint32) * np.uint32(0x9E3779B1)  # no word twice
    assert collisions_p_value(permutation) < FALSE_FAILURE
    short = np.random.default_rng(0).integers(2**32, size=2**22, dtype=np.uint32) & ~np.uint32(1)
    assert collisions_p_value(short) < FALSE_FAILURE


def test_every_bit_of_the_words_is_set_in_half_of_them(harness):
    assert bits_p_value(kernel_words(harness, 7, 0, 2**22)) > FALSE_FAILURE


def test_the_bit_test_has_power(harness):
    words = kernel_words(harness, 7, 0, 2**22)
    assert bits_p_value(words | (np.arange(2**22) % 100 == 0).astype(np.uint32) << np.uint32(9)) < FALSE_FAILURE


def avalanche(words, seed: int) -> np.ndarray:
    """Bits of the words that change with each bit of the seed, (64, n)."""
    return np.stack([words(seed) ^ words(seed ^ (1 << bit)) for bit in range(64)])


@each("seed", SEEDS)
def test_every_bit_of_the_seed_changes_half_of_every_bit_of_the_words(harness, seed):
    assert bits_p_value(avalanche(lambda seed: kernel_words(harness, seed, 0, 2**14), seed)) > FALSE_FAILURE


@each("seed", SEEDS)
def test_the_next_counter_changes_half_of_every_bit_and_so_does_the_next_seed_in_its_stead(harness, seed):
    here = kernel_words(harness, seed, 0, 2**18)
    counters = np.arange(2**18).reshape(-1, 16)[:, :-1].ravel()  # the next element is of the next counter
    assert bits_p_value(here[counters] ^ here[counters + 1]) > FALSE_FAILURE
    there = kernel_words(harness, (seed + 1) % 2**64, 0, 2**18)
    assert bits_p_value(here[counters + 1] ^ there[counters]) > FALSE_FAILURE
    assert bits_p_value(here ^ kernel_words(harness, seed, 0, 2**18, stream=1)) > FALSE_FAILURE


def test_the_avalanche_test_has_power():
    weak = avalanche(lambda seed: float_words(seed, 0, 2**8, rounds=5), 0)
    assert bits_p_value(weak) < FALSE_FAILURE
    strong = avalanche(lambda seed: float_words(seed, 0, 2**8, rounds=20), 0)
    assert bits_p_value(strong) > FALSE_FAILURE


@on_both_backends
@each("dtype", [torch.float32, torch.float64])
def test_noise_of_a_seed_is_gumbel_and_the_same_again_and_that_of_others_independent(dtype):
    like = torch.empty(2, 20_000, dtype=dtype)
    every = [seeded_noise(like, seed) for seed in draw_seeds(None, like.device, 12)]
    repeated = torch.tensor(2**62 + 5)
    assert torch.equal(seeded_noise(like, repeated), seeded_noise(like, repeated))
    assert distribution_p_value(torch.stack(every).flatten(), stats.gumbel_r.cdf) > FALSE_FAILURE
    assert dependence_p_value((a.flatten(), b.flatten()) for a, b in pairwise(every)) > FALSE_FAILURE
    for lag in (1, 2, 64):
        assert dependence_p_value((g.flatten()[lag:], g.flatten()[:-lag]) for g in every) > FALSE_FAILURE


def test_noise_of_seeds_under_vmap_is_that_of_each_by_torch_alone():
    several, like = torch.randint(2**63 - 1, (3,)), torch.zeros(4, 2)
    mapped = torch.func.vmap(lambda seed: seeded_noise(like, seed))(several)
    with by_torch_alone():
        assert torch.equal(mapped, torch.stack([seeded_noise(like, seed) for seed in several]))
