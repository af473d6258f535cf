// y = x W^T with packed W, and the mixture of experts built on it.
//
// Floor: 2 * in * out FLOPs per row for many rows, one read of W for few. Each output element is one sum over `in` in order,
// so a row's result does not depend on the rows beside it: the layer is batch-invariant to the bit.
#pragma once

#include "attend.h"
#include "parallel.h"
#include "tile.h"

namespace LS_NS {

constexpr int LINEAR_ROWS = 96;   // rows per work item
constexpr int LINEAR_AHEAD = 8192; // bytes of W fetched ahead when it is read only once
constexpr int LINEAR_DEPTH = 512; // inner elements per pass: a strip's part and the rows' part stay in L2

// out [rows, width] += x W^T for one strip of W; `sum` is [rows, width] fp32 scratch, zeroed here.
template <class T>
void linear_strip(const T* x, size_t ldx, int rows, const T* w, int width, int in, float* sum, A_of<T>* widened) {
  for (int i = 0; i < rows * width; i++) sum[i] = 0;
  for (int k0 = 0; k0 < in; k0 += LINEAR_DEPTH) {
    const int depth = in - k0 < LINEAR_DEPTH ? in - k0 : LINEAR_DEPTH;
    size_t lda;
    const A_of<T>* a = operand_rows<T>(x + k0, ldx, rows, depth, widened, &lda);
    const uint32_t* b = (const uint32_t*)w + size_t(k0 / PER_LANE<T>) * width;
    const char* later = rows <= 2 * MR ? (const char*)b + LINEAR_AHEAD : nullptr;  // bound by memory, not arithmetic
    strip<T, Out::Accumulate>(a, lda, rows, b, width, depth / PER_LANE<T>, sum, width, Stream{later});
  }
}

template <class T>
size_t linear_scratch(int rows, int width) {
  const size_t widened = sizeof(A_of<T>) == sizeof(T) ? 0 : size_t(rows) * LINEAR_DEPTH;
  return Scratch::padded<float>(size_t(rows) * width) + Scratch::padded<A_of<T>>(widened);
}

template <class T>
int linear_of(const ls_linear_args& a) {
  const int width = strip_width(int(a.padded_out));
  const long strips = a.padded_out / width, row_blocks = (a.rows + LINEAR_ROWS - 1) / LINEAR_ROWS;
  // A few neighbouring strips per item keep the claim counter out of the way of a matrix-vector product.
  const long per_item = row_blocks > 1 ? 1 : 1 + strips / (16L * a.threads);
  const long groups = (strips + per_item - 1) / per_item;
  const int threads = a.rows * a.in * a.out < 65536 ? 1 : a.threads;
  return parallel_for(row_blocks * groups, threads, [&](long item) -> int {
    const long r0 = item / groups * LINEAR_ROWS;
    const int rows = int(a.rows - r0 < LINEAR_ROWS ? a.rows - r0 : LINEAR_ROWS);
    if (!scratch.reserve(linear_scratch<T>(rows, width))) return OUT_OF_MEMORY;
    float* sum = scratch.take<float>(size_t(rows) * width);
    A_of<T>* widened = scratch.take<A_of<T>>(0);
    const long s0 = item % groups * per_item, s1 = s0 + per_item < strips ? s0 + per_item : strips;
    for (long s = s0; s < s1; s++) {
      linear_strip<T>((const T*)a.x + r0 * a.x_stride, a.x_stride, rows, (const T*)a.weight + size_t(s) * width * a.in,
                      width, int(a.in), sum, widened);
      const int columns = int(a.out - s * width < width ? a.out - s * width : width);
      for (int r = 0; r < rows; r++) {
        T* y = (T*)a.y + (r0 + r) * a.out + s * width;
        if (columns == width)
          for (int c = 0; c < width; c += VL) store_row(y + c, load(sum + r * width + c));
        else
          for (int c = 0; c < columns; c++) store_as(y + c, sum[r * width + c]);
      }
    }
    return 0;
  });
}

LS_INLINE float gate(float g, float u, float alpha, float limit) {
  g = g < limit ? g : limit;
  u = u < -limit ? -limit : u > limit ? limit : u;
  return (u + 1.0f) * g / (1.0f + expf(-alpha * g));
}

// The same on a vector: sigmoid through 2^x of a non-positive argument, so that nothing overflows.
LS_INLINE vf gate(vf g, vf u, float alpha, float limit) {
  const vf top = set1(limit), bottom = set1(-limit);
  g = g < top ? g : top;
  u = u < bottom ? bottom : u > top ? top : u;
  const vf x = g * alpha * LOG2E;
  const vf e = exp2_nonpositive<true>(x < 0.0f ? x : -x);  // e^-|alpha g|
  const vf sigmoid = (x < 0.0f ? e : set1(1.0f)) / (e + 1.0f);
  return (u + 1.0f) * g * sigmoid;
}

template <class T>
LS_INLINE void swiglu_row(const T* gate_up, T* y, long width, float alpha, float limit) {
  long i = 0;
  for (; i + VL <= width; i += VL)
    store_row(y + i, gate(load_row(gate_up + i), load_row(gate_up + width + i), alpha, limit));
  for (; i < width; i++) store_as(y + i, gate(to_float(gate_up[i]), to_float(gate_up[width + i]), alpha, limit));
}

template <class T>
int swiglu_of(const ls_swiglu_args& a) {
  constexpr long ROWS = 16;
  const int threads = a.rows * a.width < 32768 ? 1 : a.threads;
  return parallel_for((a.rows + ROWS - 1) / ROWS, threads, [&](long item) -> int {
    for (long r = item * ROWS; r < a.rows && r < (item + 1) * ROWS; r++)
      swiglu_row((const T*)a.gate_up + r * 2 * a.width, (T*)a.y + r * a.width, a.width, a.alpha, a.limit);
    return 0;
  });
}

// Rows are sorted by expert; each (expert, block of rows, strip) is an item. A token's experts are added in its own slot
// order, so the sum does not depend on the batch.
template <class T>
int moe_of(const ls_moe_args& a) {
  const long slots = a.rows * a.topk;
  for (long i = 0; i < slots; i++)
    if (a.expert_ids[i] < 0 || a.expert_ids[i] >= a.experts) return LS_BAD_EXPERT;
  const long hidden = a.hidden, wide = 2 * a.width, narrow = a.width;
  struct Block {
    long expert, begin;
    int rows;
  };
  long* start = (long*)calloc(size_t(a.experts) + 1, sizeof(long));
  long* slot_of = (long*)malloc(size_t(slots) * sizeof(long));    // sorted position -> slot
  Block* blocks = (Block*)malloc(size_t(slots / LINEAR_ROWS + a.experts + 1) * sizeof(Block));
  T* rows_in = (T*)aligned_alloc(64, (size_t(slots) * hidden * sizeof(T) + 63) / 64 * 64);
  T* h_wide = (T*)aligned_alloc(64, (size_t(slots) * wide * sizeof(T) + 63) / 64 * 64);
  T* h = (T*)aligned_alloc(64, (size_t(slots) * narrow * sizeof(T) + 63) / 64 * 64);
  float* y = (float*)aligned_alloc(64, (size_t(slots) * hidden * sizeof(float) + 63) / 64 * 64);  // by slot
  int status = start && slot_of && blocks && rows_in && h_wide && h && y ? 0 : OUT_OF_MEMORY;
  if (!status) {
    for (long i = 0; i < slots; i++) start[a.expert_ids[i] + 1]++;
    long count = 0;
    for (long e = 0; e < a.experts; e++) {
      for (long r = 0; r < start[e + 1]; r += LINEAR_ROWS)
        blocks[count++] = Block{e, start[e] + r, int(start[e + 1] - r < LINEAR_ROWS ? start[e + 1] - r : LINEAR_ROWS)};
      start[e + 1] += start[e];
    }
    for (long i = 0; i < slots; i++) {
      long& at = start[a.expert_ids[i]];
      memcpy(rows_in + at * hidden, (const T*)a.x + i / a.topk * hidden, size_t(hidden) * sizeof(T));
      slot_of[at++] = i;
    }
    const auto product = [&](const T* x, long in, const void* const* weights, long out, auto&& emit) {
      const int width = strip_width(int(out));
      const long strips = out / width;
      return parallel_for(count * strips, slots * in * out < 65536 ? 1 : a.threads, [&](long item) -> int {
        const Block& b = blocks[item / strips];
        const long s = item % strips;
        if (!scratch.reserve(linear_scratch<T>(b.rows, width))) return OUT_OF_MEMORY;
        float* sum = scratch.take<float>(size_t(b.rows) * width);
        A_of<T>* widened = scratch.take<A_of<T>>(0);
        linear_strip<T>(x + b.begin * in, in, b.rows, (const T*)weights[b.expert] + size_t(s) * width * in, width,
                        int(in), sum, widened);
        for (int r = 0; r < b.rows; r++) emit(b.begin + r, s * width, width, sum + r * width);
        return 0;
      });
    };
    status = product(rows_in, hidden, a.gate_up, wide, [&](long row, long column, int width, const float* sum) {
      for (int c = 0; c < width; c += VL) store_row(h_wide + row * wide + column + c, load(sum + c));
    });
    if (!status)
      status = swiglu_of<T>(ls_swiglu_args{h_wide, h, slots, narrow, a.alpha, a.limit, a.is_bf16, a.threads});
    if (!status)
      status = product(h, narrow, a.down, hidden, [&](long row, long column, int width, const float* sum) {
        const long slot = slot_of[row];
        const vf w = set1(a.expert_weights[slot]);
        for (int c = 0; c < width; c += VL) store(y + slot * hidden + column + c, load(sum + c) * w);
      });
    if (!status)
      status = parallel_for((a.rows + 15) / 16, slots * hidden < 32768 ? 1 : a.threads, [&](long item) -> int {
        for (long t = item * 16; t < a.rows && t < (item + 1) * 16; t++)
          for (long c = 0; c < hidden; c += VL) {
            vf sum = load(y + t * a.topk * hidden + c);
            for (long j = 1; j < a.topk; j++) sum = sum + load(y + (t * a.topk + j) * hidden + c);
            store(a.y + t * hidden + c, sum);
          }
        return 0;
      });
  }
  free(start), free(slot_of), free(blocks), free(rows_in), free(h_wide), free(h), free(y);
  return status;
}

}  // namespace LS_NS
