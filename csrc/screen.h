// An index scan in two readings with the same result as one: int8 copies of the keys rule out almost every block, and the
// rest are scored exactly, by the same arithmetic as without them. Half the instructions and half the bytes per key.
//
// A full page of bf16 index keys k_j has a copy (ops/layout.py) of 8-bit codes c_j around the midrange mu of each channel:
//   deq(k_j) = mu + scale * (c_j - 128),  error >= |k_j - deq(k_j)|,  spread >= |deq(k_j) - mu|   for each j of the page.
// A query row q is rounded to int8 too. With q' = deq(q), by Cauchy-Schwarz
//   |q k_j - (q mu + q'(deq(k_j) - mu))| <= |q| error + |q - q'| spread,
// so that a block whose estimate lies further below the row's k-th best than the two bounds together cannot be chosen.
// ROUNDING covers the fp32 sums on both sides: at most 256 products, each sum off by less than 256 * 2^-24 of |q| |k|.
#pragma once

#include "rows.h"

namespace LS_NS {

constexpr float ROUNDING = 4e-5f;
constexpr float NEVER_SURE = 1e30f;  // a bound that rules nothing out, where keys are not finite

// What follows the codes and the midranges (bf16 [dim]) of a page.
struct PageScale {
  float scale, error, spread;
};

struct PageCodes {
  const uint32_t* codes;  // packed like the keys, four channels to a lane
  const uint16_t* middle;
  PageScale scale;

  PageCodes(const void* pages, size_t page, long block, long dim) {
    const char* at = (const char*)pages + page * bytes(block, dim);
    codes = (const uint32_t*)at;
    middle = (const uint16_t*)(at + block * dim);
    memcpy(&scale, at + block * dim + 2 * dim, sizeof scale);
  }
  static size_t bytes(long block, long dim) {
    return (size_t(block) * dim + 2 * dim + sizeof(PageScale) + 63) / 64 * 64;
  }
};

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define LS_SCREEN 1
#else
#define LS_SCREEN 0
#endif
constexpr bool HAS_SCREEN = LS_SCREEN;

#if LS_SCREEN

// Eight bits along the channels, four to a lane: the rows' codes are signed, the keys' unsigned.
struct code8 {
  int8_t value;
};
template <>
struct Operand<code8> {
  using A = int8_t;
  static constexpr int PER_LANE = 4;
};

LS_INLINE vf nearest(vf x) { return (vf)_mm512_roundscale_ps((__m512)x, 0); }

// The two bf16 channels of a lane of packed keys.
LS_INLINE vf even_channel(const uint32_t* lanes) { return (vf)(load_lanes(lanes) << 16); }
LS_INLINE vf odd_channel(const uint32_t* lanes) { return (vf)(load_lanes(lanes) & 0xffff0000u); }

// Writes the codes of one full page of packed bf16 keys.
inline void encode_page(const uint32_t* keys, char* out, long block, long dim) {
  const int width = strip_width(int(block)), pairs = int(dim / 2);
  const long strips = block / width;
  float middle[256];
  vf widest = {};
  for (int p = 0; p < pairs; p++) {
    vf low[2] = {set1(-NEG_INF), set1(-NEG_INF)}, high[2] = {set1(NEG_INF), set1(NEG_INF)};
    for (long s = 0; s < strips; s++)
      for (int at = 0; at < width; at += VL) {
        const uint32_t* lanes = keys + (s * pairs + p) * width + at;
        const vf x[2] = {even_channel(lanes), odd_channel(lanes)};
        for (int e = 0; e < 2; e++) {
          low[e] = x[e] < low[e] ? x[e] : low[e];
          high[e] = vmax(x[e], high[e]);
        }
      }
    for (int e = 0; e < 2; e++) {
      const float least = -hmax(-low[e]), most = hmax(high[e]);
      bf16 m;
      store_as(&m, 0.5f * least + 0.5f * most);
      middle[2 * p + e] = to_float(m);
      memcpy(out + block * dim + (2 * p + e) * 2, &m, 2);
      const float side = most - to_float(m) > to_float(m) - least ? most - to_float(m) : to_float(m) - least;
      widest = vmax(widest, set1(side));
    }
  }
  PageScale scale;
  scale.scale = widest[0] / 127.0f;
  const float inverse = scale.scale > 0 ? 1.0f / scale.scale : 0.0f;
  uint32_t* codes = (uint32_t*)out;
  float worst[3] = {0, 0, 0};  // squares of error, spread and norm
  for (long s = 0; s < strips; s++)
    for (int at = 0; at < width; at += VL) {
      vf error = {}, spread = {}, norm = {};
      for (int quad = 0; quad < pairs / 2; quad++) {
        vu packed = {};
        for (int e = 0; e < 4; e++) {
          const uint32_t* lanes = keys + (s * pairs + 2 * quad + e / 2) * width + at;
          const vf x = e % 2 ? odd_channel(lanes) : even_channel(lanes), m = set1(middle[4 * quad + e]);
          vf code = nearest((x - m) * inverse);
          code = code > 127.0f ? set1(127.0f) : code;
          code = code < -127.0f ? set1(-127.0f) : code;
          const vf around = code * scale.scale, off = x - m - around;
          error = fma(off, off, error);
          spread = fma(around, around, spread);
          norm = fma(x, x, norm);
          packed |= (vu)(__builtin_convertvector(code, vi) + 128) << (8 * e);
        }
        memcpy(codes + (s * (pairs / 2) + quad) * width + at, &packed, sizeof packed);
      }
      const vf all[3] = {error, spread, norm};
      for (int i = 0; i < 3; i++) worst[i] = hmax(all[i]) > worst[i] ? hmax(all[i]) : worst[i];
    }
  float center = 0;
  for (long d = 0; d < dim; d++) center += middle[d] * middle[d];
  scale.error = sqrtf(worst[0]) * (1 + ROUNDING) + ROUNDING * (sqrtf(worst[2]) + sqrtf(center));
  scale.spread = sqrtf(worst[1]) * (1 + ROUNDING);
  const float sum = scale.scale + scale.error + scale.spread + worst[0];
  if (!(sum < NEVER_SURE)) scale = PageScale{0, NEVER_SURE, 0};
  memcpy(out + block * dim + 2 * dim, &scale, sizeof scale);
}

// Codes for the pages that this step's tokens have filled up; all keys are in place by now.
inline int encode_filled_pages(const ls_append_args& a) {
  long filled = 0;
  const auto pages_of = [&](long s, long* first) {
    const long end = a.batch.kv_lens[s], begin = end - (a.batch.cu_seqlens[s + 1] - a.batch.cu_seqlens[s]);
    *first = (begin > 0 ? begin : 0) / a.block;
    return end > begin ? end / a.block - *first : 0;
  };
  long first;
  for (long s = 0; s < a.batch.sequences; s++) filled += pages_of(s, &first);
  return parallel_for(filled, a.threads, [&](long item) -> int {
    long s = 0, first;
    for (long n; item >= (n = pages_of(s, &first)); s++) item -= n;
    const size_t page = size_t(a.batch.block_table[s * a.batch.max_blocks + first + item]);
    encode_page((const uint32_t*)a.index_pages + page * size_t(a.block) * a.index_dim / 2,
                (char*)a.index_codes + page * PageCodes::bytes(a.block, a.index_dim), a.block, a.index_dim);
    return 0;
  });
}

// The rows of a tile, rounded: row r is `scale[r] * codes[r]`, off by at most `error[r]`; `norm` is its length. `shift`
// makes up for the 128 that keys' codes are raised by.
struct RowCodes {
  int8_t* codes;
  float *scale, *shift, *norm, *error;

