// What this instruction set can do at most: independent accumulators in registers, nothing else. The ruler of the benches.
#pragma once

#include <chrono>

#include "parallel.h"

namespace LS_NS {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// `rounds` x CHAINS independent multiply-accumulates, starting from fresh zeros (as a tile does); returns a lane of each so
// that none is dropped. Both operands are 0x3f803f80, two bf16 ones.
constexpr int CHAINS = MR * NV_MAX > 16 ? 24 : 12;

template <bool BF16>
LS_NOINLINE float spin(int rounds) {
  vf acc[CHAINS];
#pragma GCC unroll 24
  for (int i = 0; i < CHAINS; i++) {
    acc[i] = vf{};
    keep_in_register(acc[i]);
  }
  vf x = set1(1.00196838f), y = set1(1.00196838f);
  keep_in_register(x);
  keep_in_register(y);
  for (int n = 0; n < rounds; n++) {
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) {
#if defined(LS_BF16_DOT)
      if constexpr (BF16) {
        add_dot_of_pairs(acc[i], (vu)x, (vu)y);
        continue;
      }
#endif
      acc[i] = fma(x, y, acc[i]);
    }
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) keep_in_register(acc[i]);
  }
  float sum = 0;
#pragma GCC unroll 24
  for (int i = 0; i < CHAINS; i++) sum += acc[i][0];
  return sum;
}

// FLOP/s (FMA = 2) of `threads` threads over `seconds` seconds of the multiply-accumulate the kernels use.
inline double peak_flops(int is_bf16, int threads, double seconds) {
#if defined(LS_BF16_DOT)
  const double per_round = double(CHAINS) * VL * (is_bf16 ? 4 : 2);
#else
  const double per_round = double(CHAINS) * VL * 2;
#endif
  constexpr int ROUNDS = 4096;
  const double started = seconds_now();
  long batches = 0;
  float kept = 0;
  parallel_for(threads, threads, [&](long) -> int {
    long mine = 0;
    float sum = 0;
    for (; seconds_now() - started < seconds; mine++) sum += is_bf16 ? spin<true>(ROUNDS) : spin<false>(ROUNDS);
    __atomic_fetch_add(&batches, mine, __ATOMIC_RELAXED);
    __atomic_store(&kept, &sum, __ATOMIC_RELAXED);
    return 0;
  });
  const double elapsed = seconds_now() - started;
  return kept == -1.0f ? 0.0 : double(batches) * ROUNDS * per_round / elapsed;
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
