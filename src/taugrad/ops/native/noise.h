// Gumbel(0,1) noise as a function of (seed, element): counter-based, hence the same for any number of threads.
//
// The random words are Threefry-4x32 with 12 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
// the fewest that passed their tests for this size), keyed by the 64-bit seed and a stream. Counter c gives four words. A block of 16
// consecutive counters gives 64 floats, element 64 b + 16 w + j from word w of counter 16 b + j, or 32 doubles of two
// words each: so neighbouring lanes take neighbouring counters, whatever the vectors' width.
//
//     u = (x + 1/2) 2^-32 in (0, 1),   E = -log(1 - u),   g = -log E
//
// With all 32 bits kept where u is small, g lies in [-3.13, 22.9] in float; in double 64 bits give [-3.81, 45.1].
#pragma once

#include "vectors.h"

namespace taugrad {

constexpr int kCounters = 16;                                            // of a block
template <class T> constexpr int64_t kBlock = kCounters * 16 / sizeof(T);  // elements of a block

inline U rotated(U x, int n) { return (x << n) | (x >> (32 - n)); }

class Threefry {
 public:
  // Streams of one seed are as independent as seeds.
  explicit Threefry(uint64_t seed, uint32_t stream = 0) {
    const uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
    const uint32_t words[5] = {low, high, stream, 0, 0x1BD11BDAu ^ low ^ high ^ stream};
    for (int i = 0; i < 5; ++i) key_[i] = all<U>(words[i]);
  }

  // The four words of counters (high << 32) + low.
  inline void words(U low, U high, U w[4]) const {
    constexpr int kTurn[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
    U a = low + key_[0], b = high + key_[1], c = key_[2], d = key_[3];
#pragma GCC unroll 12
    for (int r = 0; r < 12; ++r) {
      U& left = r % 2 ? d : b;
      U& right = r % 2 ? b : d;
      a += left;
      left = rotated(left, kTurn[r % 8][0]) ^ a;
      c += right;
      right = rotated(right, kTurn[r % 8][1]) ^ c;
      if (r % 4 == 3) {
        const int s = r / 4 + 1;
        a += key_[s % 5];
        b += key_[(s + 1) % 5];
        c += key_[(s + 2) % 5];
        d += key_[(s + 3) % 5] + uint32_t(s);
      }
    }
    w[0] = a, w[1] = b, w[2] = c, w[3] = d;
  }

 private:
  U key_[5];
};

// With t the smaller of u and 1 - u, no bit is lost on either side: E is -log(1 - t) for x >= 0 and -log(t) for x < 0,
// both a logarithm of something in [1/2, 1] after t's exponent is taken out.
inline V<float> gumbel(V<float> word) {
  const I<float> x = (I<float>)word;
  const V<float> t = __builtin_convertvector(x, V<float>) * 0x1p-32f + 0x1p-33f;
  const I<float> above = x < 0;
  V<float> m, e;
  split(t, m, e);
  const V<float> E = (above ? e : V<float>{}) * -kLn2<float> - log1p_half(above ? m - 1.0f : -t);
  split(E, m, e);
  return e * -kLn2<float> - log_half(m - 1.0f);
}
inline V<double> gumbel(V<double> word) {
  const I<double> x = (I<double>)word;
  for (int i = 0; i < Simd<double>::W; ++i) {
    const double t = (double(x[i]) + 0.5) * 0x1p-64;
    word[i] = -std::log(x[i] < 0 ? -std::log(-t) : -std::log1p(-t));
  }
  return word;
}

// The random words of elements [first, last), one of T's size for each, from the block of `first` on; returns where
// `first` stands. `room` holds last - first and two more blocks.
template <class T> inline T* words(T* room, int64_t first, int64_t last, const Threefry& random) {
  constexpr int W = Simd<float>::W;
  const int64_t start = first / kBlock<T>;
  U lane;
  for (int i = 0; i < W; ++i) lane[i] = uint32_t(i);
  T* p = room;
  for (int64_t b = start; b * kBlock<T> < last; ++b, p += kBlock<T>) {
    const uint64_t counter = uint64_t(b) * kCounters;
    for (int j = 0; j < kCounters; j += W) {
      U w[4];
      random.words(lane + (uint32_t(counter) + uint32_t(j)), all<U>(uint32_t(counter >> 32)), w);
      if constexpr (sizeof(T) == 4) {
        for (int k = 0; k < 4; ++k) store(p + kCounters * k + j, w[k]);
      } else {
        for (int k = 0; k < 2; ++k)
          for (int i = 0; i < W; ++i) {
            const uint64_t word = uint64_t(w[2 * k][i]) << 32 | w[2 * k + 1][i];
            store(p + kCounters * k + j + i, word);
          }
      }
    }
  }
  return room + (first - start * kBlock<T>);
}

}  // namespace taugrad
