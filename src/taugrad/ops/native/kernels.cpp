// Fused kernels over rows of K classes, (rows, K) contiguous, behind a C interface, in float and double.
//
//     sample             s = x + g, i = argmax s, z = onehot(i), and the relaxation y whose gradient z takes
//     softmax_backward   dx = (dy - <dy, y>) y / tau
//     reinmax_backward   dx = 2 J(pi_D) dz - J(pi) dz / 2
//     gumbel_rao         dx = 1/n sum_i J(y_i) dz / tau, y_i = softmax(s_i / tau), s_i ~ p(x + g | z)
//     entropy            H = -<p, log p>,        entropy_backward    dx = -dH p (log p + H)
//     log_prob           l = <z, log p>
//     bernoulli          l = sum_d x_d log sigma(a_d) + (1 - x_d) log sigma(-a_d), and da = dl (x - sigma(a))
//     noise              g
//     gates              y = c0 + c1 a + c2 b + c3 a b,          gates_backward      dc, dx
//
// Each splits its rows over the threads of the pool it is handed, where the work is worth waking one.

#include <algorithm>
#include <memory>

#include "gates.h"
#include "layouts.h"
#include "noise.h"
#include "pool.h"

namespace taugrad {
namespace {

// The rows that a call of a row's function works on: lane j holds row first + j stride, for j < count.
struct Rows {
  int64_t first, stride, count;
};

// Calls f(lane, row): where one number a row is read or written.
template <class F> inline void each_row(Rows rows, F f) {
  for (int64_t lane = 0; lane < rows.count; ++lane) f(lane, rows.first + lane * rows.stride);
}

// Calls f(layout, rows, arrays of `in`, array of `out`) for the rows [first, last); the pointers are to row `first`. An
// array of `in` may be null, and then is for f.
template <class T, int N, class F>
inline void over_rows(int64_t K, int64_t first, int64_t last, const T* const (&in)[N], T* out, F f) {
  if (K > Bundles<T>::kLongest) {
    for (int64_t r = 0; r < last - first; ++r) {
      const T* row[N];
      for (int i = 0; i < N; ++i) row[i] = in[i] ? in[i] + r * K : nullptr;
      f(Across<T>{K}, Rows{first + r, 1, 1}, row, out ? out + r * K : nullptr);
    }
    return;
  }
  const Bundles<T> bundles(K);
  V<T> columns[N][Bundles<T>::kLongest], result[Bundles<T>::kLongest];
  for (int64_t r = first; r < last; r += bundles.group()) {
    const int64_t rows = std::min(bundles.group(), last - r), offset = (r - first) * K;
    for (int i = 0; i < N; ++i)
      if (in[i]) bundles.get(in[i] + offset, (last - r) * K, columns[i]);
    for (int64_t b = 0; b < bundles.rows; ++b) {
      const V<T>* column[N];
      for (int i = 0; i < N; ++i) column[i] = in[i] ? columns[i] + b * K : nullptr;
      const int64_t count = (rows - b + bundles.rows - 1) / bundles.rows;
      f(Down<T>{K}, Rows{r + b, bundles.rows, count}, column, result + b * K);
    }
    if (out) bundles.put(result, out + offset, rows * K);
  }
}

enum Relaxation : int64_t { kNone, kPerturbed, kPlain, kGapped, kMarked };

template <class T> struct Sample {
  const T* x;
  int64_t rows, K;
  const uint64_t* seed;  // null: no noise and no sample, for the tempered softmax alone
  int64_t relaxation;    // what y is the softmax of: (x + g) / tau, x / tau, x / tau after the gap was made, or x / tau
                         // again, with the sign bit of the drawn class set
  double tau, gap;
  T* y;                  // null with kNone
  T* z;                  // null, or filled with the sample
  int64_t* index;        // null, or filled with the sample
};

// y = softmax(from / tau), `highest` the largest of `from`; the result is NaN where y is.
template <class T, class L, class Out, class F>
inline V<T> softmax_row(L l, V<T> highest, T inv_tau, Out* y, F from) {
  const T scale = kLog2e<T> * inv_tau;
  V<T> sum = {};
  l.each([&](auto at) {
    const V<T> w = exp2_nonpositive((from(at) - highest) * scale);
    sum += w;
    l.put(y, at, w);
  });
  sum = l.sum(sum);
  const V<T> share = T(1) / sum;
  l.each([&](auto at) { l.put(y, at, l.get(y, at, T(0)) * share); });
  return sum;
}

template <class T, class L, class In> inline V<T> highest(L l, const In* x) {
  V<T> top = all<V<T>>(-kInf<T>);
  l.each([&](auto at) { top = vmax(top, l.get(x, at, -kInf<T>)); });
  return l.max(top);
}

// max s, and the first class that has it; class 0 where nothing is above -inf.
template <class T, class L, class In> inline V<T> highest(L l, const In* s, I<T>& index) {
  constexpr auto none = std::numeric_limits<typename Simd<T>::Int>::max();
  I<T> where = all<I<T>>(none);
  V<T> top = all<V<T>>(-kInf<T>);
  l.each([&](auto at) {
    const V<T> v = l.get(s, at, -kInf<T>);
    where = v > top ? l.index(at) : where;
    top = vmax(top, v);
  });
  const V<T> most = l.max(top);
  where = l.first(most == top ? where : none);
  index = where == none ? I<T>{} : where;
  return most;
}

// The lanes of rows that no class can be drawn from: nothing finite in them, or NaN or +inf.
template <class T, class L, class In> inline I<T> unusable_rows(L l, const In* s, V<T> top) {
  I<T> nan = {};
  l.each([&](auto at) {
    const V<T> v = l.get(s, at, -kInf<T>);
    nan |= v != v;
  });
  return l.first(nan) | ((top - top) != V<T>{});
}

// Samples the rows [first, last) and returns the number of them that have no sample.
template <class T> int64_t sample_rows(const Sample<T>& a, int64_t first, int64_t last, T* room, int64_t tile) {
  int64_t failures = 0;
  const T inv_tau = T(1 / a.tau);
  const Threefry random(a.seed ? *a.seed : 0);
  const bool reads_x = a.relaxation > kPerturbed;
  for (int64_t r = first; r < last; r += tile) {
    const int64_t end = std::min(last, r + tile), n = (end - r) * a.K, offset = r * a.K;
    T* s = nullptr;
    if (a.seed) {
      s = words(room, offset, offset + n, random);
      const Across<T> flat{n};
      flat.each([&](auto at) { flat.put(s, at, flat.get(a.x + offset, at, T(0)) + gumbel(flat.get(s, at, T(0)))); });
    }
    if (a.z) std::memset(a.z + offset, 0, n * sizeof(T));
    const T* const in[2] = {s, reads_x ? a.x + offset : nullptr};
    over_rows(a.K, r, end, in, a.y ? a.y + offset : nullptr, [&](auto l, Rows rows, auto& row, auto* y) {
      I<T> index = {}, bad = {};
      V<T> top = {}, sum = {};
      if (a.seed) {
        top = highest<T>(l, row[0], index);
      }
      if (a.relaxation == kNone) bad = unusable_rows<T>(l, row[0], top);
      if (a.relaxation == kPerturbed)
        sum = softmax_row<T>(l, top, inv_tau, y, [&](auto at) { return l.get(row[0], at, -kInf<T>); });
      else if (a.relaxation == kPlain || a.relaxation == kMarked)
        sum = softmax_row<T>(l, highest<T>(l, row[1]), inv_tau, y, [&](auto at) { return l.get(row[1], at, -kInf<T>); });
      else if (a.relaxation == kGapped) {
        const V<T> most = highest<T>(l, row[1]), behind = most - T(a.gap);
        sum = softmax_row<T>(l, most, inv_tau, y, [&](auto at) {
          return l.index(at) == index ? most : vmin(l.get(row[1], at, -kInf<T>), behind);  // NaN stays
        });
      }
      if (a.relaxation == kMarked)
        l.each([&](auto at) { l.put(y, at, l.index(at) == index ? -l.get(y, at, T(0)) : l.get(y, at, T(0))); });
      bad |= sum != sum;  // where there is y, NaN in it tells
      each_row(rows, [&](int64_t lane, int64_t row) {
        if (a.z && bad[lane]) std::fill_n(a.z + row * a.K, a.K, std::numeric_limits<T>::quiet_NaN());
        else if (a.z) a.z[row * a.K + index[lane]] = T(1);
        if (a.index) a.index[row] = index[lane];
        failures += bad[lane] != 0;
      });
    });
  }
  return failures;
}

template <class T> int64_t sample(const Sample<T>& a, const Pool& pool) {
  constexpr int64_t kElements = 4096;  // whose noise is drawn at once: they stay in the first cache
  const double cost = sizeof(T) == 8 ? 15 : a.K > Bundles<T>::kLongest ? 0.65 : 1.1;
  return split(pool, a.rows, double(a.K) * cost, [&](int64_t first, int64_t last) {
    const int64_t tile = std::max<int64_t>(1, std::min(last - first, kElements / a.K));
    const std::unique_ptr<T[]> room(a.seed ? new T[tile * a.K + 2 * kBlock<T> + Bundles<T>::kRoom] : nullptr);
    return sample_rows(a, first, last, room.get(), tile);
  });
}

template <class T>
void softmax_backward(const T* dy, const T* y, int64_t rows, int64_t K, double tau, T* dx, const Pool& pool) {
  const T inv_tau = T(1 / tau);
  split(pool, rows, double(K) * 0.15, [&](int64_t first, int64_t last) {
    const T* const in[2] = {dy + first * K, y + first * K};
    over_rows(K, first, last, in, dx + first * K, [&](auto l, Rows, auto& row, auto* out) {
      const V<T> dot = l.dot(row[0], row[1]);
      l.each([&](auto at) { l.put(out, at, (l.get(row[0], at, T(0)) - dot) * (l.get(row[1], at, T(0)) * inv_tau)); });
    });
    return int64_t(0);
  });
}

// `y` is softmax(theta / tau) with the sign bit set where D is 1. pi = softmax(theta) is recovered from it as y^tau,
// normalized; for tau >= 1, the temperatures that ReinMax is for, pi vanishes before y does. y's rounding counts tau times.
template <class T>
void reinmax_backward(const T* dz, const T* y, int64_t rows, int64_t K, double tau, T* dx, const Pool& pool) {
  split(pool, rows, double(K) * (tau == 1 ? 0.3 : 1), [&](int64_t first, int64_t last) {
    const T* const in[2] = {dz + first * K, y + first * K};
    over_rows(K, first, last, in, dx + first * K, [&](auto l, Rows, auto& row, auto* out) {
      V<T> most = {};
      l.each([&](auto at) { most = vmax(most, absolute<T>(l.get(row[1], at, T(0)))); });
      most = l.max(most);
      const auto pi = [&](V<T> q) { return tau == 1 ? q : exp2_nonpositive(log2_positive(q / most) * T(tau)); };
      V<T> sum = {}, dot = {}, dot_D = {};
      l.each([&](auto at) {
        const V<T> g = l.get(row[0], at, T(0)), marked = l.get(row[1], at, T(0)), q = absolute<T>(marked), p = pi(q);
        sum += p;
        dot += g * p;
        dot_D += g * (is_marked<T>(marked) ? q + T(1) : q) * T(0.5);
      });
      sum = l.sum(sum), dot = l.sum(dot) / sum, dot_D = l.sum(dot_D);
      const V<T> half = T(0.5) / sum;
      l.each([&](auto at) {
        const V<T> g = l.get(row[0], at, T(0)), marked = l.get(row[1], at, T(0)), q = absolute<T>(marked), p = pi(q);
        l.put(out, at, (g - dot_D) * (is_marked<T>(marked) ? q + T(1) : q) - (g - dot) * p * half);
      });
    });
    return int64_t(0);
  });
}

// log sum exp of the row, from its largest element on: NaN where no probabilities exist.
template <class T, class L, class In> inline V<T> log_sum(L l, const In* x, V<T> top) {
  V<T> sum = {};
  l.each([&](auto at) { sum += exp2_nonpositive((l.get(x, at, -kInf<T>) - top) * kLog2e<T>); });
  return log2_positive(l.sum(sum)) * kLn2<T>;
}

// The noise that z was drawn with is stream 0 of the seed, drawn again here to find z; draw i of the noise that fits z is
// stream i. Nothing depends on n but time.
template <class T>
void gumbel_rao(const T* dz, const T* x, const uint64_t* seed, int64_t rows, int64_t K, int64_t draws, double tau, T* dx,
                const Pool& pool) {
  constexpr int64_t kElements = 2048;
  const T scale = T(kLog2e<double> / tau), weight = T(1 / (tau * double(draws)));
  split(pool, rows, double(K * draws) * (sizeof(T) == 4 ? 1.5 : 40), [&](int64_t first, int64_t last) {
    const int64_t tile = std::max<int64_t>(1, std::min(last - first, kElements / K));
    const std::unique_ptr<T[]> room(new T[tile * K + 2 * kBlock<T> + Bundles<T>::kRoom]);
    const std::unique_ptr<T[]> log_pi(new T[tile * K]);
    const std::unique_ptr<int64_t[]> drawn(new int64_t[tile]);
    for (int64_t r = first; r < last; r += tile) {
      const int64_t end = std::min(last, r + tile), n = (end - r) * K, offset = r * K;
      const Across<T> flat{n};
      for (int64_t i = 0; i <= draws; ++i) {
        T* g = words(room.get(), offset, offset + n, Threefry(*seed, uint32_t(i)));
        flat.each([&](auto at) { flat.put(g, at, gumbel(flat.get(g, at, T(0)))); });
        if (i == 0) {
          flat.each([&](auto at) { flat.put(g, at, flat.get(g, at, T(0)) + flat.get(x + offset, at, T(0))); });
          const T* const in[2] = {g, x + offset};
          over_rows(K, r, end, in, log_pi.get(), [&](auto l, Rows at_rows, auto& row, auto* out) {
            I<T> index;
            highest<T>(l, row[0], index);
            each_row(at_rows, [&](int64_t lane, int64_t to) { drawn[to - r] = index[lane]; });
            const V<T> top = highest<T>(l, row[1]), log_Z = log_sum<T>(l, row[1], top);
            l.each([&](auto at) { l.put(out, at, l.get(row[1], at, -kInf<T>) - top - log_Z); });
          });
          std::memset(dx + offset, 0, n * sizeof(T));
          continue;
        }
        const T* const in[4] = {g, log_pi.get(), dz + offset, dx + offset};
        over_rows(K, r, end, in, dx + offset, [&](auto l, Rows at_rows, auto& row, auto* out) {
          I<T> index = {};
          each_row(at_rows, [&](int64_t lane, int64_t from) { index[lane] = drawn[from - r]; });
          index = l.spread(index);
          V<T> top = {};  // s of the drawn class is its fresh noise; another s is cut off at it
          l.each([&](auto at) { top += l.index(at) == index ? l.get(row[0], at, T(0)) : V<T>{}; });
          top = l.sum(top);
          const auto y = [&](auto at) {
            const V<T> ahead = l.get(row[1], at, -kInf<T>) + l.get(row[0], at, T(0)) - top;
            const V<T> behind = vmin(ahead, V<T>{}) - log2_positive(T(1) + exp2_nonpositive(-absolute<T>(ahead) *
                                                                                            kLog2e<T>)) * kLn2<T>;
            return l.index(at) == index ? all<V<T>>(T(1)) : exp2_nonpositive(behind * scale);
          };
          V<T> sum = {}, dot = {};
          l.each([&](auto at) {
            const V<T> w = y(at);
            sum += w;
            dot += w * l.get(row[2], at, T(0));
          });
          sum = l.sum(sum), dot = l.sum(dot) / sum;
          const V<T> share = weight / sum;
          l.each([&](auto at) {
            l.put(out, at, l.get(row[3], at, T(0)) + (l.get(row[2], at, T(0)) - dot) * y(at) * share);
          });
        });
      }
    }
    return int64_t(0);
  });
}

template <class T> void entropy(const T* x, int64_t rows, int64_t K, T* H, const Pool& pool) {
  split(pool, rows, double(K) * 0.4, [&](int64_t first, int64_t last) {
    const T* const in[1] = {x + first * K};
    over_rows<T>(K, first, last, in, nullptr, [&](auto l, Rows at_rows, auto& row, auto*) {
      const V<T> top = highest<T>(l, row[0]);
      V<T> sum = {}, dot = {};
      l.each([&](auto at) {
        const V<T> behind = l.get(row[0], at, -kInf<T>) - top, w = exp2_nonpositive(behind * kLog2e<T>);
        sum += w;
        dot += w == V<T>{} ? V<T>{} : w * behind;
      });
      sum = l.sum(sum), dot = l.sum(dot);
      const V<T> h = log2_positive(sum) * kLn2<T> - dot / sum;
      each_row(at_rows, [&](int64_t lane, int64_t r) { H[r] = h[lane]; });
    });
    return int64_t(0);
  });
}

template <class T>
void entropy_backward(const T* dH, const T* x, const T* H, int64_t rows, int64_t K, T* dx, const Pool& pool) {
  split(pool, rows, double(K) * 0.6, [&](int64_t first, int64_t last) {
    const T* const in[1] = {x + first * K};
    over_rows(K, first, last, in, dx + first * K, [&](auto l, Rows at_rows, auto& row, auto* out) {
      V<T> g = {}, h = {};
      each_row(at_rows, [&](int64_t lane, int64_t r) { g[lane] = dH[r], h[lane] = H[r]; });
      g = l.spread(g), h = l.spread(h);
      const V<T> top = highest<T>(l, row[0]), log_Z = log_sum<T>(l, row[0], top);
      l.each([&](auto at) {
        const V<T> log_p = l.get(row[0], at, -kInf<T>) - top - log_Z, p = exp2_nonpositive(log_p * kLog2e<T>);
        l.put(out, at, p == V<T>{} ? V<T>{} : -g * p * (log_p + h));
      });
    });
    return int64_t(0);
  });
}

// over_rows for arrays of which `many` has `times` times the rows of `few`: its row r belongs to row r mod rows. `cost` is
// that of an element; f gets the rows of `many`, and its arrays in this order. `out` is as large as `many`, or null.
template <class T, class F>
void over_repeated_rows(const T* many, const T* few, int64_t rows, int64_t times, int64_t K, double cost, T* out,
                        const Pool& pool, F f) {
  split(pool, rows, double(K) * cost * double(times), [&](int64_t first, int64_t last) {
    for (int64_t i = 0; i < times; ++i) {
      const int64_t start = i * rows + first;
      const T* const in[2] = {many + start * K, few + first * K};
      over_rows(K, start, start + last - first, in, out ? out + start * K : nullptr, f);
    }
    return int64_t(0);
  });
}

template <class T>
void log_prob(const T* x, const T* z, int64_t rows, int64_t times, int64_t K, T* value, const Pool& pool) {
  T* const none = nullptr;
  over_repeated_rows(z, x, rows, times, K, 0.4, none, pool, [&](auto l, Rows at_rows, auto& row, auto*) {
    const V<T> top = highest<T>(l, row[1]), log_Z = log_sum<T>(l, row[1], top);
    V<T> sum = {};
    l.each([&](auto at) {
      const V<T> weight = l.get(row[0], at, T(0));
      sum += weight == V<T>{} ? V<T>{} : weight * (l.get(row[1], at, -kInf<T>) - top - log_Z);
    });
    sum = l.sum(sum) + log_Z * T(0);  // NaN stays, where z is zero too
    each_row(at_rows, [&](int64_t lane, int64_t r) { value[r] = sum[lane]; });
  });
}

template <class T>
void bernoulli(const T* a, const T* x, int64_t rows, int64_t times, int64_t D, T* value, const Pool& pool) {
  T* const none = nullptr;
  over_repeated_rows(a, x, rows, times, D, 0.5, none, pool, [&](auto l, Rows at_rows, auto& row, auto*) {
    V<T> sum = {};
    l.each([&](auto at) {  // x a - max(a, 0) - log(1 + exp -|a|); lanes beyond the row are a = -inf, x = 0: nothing
      const V<T> v = l.get(row[0], at, -kInf<T>), e = exp2_nonpositive(-absolute<T>(v) * kLog2e<T>);
      const V<T> t = l.get(row[1], at, T(0));
      const V<T> linear = t == V<T>{} ? V<T>{} : t * v;
      sum += linear - vmax(v, V<T>{}) + log1p_half(-e / (T(1) + e));
    });
    sum = l.sum(sum);
    each_row(at_rows, [&](int64_t lane, int64_t r) { value[r] = sum[lane]; });
  });
}

template <class T>
void bernoulli_backward(const T* dl, const T* a, const T* x, int64_t rows, int64_t times, int64_t D, T* da,
                        const Pool& pool) {
  over_repeated_rows(a, x, rows, times, D, 0.4, da, pool, [&](auto l, Rows at_rows, auto& row, auto* out) {
    V<T> g = {};
    each_row(at_rows, [&](int64_t lane, int64_t r) { g[lane] = dl[r]; });
    g = l.spread(g);
    l.each([&](auto at) {
      const V<T> v = l.get(row[0], at, T(0)), e = exp2_nonpositive(-absolute<T>(v) * kLog2e<T>);
      const V<T> sigma = (v < V<T>{} ? e : all<V<T>>(T(1))) / (T(1) + e);
      l.put(out, at, g * (l.get(row[1], at, T(0)) - sigma));
    });
  });
}

template <class T> void fill_noise(T* g, int64_t n, uint64_t seed, const Pool& pool) {
  constexpr int64_t kElements = 2048;
  const int64_t blocks = (n + kElements - 1) / kElements;
  const Threefry random(seed);
  split(pool, blocks, double(kElements) * (sizeof(T) == 4 ? 0.5 : 15), [&](int64_t first, int64_t last) {
    alignas(kBytes) T room[kElements + 2 * kBlock<T>];
    for (int64_t b = first; b < last; ++b) {
      const int64_t from = b * kElements, to = std::min(n, from + kElements);
      const T* w = words(room, from, to, random);
      const Across<T> flat{to - from};
      flat.each([&](auto at) { flat.put(g + from, at, gumbel(flat.get(w, at, T(0)))); });
    }
    return int64_t(0);
  });
}

}  // namespace
}  // namespace taugrad

