// Work on single rows: norms with rotation, sums, the router's choice, and the append of new tokens to their pages.
#pragma once

#include <cmath>

#include "parallel.h"
#include "tile.h"

namespace LS_NS {

// Gemma RMSNorm of each head, then rotation of the pairs (i, i + half); half 0 is a plain norm.
template <class T>
int norm_of(const ls_norm_args& a) {
  const long dim = a.dim, half = a.cos ? a.half : 0;
  constexpr long ROWS = 8;
  const int threads = a.rows * a.heads * dim < 32768 ? 1 : a.threads;
  return parallel_for((a.rows + ROWS - 1) / ROWS, threads, [&](long item) -> int {
    if (!scratch.reserve(2 * Scratch::padded<float>(dim + VL))) return OUT_OF_MEMORY;
    float* y = scratch.take<float>(dim + VL);
    float* gain = scratch.take<float>(dim + VL);
    const T* weight = (const T*)a.weight;
    for (long d = 0; d < dim; d++) gain[d] = 1.0f + to_float(weight[d]);
    for (long r = item * ROWS; r < a.rows && r < (item + 1) * ROWS; r++)
      for (long h = 0; h < a.heads; h++) {
        const T* x = (const T*)a.x + r * a.x_stride + h * dim;
        T* out = (T*)a.y + (r * a.heads + h) * dim;
        vf squares = {};
        for (long d = 0; d < dim; d += VL) {
          const vf v = load_row(x + d);
          squares = fma(v, v, squares);
        }
        const vf scale = set1(1.0f / sqrtf(hsum(squares) / float(dim) + a.eps));
        if (!half) {
          for (long d = 0; d < dim; d += VL) store_row(out + d, load_row(x + d) * scale * load(gain + d));
          continue;
        }
        for (long d = 0; d < dim; d += VL) store(y + d, load_row(x + d) * scale * load(gain + d));
        const float *c = a.cos + r * half, *s = a.sin + r * half;
        long i = 0;
        for (; i + VL <= half; i += VL) {
          const vf p = load(y + i), q = load(y + half + i);
          store(y + i, p * load(c + i) - q * load(s + i));
          store(y + half + i, q * load(c + i) + p * load(s + i));
        }
        for (; i < half; i++) {
          const float p = y[i], q = y[half + i];
          y[i] = p * c[i] - q * s[i];
          y[half + i] = q * c[i] + p * s[i];
        }
        for (long d = 0; d < dim; d += VL) store_row(out + d, load(y + d));
      }
    return 0;
  });
}

// Element (row, k) of a matrix of `k_size` columns packed in strips (ops/layout.py).
template <class T>
LS_INLINE size_t packed_at(long row, long k, int width, long k_size) {
  constexpr int E = PER_LANE<T>;
  return size_t(row / width) * width * k_size + size_t(k / E) * width * E + size_t(row % width) * E + k % E;
}

template <class T>
int append_of(const ls_append_args& a) {
  const long tokens = a.batch.cu_seqlens[a.batch.sequences];
  const int key_width = strip_width(int(a.block)), value_width = strip_width(int(a.dim));
  const size_t page_head = size_t(a.block) * a.dim, index_page = size_t(a.block) * a.index_dim;
  constexpr long ROWS = 32;
  return parallel_for((tokens + ROWS - 1) / ROWS, tokens < 64 ? 1 : a.threads, [&](long item) -> int {
    long s = 0;
    for (long t = item * ROWS; t < tokens && t < (item + 1) * ROWS; t++) {
      while (t >= a.batch.cu_seqlens[s + 1]) s++;
      const long position = a.batch.kv_lens[s] - a.batch.cu_seqlens[s + 1] + t;
      if (position < 0) continue;
      const size_t page = size_t(a.batch.block_table[s * a.batch.max_blocks + position / a.block]);
      const long slot = position % a.block;
      for (long h = 0; h < a.kv_heads; h++) {
        const T *k = (const T*)a.k + t * a.k_stride + h * a.dim, *v = (const T*)a.v + t * a.v_stride + h * a.dim;
        T* k_page = (T*)a.k_pages + (page * a.kv_heads + h) * page_head;
        T* v_page = (T*)a.v_pages + (page * a.kv_heads + h) * page_head;
        for (long d = 0; d < a.dim; d++) k_page[packed_at<T>(slot, d, key_width, a.dim)] = k[d];
        for (long d = 0; d < a.dim; d++) v_page[packed_at<T>(d, slot, value_width, a.block)] = v[d];
      }
      if (a.index_pages) {
        const T* k = (const T*)a.index_k + t * a.index_stride;
        T* to = (T*)a.index_pages + page * index_page;
        for (long d = 0; d < a.index_dim; d++) to[packed_at<T>(slot, d, key_width, a.index_dim)] = k[d];
      }
    }
    return 0;
  });
}

// y = y + x or y = x between the two storage types, in fp32.
template <class Y, class X>
int add_of(const ls_add_args& a) {
  constexpr long PART = 16384;
  return parallel_for((a.count + PART - 1) / PART, a.threads, [&](long item) -> int {
    Y* y = (Y*)a.y;
    const X* x = (const X*)a.x;
    long i = item * PART;
    const long end = i + PART < a.count ? i + PART : a.count;
    for (; i + VL <= end; i += VL) store_row(y + i, a.accumulate ? load_row(y + i) + load_row(x + i) : load_row(x + i));
    for (; i < end; i++) store_as(y + i, a.accumulate ? to_float(y[i]) + to_float(x[i]) : to_float(x[i]));
    return 0;
  });
}

// Each row's topk experts by sigmoid + bias (equal ones to the lower id), weighed by their sigmoids over the sum of these.
inline int route_rows(const ls_route_args& a) {
  constexpr long ROWS = 64;
  return parallel_for((a.rows + ROWS - 1) / ROWS, a.threads, [&](long item) -> int {
    if (!scratch.reserve(2 * Scratch::padded<float>(a.experts) + Scratch::padded<char>(a.experts))) return OUT_OF_MEMORY;
    float* sigmoid = scratch.take<float>(a.experts);
    float* score = scratch.take<float>(a.experts);
    char* chosen = scratch.take<char>(a.experts);
    for (long r = item * ROWS; r < a.rows && r < (item + 1) * ROWS; r++) {
      for (long e = 0; e < a.experts; e++) {
        // In double, so that the result does not hang on whose exp it is.
        sigmoid[e] = float(1.0 / (1.0 + exp(-double(a.logits[r * a.experts + e]))));
        score[e] = sigmoid[e] + a.bias[e];
        chosen[e] = 0;
      }
      for (long i = 0; i < a.topk; i++) {
        long best = -1;
        for (long e = 0; e < a.experts; e++)
          if (!chosen[e] && (best < 0 || score[e] > score[best])) best = e;
        chosen[best] = 1;
      }
      int64_t* ids = a.ids + r * a.topk;
      float* weights = a.weights + r * a.topk;
      float sum = 0;
      long n = 0;
      for (long e = 0; e < a.experts; e++)
        if (chosen[e]) {
          ids[n] = e;
          weights[n++] = sigmoid[e];
          sum += sigmoid[e];
        }
      for (long i = 0; i < a.topk; i++) weights[i] *= a.scale / sum;
    }
    return 0;
  });
}

// Each row's largest logit and its place, one read of the logits.
template <class T>
int likeliest_of(const ls_likeliest_args& a) {
  return parallel_for(a.rows, a.rows * a.vocab < 65536 ? 1 : a.threads, [&](long r) -> int {
    constexpr long PART = 64 * VL;
    const T* x = (const T*)a.logits + r * a.vocab;
    float best = -INFINITY;
    long place = 0;
    for (long from = 0; from < a.vocab && best == best; from += PART) {
      const long end = from + PART < a.vocab ? from + PART : a.vocab;
      vf most = set1(-INFINITY), sums = {};
      long i = from;
      for (; i + VL <= end; i += VL) {
        const vf v = load_row(x + i);
        most = vmax(most, v);
        sums += v;
      }
      float m = hmax(most), sum = hsum(sums);
      for (; i < end; i++) {
        m = to_float(x[i]) > m ? to_float(x[i]) : m;
        sum += to_float(x[i]);
      }
      // A sum is NaN if one of its terms is; also for infinities of both signs, which a closer look tells apart.
      if (m <= best && sum == sum) continue;
      for (long j = from; j < end && best == best; j++) {
        const float v = to_float(x[j]);
        if (v > best || v != v) best = v, place = j;
      }
    }
    a.ids[r] = int32_t(place);
    a.best[r] = best;
    return 0;
  });
}

}  // namespace LS_NS
