// C[m, n] (+)= sum_k A[m, k] * B[n, k]: the one inner loop under every kernel.
//
// A is row-major; B is packed in strips (ops/layout.py): one step reads the strip's W lanes of 32 bits, each an fp32 value or
// a pair of bf16 values along k. Each C element is summed along k in order, whatever tile it is computed in: results do not
// depend on how rows are grouped, and that is what makes prefill, chunked prefill and decode agree to the bit.
#pragma once

#include "simd.h"

namespace LS_NS {

// How A is fed: with native bf16 dot products as stored pairs, otherwise widened to fp32 once, before the loop.
template <class T>
struct Operand {
  using A = float;
  static constexpr int PER_LANE = 1;
};
#if defined(LS_BF16_DOT)
template <>
struct Operand<bf16> {
  using A = bf16;
  static constexpr int PER_LANE = 2;
};
#else
template <>
struct Operand<bf16> {
  using A = float;
  static constexpr int PER_LANE = 2;
};
#endif
template <class T>
using A_of = typename Operand<T>::A;
template <class T>
constexpr int PER_LANE = Operand<T>::PER_LANE;

enum class Out {
  Store,       // C = sum
  Accumulate,  // C = C + sum, the sum starting from C
  MaxFirst,    // M[m, lane] = max over the tile's vectors
  Max,         // M[m, lane] = max of that and M
};

// Main memory is 100 ns away, and the hardware's own prefetchers neither follow a selection nor cross pages: a tile fetches
// PREFETCH lines per step from `ahead` on.
template <class T, int ROWS, int NV, Out OUT, int PREFETCH>
LS_NOINLINE void tile(const A_of<T>* a, size_t lda, const uint32_t* b, size_t ldb, int steps, float* c, size_t ldc,
                      [[maybe_unused]] const char* ahead) {
  vf acc[ROWS][NV];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) acc[r][n] = OUT == Out::Accumulate ? load(c + r * ldc + n * VL) : vf{};

  // Lines are asked for in bursts of 8: a single core then reads 5 % more than with 4 at a time.
  constexpr int BURST = PREFETCH == 4 ? 2 : 1;
  for (int s0 = 0; s0 < steps; s0 += BURST) {
    if constexpr (PREFETCH > 0) {
      const char* line = ahead + size_t(s0) * PREFETCH * 64;
#pragma GCC unroll 8
      for (int i = 0; i < BURST * PREFETCH; i++) {
        if constexpr (PREFETCH == 4)
          __builtin_prefetch(line + i * 64, 0, 0);  // used once, soon
        else
          __builtin_prefetch(line + i * 64, 0, 2);
      }
    }
#pragma GCC unroll 2
    for (int s = s0; s < s0 + BURST; s++, b += ldb) {
      if constexpr (PER_LANE<T> == 1) {
        vf bv[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) bv[n] = load((const float*)b + n * VL);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const vf av = set1(((const float*)a)[r * lda + s]);
#pragma GCC unroll 8
          for (int n = 0; n < NV; n++) acc[r][n] = fma(av, bv[n], acc[r][n]);
        }
      } else {
#if defined(LS_BF16_DOT)
        vu bv[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) bv[n] = load_lanes(b + n * VL);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          uint32_t lane;
          memcpy(&lane, a + r * lda + PER_LANE<T> * size_t(s), 4);
          const vu av = set1_lane(lane);
#pragma GCC unroll 8
          for (int n = 0; n < NV; n++) {
            if constexpr (PER_LANE<T> == 4)
              asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][n]) : "v"(bv[n]), "v"(av));  // int32, in the same registers
            else
              add_dot_of_pairs(acc[r][n], av, bv[n]);
          }
        }
#else
        vf even[NV], odd[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) {
          const vu lanes = load_lanes(b + n * VL);
          even[n] = (vf)(lanes << 16);
          odd[n] = (vf)(lanes & 0xffff0000u);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const float* row = (const float*)a + r * lda + 2 * size_t(s);
          const vf a0 = set1(row[0]), a1 = set1(row[1]);
#pragma GCC unroll 8
          for (int n = 0; n < NV; n++) acc[r][n] = fma(a1, odd[n], fma(a0, even[n], acc[r][n]));
        }
#endif
      }
    }
  }

  if constexpr (PER_LANE<T> == 4) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int n = 0; n < NV; n++) acc[r][n] = __builtin_convertvector((vi)acc[r][n], vf);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    if (OUT == Out::Store || OUT == Out::Accumulate) {
#pragma GCC unroll 8
      for (int n = 0; n < NV; n++) store(c + r * ldc + n * VL, acc[r][n]);
    } else {
      vf m = acc[r][0];
#pragma GCC unroll 8
      for (int n = 1; n < NV; n++) m = vmax(m, acc[r][n]);
      if (OUT == Out::Max) m = vmax(m, load(c + r * ldc));
      store(c + r * ldc, m);
    }
  }
}