using taugrad::Parallel;

#define TAUGRAD_KERNELS(T, name)                                                                                        \
  int64_t taugrad_sample_##name(const T* x, int64_t rows, int64_t K, const uint64_t* seed, int64_t relaxation,          \
                                double tau, double gap, T* y, T* z, int64_t* index, Parallel parallel,                  \
                                int64_t threads) {                                                                      \
    return taugrad::sample<T>({x, rows, K, seed, relaxation, tau, gap, y, z, index}, {parallel, threads});              \
  }                                                                                                                     \
  void taugrad_softmax_backward_##name(const T* dy, const T* y, int64_t rows, int64_t K, double tau, T* dx,             \
                                       Parallel parallel, int64_t threads) {                                            \
    taugrad::softmax_backward<T>(dy, y, rows, K, tau, dx, {parallel, threads});                                         \
  }                                                                                                                     \
  void taugrad_reinmax_backward_##name(const T* dz, const T* y, int64_t rows, int64_t K, double tau, T* dx,             \
                                       Parallel parallel, int64_t threads) {                                            \
    taugrad::reinmax_backward<T>(dz, y, rows, K, tau, dx, {parallel, threads});                                         \
  }                                                                                                                     \
  void taugrad_gumbel_rao_##name(const T* dz, const T* x, const uint64_t* seed, int64_t rows, int64_t K, int64_t draws, \
                                 double tau, T* dx, Parallel parallel, int64_t threads) {                               \
    taugrad::gumbel_rao<T>(dz, x, seed, rows, K, draws, tau, dx, {parallel, threads});                                  \
  }                                                                                                                     \
  void taugrad_entropy_##name(const T* x, int64_t rows, int64_t K, T* H, Parallel parallel, int64_t threads) {          \
    taugrad::entropy<T>(x, rows, K, H, {parallel, threads});                                                            \
  }                                                                                                                     \
  void taugrad_entropy_backward_##name(const T* dH, const T* x, const T* H, int64_t rows, int64_t K, T* dx,             \
                                       Parallel parallel, int64_t threads) {                                            \
    taugrad::entropy_backward<T>(dH, x, H, rows, K, dx, {parallel, threads});                                           \
  }                                                                                                                     \
  void taugrad_log_prob_##name(const T* x, const T* z, int64_t rows, int64_t times, int64_t K, T* value,                \
                               Parallel parallel, int64_t threads) {                                                    \
    taugrad::log_prob<T>(x, z, rows, times, K, value, {parallel, threads});                                             \
  }                                                                                                                     \
  void taugrad_bernoulli_##name(const T* a, const T* x, int64_t rows, int64_t times, int64_t D, T* value,               \
                                Parallel parallel, int64_t threads) {                                                   \
    taugrad::bernoulli<T>(a, x, rows, times, D, value, {parallel, threads});                                            \
  }                                                                                                                     \
  void taugrad_bernoulli_backward_##name(const T* dl, const T* a, const T* x, int64_t rows, int64_t times, int64_t D,   \
                                         T* da, Parallel parallel, int64_t threads) {                                   \
    taugrad::bernoulli_backward<T>(dl, a, x, rows, times, D, da, {parallel, threads});                                  \
  }                                                                                                                     \
  void taugrad_noise_##name(T* g, int64_t n, const uint64_t* seed, Parallel parallel, int64_t threads) {                \
    taugrad::fill_noise<T>(g, n, *seed, {parallel, threads});                                                           \
  }                                                                                                                     \
  void taugrad_gates_##name(const T* x, const T* c, const int64_t* a, const int64_t* b, int64_t inputs, int64_t gates,  \
                            int64_t batch, T* y, Parallel parallel, int64_t threads) {                                  \
    taugrad::gates<T>({x, c, a, b, inputs, gates, batch}, y, {parallel, threads});                                       \
  }                                                                                                                     \
  void taugrad_gates_backward_##name(const T* x, const T* c, const int64_t* a, const int64_t* b, int64_t inputs,        \
                                     int64_t gates, int64_t batch, const T* dy, T* dc, T* dx, Parallel parallel,        \
                                     int64_t threads) {                                                                 \
    taugrad::gates_backward<T>({x, c, a, b, inputs, gates, batch}, dy, dc, dx, {parallel, threads});                     \
  }

extern "C" {
TAUGRAD_KERNELS(float, float32)
TAUGRAD_KERNELS(double, float64)
}
