// The pool of threads that a kernel is handed, and work split over it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace taugrad {

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
struct Pool {
  Parallel parallel;  // null: none
  int64_t threads;
};

// While it lives, numbers below the least normal one count as 0: they are a hundred times as slow, and a softmax at a low
// tau is full of them.
class Flushed {
 public:
#if defined(__SSE2__)
  Flushed() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }
  ~Flushed() { _mm_setcsr(before); }

 private:
  const unsigned before;
#elif defined(__aarch64__)
  Flushed() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | 1 << 24));
  }
  ~Flushed() { asm volatile("msr fpcr, %0" : : "r"(before)); }

 private:
  uint64_t before;
#else
  Flushed() {}
#endif
};

// Calls f(first, last) -> count on shares of [0, rows) and returns the sum; `cost` is that of a row in nanoseconds.
template <class F> int64_t split(const Pool& pool, int64_t rows, double cost, F f) {
  constexpr double kWorth = 8000;  // nanoseconds of work a thread that pay for waking it
  const int64_t threads = std::min({pool.threads, rows, int64_t(double(rows) * cost / kWorth)});
  if (threads < 2 || !pool.parallel) {
    const Flushed flushed;
    return f(int64_t(0), rows);
  }
  struct Job {
    F& f;
    int64_t rows, share;
    std::atomic<int64_t> next, count;
  } job{f, rows, (rows + threads - 1) / threads, {0}, {0}};
  pool.parallel(
      [](void* p) {
        Job& job = *static_cast<Job*>(p);
        const Flushed flushed;
        for (int64_t first; (first = job.next.fetch_add(job.share)) < job.rows;)
          job.count += job.f(first, std::min(job.rows, first + job.share));
      },
      &job, unsigned(threads), 0);
  return job.count;
}

}  // namespace taugrad