  static size_t bytes(int rows, int rows16, int dim) {
    return Scratch::padded<int8_t>(size_t(rows) * dim) + 4 * Scratch::padded<float>(rows16);
  }
  RowCodes(const bf16* q, int rows, int rows16, int dim, Scratch& from)
      : codes(from.take<int8_t>(size_t(rows) * dim)),
        scale(from.take<float>(rows16)),
        shift(from.take<float>(rows16)),
        norm(from.take<float>(rows16)),
        error(from.take<float>(rows16)) {
    for (int r = 0; r < rows; r++) {
      const bf16* x = q + size_t(r) * dim;
      vf most = {};
      for (int d = 0; d < dim; d += VL) {
        const vf v = load_row(x + d);
        most = vmax(most, vmax(v, -v));
      }
      scale[r] = hmax(most) / 127.0f;
      const float inverse = scale[r] > 0 ? 1.0f / scale[r] : 0.0f;
      vf length = {}, off = {}, sum = {};
      for (int d = 0; d < dim; d += VL) {
        const vf v = load_row(x + d);
        vf code = nearest(v * inverse);
        code = code > 127.0f ? set1(127.0f) : code;
        code = code < -127.0f ? set1(-127.0f) : code;
        const vf rest = v - code * scale[r];
        length = fma(v, v, length);
        off = fma(rest, rest, off);
        sum += code;
        _mm_storeu_si128((__m128i*)(codes + size_t(r) * dim + d), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)code)));
      }
      shift[r] = 128.0f * hsum(sum);
      norm[r] = sqrtf(hsum(length)) * (1 + ROUNDING);
      error[r] = sqrtf(hsum(off)) * (1 + ROUNDING);
    }
    for (int r = rows; r < rows16; r++) scale[r] = shift[r] = norm[r] = error[r] = 0;
  }
};
#else
inline int encode_filled_pages(const ls_append_args&) { return 0; }
#endif

}  // namespace LS_NS
