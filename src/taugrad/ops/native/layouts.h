// The two ways in which rows of K classes lie in vectors. A kernel is written once, over either:
//
//     Across   one row at a time, its classes side by side in the lanes: for long rows
//     Down     W rows at a time, one in each lane, after a transposition: for rows shorter than two vectors
//
// `each(f)` calls f for every vector of the row(s), `get` and `put` read and write one; `sum`, `max` and `first` reduce
// over the classes and give the result in every lane it belongs to; `spread` does so with one number a row.
#pragma once

#include "vectors.h"

namespace taugrad {

struct Full {};  // a whole vector, where an int says how many lanes of it

template <class T> struct At {
  int64_t k;
  T lanes;
};

template <class T> inline V<T> get_some(const T* p, int n, T fill) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4)
    return (V<T>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16((1u << n) - 1), p);
  else
    return (V<T>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), __mmask8((1u << n) - 1), p);
#else
  V<T> v = all<V<T>>(fill);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
template <class T> inline void put_some(T* p, V<T> v, int n) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

template <class T> struct Across {
  static constexpr int W = Simd<T>::W;
  int64_t K;

  template <class F> inline void each(F f) const {
    int64_t k = 0;
    for (; k + W <= K; k += W) f(At<Full>{k, {}});
    if (k < K) f(At<int>{k, int(K - k)});
  }
  static inline V<T> get(const T* row, At<Full> at, T) { return load<V<T>>(row + at.k); }
  static inline V<T> get(const T* row, At<int> at, T fill) { return get_some(row + at.k, at.lanes, fill); }
  static inline void put(T* row, At<Full> at, V<T> v) { store(row + at.k, v); }
  static inline void put(T* row, At<int> at, V<T> v) { put_some(row + at.k, v, at.lanes); }
  template <class A> static inline I<T> index(A at) {
    I<T> lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane + typename Simd<T>::Int(at.k);
  }
  // <a, b>, in four chains of sums: one would wait for itself.
  inline V<T> dot(const T* a, const T* b) const {
    V<T> sums[4] = {};
    int64_t k = 0;
    for (; k + 4 * W <= K; k += 4 * W)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[i] += load<V<T>>(a + k + i * W) * load<V<T>>(b + k + i * W);
    for (; k + W <= K; k += W) sums[0] += load<V<T>>(a + k) * load<V<T>>(b + k);
    if (k < K) sums[1] += get_some(a + k, int(K - k), T(0)) * get_some(b + k, int(K - k), T(0));
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  static inline V<T> sum(V<T> v) { return all<V<T>>(hsum<T>(v)); }
  static inline V<T> max(V<T> v) { return all<V<T>>(hmax<T>(v)); }
  static inline I<T> first(I<T> v) { return all<I<T>>(hmin<T>(v)); }
  template <class X> static inline X spread(X v) { return all<X>(v[0]); }
};

template <class T> struct Down {
  int64_t K;

  template <class F> inline void each(F f) const {
    for (int64_t k = 0; k < K; ++k) f(k);
  }
  static inline V<T> get(const V<T>* rows, int64_t k, T) { return rows[k]; }
  static inline void put(V<T>* rows, int64_t k, V<T> v) { rows[k] = v; }
  static inline I<T> index(int64_t k) { return all<I<T>>(typename Simd<T>::Int(k)); }
  inline V<T> dot(const V<T>* a, const V<T>* b) const {
    V<T> sum = {};
    for (int64_t k = 0; k < K; ++k) sum += a[k] * b[k];
    return sum;
  }
  static inline V<T> sum(V<T> v) { return v; }
  static inline V<T> max(V<T> v) { return v; }
  static inline I<T> first(I<T> v) { return v; }
  template <class X> static inline X spread(X v) { return v; }
};

// Rows for Down: W bundles of as many rows as fit a vector (one, when a row takes two), so that no lane stays empty.
template <class T> struct Bundles {
  static constexpr int W = Simd<T>::W;
  static constexpr int64_t kLongest = 2 * W;  // the most classes of a row that goes Down
  static constexpr int64_t kRoom = W * kLongest + kLongest;

  int64_t K, rows, width;  // rows and elements of a bundle

  explicit Bundles(int64_t K) : K(K), rows(K < W ? W / K : 1), width(rows * K) {}
  int64_t group() const { return W * rows; }

  // A group from `p` on, where the array goes on for `left` elements; rows beyond are zero. v has 2 W vectors.
  inline void get(const T* p, int64_t left, V<T>* v) const {
    alignas(kBytes) T room[kRoom];
    if (left < kRoom) {  // a vector might reach over the end of the array
      std::memcpy(room, p, left * sizeof(T));
      std::memset(room + left, 0, (kRoom - left) * sizeof(T));
      p = room;
    }
    for (int part = 0; part * W < width; ++part) {
      for (int j = 0; j < W; ++j) v[part * W + j] = load<V<T>>(p + j * width + part * W);
      transpose<T>(v + part * W);
    }
  }
  // The first `n` elements of a group to `p`; v is lost.
  inline void put(V<T>* v, T* p, int64_t n) const {
    alignas(kBytes) T room[kRoom];
    for (int part = 0; part * W < width; ++part) transpose<T>(v + part * W);
    for (int j = 0; j < W; ++j) {  // in this order: what a vector writes behind its bundle, the next one overwrites
      store(room + j * width, v[j]);
      if (width > W) store(room + j * width + W, v[W + j]);
    }
    std::memcpy(p, room, n * sizeof(T));
  }
};

}  // namespace taugrad
