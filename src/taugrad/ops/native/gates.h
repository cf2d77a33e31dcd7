// Layers of two-input gates over a batch, (gates, batch) contiguous: y = c0 + c1 a + c2 b + c3 a b, where a and b are
// rows of x and c is of the gate. The batch lies along the vectors, so that a gate's inputs are whole rows.
#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "vectors.h"

namespace taugrad {

template <class T> struct Gates {
  const T* x;                 // (inputs, batch)
  const T* c;                 // (gates, 4)
  const int64_t *a, *b;       // (gates,), rows of x
  int64_t inputs, gates, batch;
};

template <class T> void gates(const Gates<T>& l, T* y, const Pool& pool) {
  constexpr int W = Simd<T>::W;
  split(pool, l.gates, double(l.batch) * 0.3, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T *a = l.x + l.a[i] * l.batch, *b = l.x + l.b[i] * l.batch, *c = l.c + 4 * i;
      T* const out = y + i * l.batch;
      int64_t j = 0;
      for (; j + W <= l.batch; j += W) {
        const V<T> A = load<V<T>>(a + j), B = load<V<T>>(b + j);
        store(out + j, (A * c[1] + c[0]) + (A * c[3] + c[2]) * B);
      }
      for (; j < l.batch; ++j) out[j] = (a[j] * c[1] + c[0]) + (a[j] * c[3] + c[2]) * b[j];
    }
    return int64_t(0);
  });
}

// dc (gates, 4), and dx (inputs, batch) unless it is null, from dy (gates, batch). A gate writes whole rows of dx, and
// two gates the same ones, so that threads share the batch and not the gates. Their sums are added up in order.
template <class T>
void gates_backward(const Gates<T>& l, const T* dy, T* dc, T* dx, const Pool& pool) {
  constexpr int W = Simd<T>::W;
  const int64_t blocks = (l.batch + W - 1) / W, shares = std::max<int64_t>(1, std::min(pool.threads, blocks));
  std::vector<T> sums((shares - 1) * l.gates * 4);  // of all shares but the first
  split(pool, shares, double(l.gates) * double(l.batch) / double(shares), [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t from = blocks * s / shares * W, to = std::min(l.batch, blocks * (s + 1) / shares * W);
      T* const sum = s ? sums.data() + (s - 1) * l.gates * 4 : dc;
      if (dx)
        for (int64_t i = 0; i < l.inputs; ++i) std::fill(dx + i * l.batch + from, dx + i * l.batch + to, T(0));
      for (int64_t i = 0; i < l.gates; ++i) {
        const T *a = l.x + l.a[i] * l.batch, *b = l.x + l.b[i] * l.batch, *c = l.c + 4 * i, *g = dy + i * l.batch;
        T* const da = dx ? dx + l.a[i] * l.batch : nullptr;
        T* const db = dx ? dx + l.b[i] * l.batch : nullptr;
        V<T> s0 = {}, s1 = {}, s2 = {}, s3 = {};
        int64_t j = from;
        for (; j + W <= to; j += W) {
          const V<T> A = load<V<T>>(a + j), B = load<V<T>>(b + j), G = load<V<T>>(g + j), GA = G * A, GB = G * B;
          s0 += G, s1 += GA, s2 += GB, s3 += GA * B;
          if (dx) {  // one after the other: a gate may take one row twice
            store(da + j, load<V<T>>(da + j) + (G * c[1] + GB * c[3]));
            store(db + j, load<V<T>>(db + j) + (G * c[2] + GA * c[3]));
          }
        }
        T t0 = hsum<T>(s0), t1 = hsum<T>(s1), t2 = hsum<T>(s2), t3 = hsum<T>(s3);
        for (; j < to; ++j) {
          const T ga = g[j] * a[j], gb = g[j] * b[j];
          t0 += g[j], t1 += ga, t2 += gb, t3 += ga * b[j];
          if (dx) {
            da[j] += g[j] * c[1] + gb * c[3];
            db[j] += g[j] * c[2] + ga * c[3];
          }
        }
        sum[4 * i] = t0, sum[4 * i + 1] = t1, sum[4 * i + 2] = t2, sum[4 * i + 3] = t3;
      }
    }
    return int64_t(0);
  });
  for (size_t k = 0; k < sums.size(); ++k) dc[k % (l.gates * 4)] += sums[k];
}

}  // namespace taugrad
