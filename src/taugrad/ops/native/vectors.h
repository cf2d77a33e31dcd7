// Vectors of the machine's width by the compilers' vector extension, and the mathematics of one lane.
//
// Accuracy in float: log1p_half 3.5e-7 relative, log_half 3e-7 absolute, exp2_nonpositive 2.5e-7 relative. The
// polynomials are minimax fits on the intervals named beside them. In double they are the C library's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace taugrad {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T> struct Integer;
template <> struct Integer<float> { typedef int32_t type; };
template <> struct Integer<double> { typedef int64_t type; };

template <class T> struct Simd {
  static constexpr int W = kBytes / sizeof(T);
  typedef typename Integer<T>::type Int;
  typedef T V __attribute__((vector_size(kBytes)));
  typedef Int I __attribute__((vector_size(kBytes)));
};
template <class T> using V = typename Simd<T>::V;
template <class T> using I = typename Simd<T>::I;
typedef uint32_t U __attribute__((vector_size(kBytes)));

template <class X> inline X load(const void* p) { X x; std::memcpy(&x, p, sizeof(X)); return x; }
template <class X> inline void store(void* p, X x) { std::memcpy(p, &x, sizeof(X)); }
template <class X, class S> inline X all(S s) { return X{} + s; }  // -0 + 0 is 0: no lane's sign is ever asked for

#ifdef __clang__
#define TAUGRAD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TAUGRAD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, I<T>{__VA_ARGS__})
#endif

template <class T, class X, int... i> inline X swapped(X v, int h, std::integer_sequence<int, i...>) {
  switch (h) {  // lane i of the result is lane i ^ h; a shuffle takes only constants
    case 8: return TAUGRAD_SHUFFLE(v, v, (i ^ 8) % int(sizeof...(i))...);
    case 4: return TAUGRAD_SHUFFLE(v, v, (i ^ 4) % int(sizeof...(i))...);
    case 2: return TAUGRAD_SHUFFLE(v, v, (i ^ 2) % int(sizeof...(i))...);
    default: return TAUGRAD_SHUFFLE(v, v, (i ^ 1)...);
  }
}
template <class T, class X, class F> inline auto reduce(X v, F f) {
#pragma GCC unroll 4
  for (int h = Simd<T>::W / 2; h; h /= 2) v = f(v, swapped<T>(v, h, std::make_integer_sequence<int, Simd<T>::W>{}));
  return v[0];
}
template <class X> inline X vmax(X a, X b) { return b > a ? b : a; }  // a where either is NaN
#ifdef __AVX512F__  // the same in one instruction, which the compiler does not find
inline V<float> vmax(V<float> a, V<float> b) { return (V<float>)_mm512_max_ps((__m512)b, (__m512)a); }
inline V<double> vmax(V<double> a, V<double> b) { return (V<double>)_mm512_max_pd((__m512d)b, (__m512d)a); }
#endif
template <class X> inline X vmin(X a, X b) { return b < a ? b : a; }
template <class T> inline T hmax(V<T> v) { return reduce<T>(v, [](V<T> a, V<T> b) { return vmax(a, b); }); }
template <class T> inline auto hmin(I<T> v) { return reduce<T>(v, vmin<I<T>>); }
template <class T> inline T hsum(V<T> v) { return reduce<T>(v, [](V<T> a, V<T> b) { return a + b; }); }

template <class T, int... i> inline void zip(V<T> a, V<T> b, V<T>& low, V<T>& high, std::integer_sequence<int, i...>) {
  constexpr int W = sizeof...(i);
  low = TAUGRAD_SHUFFLE(a, b, (i / 2 + i % 2 * W)...);
  high = TAUGRAD_SHUFFLE(a, b, (i / 2 + i % 2 * W + W / 2)...);
}
// W x W, in place: log2 W perfect shuffles of the whole.
template <class T> inline void transpose(V<T>* v) {
  constexpr int W = Simd<T>::W;
#pragma GCC unroll 4
  for (int n = 1; n < W; n *= 2) {
    V<T> t[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i)
      zip<T>(v[i], v[i + W / 2], t[2 * i], t[2 * i + 1], std::make_integer_sequence<int, W>{});
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = t[i];
  }
}

