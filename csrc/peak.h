// What this instruction set can do at most: independent accumulators in registers, nothing else. The ruler of the benches.
#pragma once

#include <chrono>

#include "parallel.h"

namespace LS_NS {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// FLOP/s (FMA = 2) of `threads` threads over `seconds` seconds of the multiply-accumulate the kernels use.
inline double peak_flops([[maybe_unused]] int is_bf16, int threads, double seconds) {
  constexpr int CHAINS = 10, ROUND = 20000;
  const double started = seconds_now();
  double flops = 0, lane = 0;
  parallel_for(threads, threads, [&](long) -> int {
    vf acc[CHAINS];
    vf x = set1(1e-3f), y = set1(1e-3f);
    for (int i = 0; i < CHAINS; i++) acc[i] = set1(float(i));
    double done = 0;
    while (seconds_now() - started < seconds) {
      for (int n = 0; n < ROUND; n++) {
#if defined(__AVX512BF16__)
        if (is_bf16) {
#pragma GCC unroll 10
          for (int i = 0; i < CHAINS; i++) asm volatile("vdpbf16ps %2, %1, %0" : "+v"(acc[i]) : "v"(x), "v"(y));
          continue;
        }
#endif
#pragma GCC unroll 10
        for (int i = 0; i < CHAINS; i++) {
          acc[i] = fma(x, y, acc[i]);
          asm volatile("" : "+x"(acc[i]));
        }
      }
#if defined(__AVX512BF16__)
      done += double(ROUND) * CHAINS * VL * (is_bf16 ? 4 : 2);
#else
      done += double(ROUND) * CHAINS * VL * 2;
#endif
    }
    float s = 0;
    for (int i = 0; i < CHAINS; i++) s += hsum(acc[i]);
#pragma omp critical
    {
      flops += done;
      lane += s;
    }
    return 0;
  });
  const double elapsed = seconds_now() - started;
  return lane == -1.0 ? 0.0 : flops / elapsed;
}

// Sum of all 32-bit lanes of `bytes` bytes: a plain streaming read, 1 MiB per claim. Returns seconds.
inline double stream_read(const void* memory, size_t bytes, int threads) {
  constexpr size_t CHUNK = 1 << 20;
  const double started = seconds_now();
  uint32_t total = 0;
  parallel_for(long(bytes / CHUNK), threads, [&](long item) -> int {
    const uint32_t* p = (const uint32_t*)((const char*)memory + size_t(item) * CHUNK);
    vu sum[8] = {};
    for (size_t i = 0; i < CHUNK / 4; i += 8 * VL)
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) sum[j] ^= load_lanes(p + i + j * VL);
    for (int j = 1; j < 8; j++) sum[0] ^= sum[j];
    __atomic_fetch_xor(&total, sum[0][0] ^ sum[0][VL - 1], __ATOMIC_RELAXED);
    return 0;
  });
  const double elapsed = seconds_now() - started;
  return total == 0x9e3779b9u ? elapsed + 1e-12 : elapsed;  // keeps the sum alive
}

}  // namespace LS_NS
