// The vector unit, as the kernels see it: one native register of VL floats and a dozen operations on it.
//
// Each instruction set is one translation unit (see isa_*.cpp) that defines LS_NS and is compiled with its own flags; all
// code lives in that namespace, so that no symbol of one instruction set can be linked into another.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(LS_NEON)
#include <arm_neon.h>
#endif

#define LS_INLINE inline __attribute__((always_inline))
#define LS_NOINLINE __attribute__((noinline))

// Dot products of bf16 pairs: the tile then multiplies bf16 as it is stored.
#if defined(__AVX512BF16__) || (defined(LS_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))
#define LS_BF16_DOT
#endif

namespace LS_NS {

// MR x NV is the register tile: MR * NV accumulators, NV vectors of B and one broadcast of A must fit the register file.
#if defined(__AVX512F__)
constexpr int VL = 16, MR = 6, NV_MAX = 4;
#elif defined(__AVX2__)
constexpr int VL = 8, MR = 4, NV_MAX = 2;
#elif defined(LS_NEON) && defined(LS_BF16_DOT)
constexpr int VL = 4, MR = 5, NV_MAX = 4;  // with six rows gcc 12 spills
#elif defined(LS_NEON)
constexpr int VL = 4, MR = 4, NV_MAX = 4;  // widened bf16 takes two vectors for each of B
#else
constexpr int VL = 4, MR = 2, NV_MAX = 4;
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));

constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

struct bf16 {
  uint16_t bits;
};

LS_INLINE float to_float(float x) { return x; }
LS_INLINE float to_float(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
LS_INLINE void store_as(float* p, float x) { *p = x; }
LS_INLINE void store_as(bf16* p, float x) {  // round to nearest even; NaN stays NaN
  uint32_t u;
  memcpy(&u, &x, 4);
  p->bits = x != x ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

LS_INLINE vf load(const float* p) {
  vf r;
  memcpy(&r, p, sizeof r);
  return r;
}
LS_INLINE vu load_lanes(const uint32_t* p) {
  vu r;
  memcpy(&r, p, sizeof r);
  return r;
}
LS_INLINE void store(float* p, vf x) { memcpy(p, &x, sizeof x); }

LS_INLINE vf set1(float x) {
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (vf)_mm256_set1_ps(x);
#else
  return vf{x, x, x, x};
#endif
}
LS_INLINE vu set1_lane(uint32_t x) {
#if defined(__AVX512F__)
  return (vu)_mm512_set1_epi32(int(x));
#elif defined(__AVX2__)
  return (vu)_mm256_set1_epi32(int(x));
#else
  return vu{x, x, x, x};
#endif
}
LS_INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
LS_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }  // contracted where the machine has it

#if defined(LS_BF16_DOT)
// sum[i] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1], of bf16 pairs in 32-bit lanes.
LS_INLINE void add_dot_of_pairs(vf& sum, vu a, vu b) {
#if defined(__AVX512BF16__)
  // As an intrinsic, gcc 12 spills every accumulator in every step; as a statement it keeps them in registers.
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
#else
  sum = (vf)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#endif
}
#endif

// Hides x from the optimiser, in the register that it is in.
LS_INLINE void keep_in_register(vf& x) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(x));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(x));
#else
  asm volatile("" : "+m"(x));
#endif
}

