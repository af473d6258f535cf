// C[m, n] += sum_k A[k, m] * B[n, k]: tile.h's loop for an A whose rows lie along k, as gradients of keys and values want it.
//
// A is [k, lda] floats, or, where bf16 pairs feed the instruction, [k / 2, lda] lanes of two values along k. B is packed in
// strips. Each C element is summed along k in order, then added to what was there.
#pragma once

#include "tile.h"

namespace LS_NS {

template <class T, int ROWS, int NV>
LS_NOINLINE void outer_tile(const A_of<T>* a, size_t lda, const uint32_t* b, size_t ldb, int steps, float* c,
                            size_t ldc) {
  vf acc[ROWS][NV];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) acc[r][n] = vf{};

  // Not unrolled: gcc 12 would keep the accumulators in memory.
#pragma GCC unroll 1
  for (int s = 0; s < steps; s++, b += ldb) {
    if constexpr (PER_LANE<T> == 1) {
      vf bv[NV];
#pragma GCC unroll 8
      for (int n = 0; n < NV; n++) bv[n] = load((const float*)b + n * VL);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const vf av = set1(((const float*)a)[s * lda + r]);
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
        const vu av = set1_lane(((const uint32_t*)a)[s * lda + r]);
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) add_dot_of_pairs(acc[r][n], av, bv[n]);
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
        const float* at = (const float*)a + 2 * s * lda + r;
        const vf a0 = set1(at[0]), a1 = set1(at[lda]);
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) acc[r][n] = fma(a1, odd[n], fma(a0, even[n], acc[r][n]));
      }
#endif
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) store(c + r * ldc + n * VL, load(c + r * ldc + n * VL) + acc[r][n]);
}

// Elements of A between one column and the next.
template <class T>
constexpr int A_COLUMN = sizeof(A_of<T>) == 2 ? 2 : 1;

template <class T, int NV>
LS_INLINE void outer_rows(const A_of<T>* a, size_t lda, int rows, const uint32_t* b, size_t ldb, int steps, float* c,
                          size_t ldc) {
  int tiles = (rows + MR - 1) / MR;
  while (rows > 0) {
    const int height = (rows + tiles - 1) / tiles;
    switch (height) {
#define LS_HEIGHT(N)                                                                \
  case N:                                                                           \
    if constexpr (N <= MR) outer_tile<T, N, NV>(a, lda, b, ldb, steps, c, ldc);     \
    break;
      LS_HEIGHT(1) LS_HEIGHT(2) LS_HEIGHT(3) LS_HEIGHT(4) LS_HEIGHT(5) LS_HEIGHT(6)
#undef LS_HEIGHT
      default:
        break;
    }
    a += height * A_COLUMN<T>;
    c += height * ldc;
    rows -= height;
    tiles--;
  }
}

// C[0, rows)[0, columns) += A^T B; B is `columns` packed rows of `k` values, `used` of them read.
template <class T>
LS_INLINE void outer(const A_of<T>* a, size_t lda, int rows, const uint32_t* b, int columns, int k, int used, float* c,
                     size_t ldc) {
  const int width = strip_width(columns), steps = used / PER_LANE<T>;
  constexpr int STEP = NV_MAX * VL;
  for (int s0 = 0; s0 < columns; s0 += width) {
    const uint32_t* strip = b + size_t(s0) * (k / PER_LANE<T>);
    if (width >= STEP)
      for (int n = 0; n < width; n += STEP)
        outer_rows<T, NV_MAX>(a, lda, rows, strip + n, width, steps, c + s0 + n, ldc);
    else if (width == 2 * VL)
      outer_rows<T, 2>(a, lda, rows, strip, width, steps, c + s0, ldc);
    else
      outer_rows<T, 1>(a, lda, rows, strip, width, steps, c + s0, ldc);
  }
}

// C[0, rows)[0, columns) = A B^T with A by rows: tile.h's product over all strips of B that hold the first `columns`.
template <class T, class P>
LS_INLINE void product(const A_of<T>* a, size_t lda, int rows, const uint32_t* b, int n, int columns, int k, int used,
                       float* c, size_t ldc, P& prefetch) {
  const int width = strip_width(n), steps = used / PER_LANE<T>;
  for (int s0 = 0; s0 < columns; s0 += width)
    strip<T, Out::Store>(a, lda, rows, b + size_t(s0) * (k / PER_LANE<T>), width, steps, c + s0, ldc, prefetch);
}

}  // namespace LS_NS
