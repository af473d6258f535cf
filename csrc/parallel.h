// Threads and scratch memory. Work items are claimed one by one from a counter; no item's result depends on who runs it.
#pragma once

#include <cstdlib>

#include "args.h"
#include "simd.h"

namespace LS_NS {

// Runs body(item) for items 0..count-1 on `threads` threads of the OpenMP pool that torch uses (see ops/kernels.py).
// body returns 0, or a non-zero status (out of memory) that becomes the result.
template <class Body>
int parallel_for(long count, int threads, const Body& body) {
  if (count <= 0) return 0;
  int status = 0;
  if (threads <= 1 || count == 1) {
    for (long i = 0; i < count && !status; i++) status = body(i);
    return status;
  }
  long next = 0;
#pragma omp parallel num_threads(threads)
  {
    for (;;) {
      const long i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (i >= count || __atomic_load_n(&status, __ATOMIC_RELAXED)) break;
      const int result = body(i);
      if (result) __atomic_store_n(&status, result, __ATOMIC_RELAXED);
    }
  }
  return status;
}

constexpr int OUT_OF_MEMORY = LS_OUT_OF_MEMORY;

// A block of scratch per thread that only grows; parts are carved off in order, 64-byte aligned.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(memory_); }

  bool reserve(size_t bytes) {
    used_ = 0;
    if (bytes <= capacity_) return true;
    free(memory_);
    capacity_ = (bytes + 4095) / 4096 * 4096;
    memory_ = (char*)aligned_alloc(4096, capacity_);
    if (!memory_) capacity_ = 0;
    return memory_ != nullptr;
  }
  template <class T>
  T* take(size_t count) {
    T* p = (T*)(memory_ + used_);
    used_ += padded<T>(count);
    return p;
  }
  template <class T>
  static size_t padded(size_t count) {
    return (count * sizeof(T) + 63) / 64 * 64;
  }

 private:
  char* memory_ = nullptr;
  size_t capacity_ = 0, used_ = 0;
};

static thread_local Scratch scratch;

}  // namespace LS_NS