LS_INLINE float hmax(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float m = x[0];
  for (int i = 1; i < VL; i++) m = x[i] > m ? x[i] : m;
  return m;
#endif
}
LS_INLINE float hsum(vf x) {  // a fixed tree: the same bits every time
  float lane[VL];
  store(lane, x);
  for (int width = VL / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}

#if defined(__AVX512F__)
// m [16][16] -> op over each row, by transposition: a fixed tree.
template <class Op>
LS_INLINE void fold_rows(const float* m, float* out, Op op) {
  __m512 t[8], u[4], w[2];
  for (int i = 0; i < 8; i++) {
    const __m512 a = _mm512_loadu_ps(m + i * 16), b = _mm512_loadu_ps(m + (i + 8) * 16);
    t[i] = op(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int i = 0; i < 4; i++)
    u[i] = op(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
  for (int i = 0; i < 2; i++)
    w[i] = op(_mm512_shuffle_ps(u[i], u[i + 2], 0x88), _mm512_shuffle_ps(u[i], u[i + 2], 0xdd));
  const __m512 x = op(_mm512_shuffle_ps(w[0], w[1], 0x88), _mm512_shuffle_ps(w[0], w[1], 0xdd));
  // The shuffles leave row 4 * q + e at lane 4 * {0,2,1,3}[q] + {0,2,1,3}[e].
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, x));
}
#endif

// m [16][VL] -> the 16 row maxima
LS_INLINE void max_of_rows(const float* m, float* out) {
#if defined(__AVX512F__)
  fold_rows(m, out, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
#else
  for (int r = 0; r < 16; r++) out[r] = hmax(load(m + r * VL));
#endif
}

// 2^x for x <= 0 (and exactly 0 at -inf, 1 at 0). Minimax polynomials of 2^r on [0, 1]
// with p(0) = 1: degree 4 errs by 3e-6 relative, enough beside bf16; degree 6 by less than fp32 rounding.
template <bool PRECISE>
LS_INLINE vf exp2_nonpositive(vf x) {
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x); 0 at -inf
#else
  const vf clamped = vmax(x, set1(-127.0f));
#if defined(LS_NEON)
  const vf f = (vf)vrndmq_f32((float32x4_t)clamped);
#else
  vf f = __builtin_convertvector(__builtin_convertvector(clamped, vi), vf);  // truncated
  f = f > clamped ? f - 1.0f : f;
#endif
  const vf r = clamped - f;
#endif
  vf p;
  if (PRECISE) {
    p = set1(2.161292120e-04f);
    p = fma(p, r, set1(1.246784478e-03f));
    p = fma(p, r, set1(9.675451730e-03f));
    p = fma(p, r, set1(5.548528055e-02f));
    p = fma(p, r, set1(2.402293056e-01f));
    p = fma(p, r, set1(6.931470444e-01f));
  } else {
    p = set1(1.342668976e-02f);
    p = fma(p, r, set1(5.224246520e-02f));
    p = fma(p, r, set1(2.412802091e-01f));
    p = fma(p, r, set1(6.930448443e-01f));
  }
  p = fma(p, r, set1(1.0f));
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);  // takes the floor of x itself
#else
  const vi exponent = (__builtin_convertvector(f, vi) + 127) << 23;
  return x >= -126.0f ? p * (vf)exponent : vf{};
#endif
}

LS_INLINE float exp2_nonpositive(float x) { return exp2_nonpositive<true>(set1(x))[0]; }

LS_INLINE void store_row(float* p, vf x) { store(p, x); }
LS_INLINE void store_row(bf16* p, vf x) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
  memcpy(p, &h, 32);
#elif defined(LS_NEON) && defined(LS_BF16_DOT)
  const bfloat16x4_t h = vcvt_bf16_f32((float32x4_t)x);
  memcpy(p, &h, 8);
#elif defined(LS_NEON)
  const vu u = (vu)x, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint16x4_t h = vmovn_u32((uint32x4_t)(x != x ? (u >> 16) | 0x40u : rounded));
  memcpy(p, &h, 8);
#else
  float lane[VL];
  store(lane, x);
  for (int i = 0; i < VL; i++) store_as(p + i, lane[i]);
#endif
}
LS_INLINE vf load_row(const float* p) { return load(p); }
LS_INLINE vf load_row(const bf16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#elif defined(__AVX2__)
  return (vf)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#elif defined(LS_NEON)
  return (vf)vshll_n_u16(vld1_u16(&p->bits), 16);
#else
  vf r;
  for (int i = 0; i < VL; i++) r[i] = to_float(p[i]);
  return r;
#endif
}

}  // namespace LS_NS