template <class T> constexpr T kLn2 = T(0.693147180559945309417);
template <class T> constexpr T kLog2e = T(1.44269504088896340736);
template <class T> constexpr T kInf = std::numeric_limits<T>::infinity();

// |x| = m 2^e with m in [1/2, 1); x normal.
inline void split(V<float> x, V<float>& m, V<float>& e) {
#ifdef __AVX512F__
  m = (V<float>)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_zero);
  e = (V<float>)_mm512_getexp_ps((__m512)x) + 1.0f;
#else
  const I<float> bits = (I<float>)x;
  m = (V<float>)((bits & 0x7fffff) | 0x3f000000);
  e = __builtin_convertvector(((bits >> 23) & 0xff) - 126, V<float>);
#endif
}

// log(1 + r), r in [-1/2, 0], accurate relative to its value. The even and the odd powers are two chains, half as long.
inline V<float> log1p_half(V<float> r) {
  const V<float> q = r * r;
  V<float> odd = q * -1.1849161386489868f - 0.785412609577179f, even = q * -1.0815134048461914f + 0.03802432864904404f;
  odd = odd * q - 0.2722494304180145f;
  even = even * q + 0.3318627178668976f;
  odd = odd * q - 0.5000365376472473f;
  even = even * q + 0.9999998807907104f;
  return (odd * r + even) * r;
}

// The same, accurate in absolute terms.
inline V<float> log_half(V<float> r) {
  const V<float> q = r * r;
  V<float> odd = q * 1.3419477939605713f + 0.9171360731124878f, even = q * 1.2338998317718506f - 0.059347160160541534f;
  odd = odd * q + 0.3600061237812042f;
  even = even * q - 0.4981977045536041f;
  odd = odd * q + 1.0000460147857666f;
  even = even * q + 1.9218381908103765e-07f;
  return odd * r + even;
}

// 2^x for x <= 0 or barely above; 0 for -inf and, without AVX-512, below 2^-125.
inline V<float> exp2_nonpositive(V<float> x) {
#ifdef __AVX512F__
  x = (V<float>)_mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)x);  // NaN stays, and -inf - -inf never is
  const V<float> n = (V<float>)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const I<float> tiny = x < -125.0f;
  const I<float> k = __builtin_convertvector(x - 0.5f, I<float>);  // towards zero: rounds to the nearest below zero
  const V<float> n = __builtin_convertvector(k, V<float>);
#endif
  const V<float> f = x - n;
  V<float> p = all<V<float>>(0.0013407233636826277f);
  p = p * f + 0.009671861305832863f;
  p = p * f + 0.055503085255622864f;
  p = p * f + 0.24022234976291656f;
  p = p * f + 0.6931472420692444f;
  p = p * f + 1.0f;
#ifdef __AVX512F__
  return (V<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return tiny ? V<float>{} : (V<float>)((I<float>)p + (k << 23));
#endif
}

// log2 x for x >= 0.
inline V<float> log2_positive(V<float> x) {
  V<float> m, e;
  split(x, m, e);
  const V<float> log = e + log_half(m - 1.0f) * kLog2e<float>;
  return x > V<float>{} ? log : x == V<float>{} ? all<V<float>>(-kInf<float>) : x;
}

template <class T> inline V<T> absolute(V<T> x) {
  return (V<T>)((I<T>)x & std::numeric_limits<typename Simd<T>::Int>::max());
}
template <class T> inline I<T> is_marked(V<T> x) { return (I<T>)x < 0; }  // by its sign bit

template <class F> inline V<double> each(V<double> x, F f) {
  for (int i = 0; i < Simd<double>::W; ++i) x[i] = f(x[i]);
  return x;
}
inline V<double> exp2_nonpositive(V<double> x) { return each(x, [](double v) { return std::exp2(v); }); }

inline V<double> log1p_half(V<double> x) { return each(x, [](double v) { return std::log1p(v); }); }
inline V<double> log2_positive(V<double> x) { return each(x, [](double v) { return std::log2(v); }); }

}  // namespace taugrad