// Three ways to fetch ahead. LINES per step; take(bytes) says from where, or nowhere.
struct NoPrefetch {
  static constexpr int LINES = 0;
};

// Attention: the pages of the next block, handed out to the tiles of this one as they run (1.3 lines per step would do).
class NextBlock {
 public:
  static constexpr int LINES = 2;
  NextBlock() = default;
  NextBlock(const void* k, const void* v, size_t bytes)
      : at_((const char*)k), end_(at_ + bytes), then_((const char*)v), then_end_(then_ + bytes) {}

  LS_INLINE const char* take(size_t bytes) {
    if (at_ >= end_) {
      at_ = then_;
      end_ = then_end_;
      then_ = then_end_ = nullptr;
      if (at_ >= end_) return nullptr;
    }
    const char* p = at_;
    at_ += bytes;
    return p;
  }

 private:
  const char *at_ = nullptr, *end_ = nullptr, *then_ = nullptr, *then_end_ = nullptr;
};

// A scan or a matrix-vector product: every line of B is used once, so fetch what the stream reads a strip or so later.
struct Stream {
  static constexpr int LINES = 4;
  const char* ahead;
  LS_INLINE const char* take(size_t) const { return ahead; }
};

// Rows in tiles of nearly equal height: 8 rows are 4 + 4, since a tile of 2 would wait for its own results.
template <class T, int NV, Out OUT, class P>
LS_INLINE void rows_by_tile(const A_of<T>* a, size_t lda, int rows, const uint32_t* b, size_t ldb, int steps, float* c,
                            size_t ldc, P& prefetch) {
  int tiles = (rows + MR - 1) / MR;
  while (rows > 0) {
    const int height = (rows + tiles - 1) / tiles;
    const char* ahead = nullptr;
    if constexpr (P::LINES > 0) ahead = prefetch.take(size_t(steps) * P::LINES * 64);
    switch (height) {
#define LS_HEIGHT(N)                                                          \
  case N:                                                                     \
    if constexpr (N <= MR) {                                                  \
      if (P::LINES > 0 && ahead)                                              \
        tile<T, N, NV, OUT, P::LINES>(a, lda, b, ldb, steps, c, ldc, ahead);  \
      else                                                                    \
        tile<T, N, NV, OUT, 0>(a, lda, b, ldb, steps, c, ldc, nullptr);       \
    }                                                                         \
    break;
      LS_HEIGHT(1) LS_HEIGHT(2) LS_HEIGHT(3) LS_HEIGHT(4) LS_HEIGHT(5) LS_HEIGHT(6)
#undef LS_HEIGHT
      default:
        break;
    }
    a += height * lda;
    c += height * ldc;
    rows -= height;
    tiles--;
  }
}

// One strip of `width` packed rows against `rows` rows of A. For Max*, c is [rows, VL] and every column folds into it.
template <class T, Out OUT, class P>
LS_INLINE void strip(const A_of<T>* a, size_t lda, int rows, const uint32_t* b, int width, int steps, float* c,
                     size_t ldc, P&& prefetch) {
  constexpr Out REST = OUT == Out::MaxFirst ? Out::Max : OUT;
  constexpr bool FOLD = OUT == Out::MaxFirst || OUT == Out::Max;
  constexpr int COLUMNS = NV_MAX * VL;
  if (width >= COLUMNS) {
    rows_by_tile<T, NV_MAX, OUT>(a, lda, rows, b, width, steps, c, ldc, prefetch);
    for (int col = COLUMNS; col < width; col += COLUMNS)
      rows_by_tile<T, NV_MAX, REST>(a, lda, rows, b + col, width, steps, FOLD ? c : c + col, ldc, prefetch);
  } else if (width == 2 * VL) {
    rows_by_tile<T, 2, OUT>(a, lda, rows, b, width, steps, c, ldc, prefetch);
  } else {
    rows_by_tile<T, 1, OUT>(a, lda, rows, b, width, steps, c, ldc, prefetch);
  }
}

LS_INLINE int strip_width(int n) { return n % 64 == 0 ? 64 : n % 32 == 0 ? 32 : 16; }

// Rows of A as the tile wants them: in place when the storage type feeds the instruction, else widened into `scratch`.
template <class T>
LS_INLINE const A_of<T>* operand_rows(const T* x, size_t ldx, int rows, int k, A_of<T>* scratch, size_t* lda) {
  if constexpr (sizeof(A_of<T>) == sizeof(T)) {
    (void)rows, (void)k, (void)scratch;
    *lda = ldx;
    return (const A_of<T>*)x;
  } else {
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < k; i += VL) store((float*)scratch + size_t(r) * k + i, load_row(x + r * ldx + i));
    *lda = k;
    return scratch;
  }
}

}  // namespace LS_NS
