// Gradients of softmax attention over chosen blocks, or over everything visible.
//
// Floor: 10 * dim FLOPs per (query head, attended token): S = Q K^T and dP = dO V^T are made again, then dV += P^T dO,
// dK += dS^T Q, dQ += dS K with P = exp(S - lse), dS = P * (dP - rowsum(dO * O)).
//
// Blocks outside, queries inside: a block's keys, values and their gradients stay in L2 while the tokens that chose it pass by
// in tiles of GRAD_ROWS rows. An item is a chunk of query tokens and a head of keys; it owns its dQ, and items of one head
// add their share of a block's dK and dV in turns, so no sum depends on the threads. Sums are fp32; P and dS round to bf16
// where the inputs are bf16.
#pragma once

#include "attend.h"
#include "packed.h"

namespace LS_NS {

constexpr int GRAD_ROWS = 128;  // rows of a tile: outer products over so many rows
constexpr int GRAD_STEP = 24;   // rows between scores and their gradients, which share L1

template <class T>
class AttentionGrad {
 public:
  explicit AttentionGrad(const ls_attention_grad_args& a)
      : a_(a),
        group_(int(a.heads / a.kv_heads)),
        dim_(int(a.dim)),
        block_(int(a.block)),
        tile_tokens_(GRAD_ROWS / group_ > 0 ? GRAD_ROWS / group_ : 1),
        tile_rows_((tile_tokens_ * group_ + 1) / 2 * 2),
        grid_(a.documents, a.block, group_),
        keys_(grid_, a.k, a.kv_heads, block_, dim_),
        values_(grid_, a.v, a.kv_heads, block_, dim_) {}

  int run() {
    if (a_.ids && !ids_are_sound(a_.documents, a_.ids, a_.kv_heads, a_.topk, a_.block)) return LS_BAD_SELECTION;
    if (!grid_.build() || !turns_.build(grid_.chunks() * a_.kv_heads) || !keys_.build(true, true, a_.threads) ||
        !values_.build(true, false, a_.threads))
      return OUT_OF_MEMORY;
    return parallel_for(grid_.chunks() * a_.kv_heads, a_.threads, [&](long item) { return run(item); });
  }

 private:
  using A = A_of<T>;

  struct Work {
    float *dq, *delta, *lse;  // of the chunk: [tokens * group][dim], [tokens * group] twice; lse in base 2
    A *q, *dout;              // of a tile: [rows][dim]
    uint32_t *q_columns, *dout_columns;
    A *p, *ds;                // [rows][block] by columns
    float *s, *dp;            // of a step: [rows][block]
    A* ds_rows;               // [rows][block]
    float *part;              // [rows][dim]
    float *dk, *dv;           // [block][dim]
  };

  size_t scratch_bytes() const {
    const size_t rows = size_t(grid_.longest()) * group_, tile = tile_rows_, step = GRAD_STEP;
    return Visits::bytes(grid_.longest(), topk(), grid_.blocks()) + Scratch::padded<float>(rows * dim_) +
           2 * Scratch::padded<float>(rows) + 2 * Scratch::padded<A>(tile * dim_) +
           2 * Scratch::padded<uint32_t>(tile * dim_ / PER_LANE<T>) + 2 * Scratch::padded<A>(tile * block_) +
           2 * Scratch::padded<float>(step * block_) + Scratch::padded<A>(step * block_) +
           Scratch::padded<float>(step * dim_) + 2 * Scratch::padded<float>(size_t(block_) * dim_);
  }
  long topk() const { return a_.ids ? a_.topk : 0; }

  Work take() const {
    const size_t rows = size_t(grid_.longest()) * group_, tile = tile_rows_, step = GRAD_STEP;
    Work w;
    w.dq = scratch.take<float>(rows * dim_);
    w.delta = scratch.take<float>(rows);
    w.lse = scratch.take<float>(rows);
    w.q = scratch.take<A>(tile * dim_);
    w.dout = scratch.take<A>(tile * dim_);
    w.q_columns = scratch.take<uint32_t>(tile * dim_ / PER_LANE<T>);
    w.dout_columns = scratch.take<uint32_t>(tile * dim_ / PER_LANE<T>);
    w.p = scratch.take<A>(tile * block_);
    w.ds = scratch.take<A>(tile * block_);
    w.s = scratch.take<float>(step * block_);
    w.dp = scratch.take<float>(step * block_);
    w.ds_rows = scratch.take<A>(step * block_);
    w.part = scratch.take<float>(step * dim_);
    w.dk = scratch.take<float>(size_t(block_) * dim_);
    w.dv = scratch.take<float>(size_t(block_) * dim_);
    return w;
  }

  // Row 0 of token i of the chunk in q, out and their gradients; its other heads follow.
  size_t at(const Chunk& c, int i, long kv_head) const {
    return (size_t(c.row0 + i) * a_.heads + kv_head * group_) * dim_;
  }

  int run(long item) {
    if (!scratch.reserve(scratch_bytes())) return turns_.fail(OUT_OF_MEMORY);
    const Chunk& c = grid_.chunk(item / a_.kv_heads);
    const long head = item % a_.kv_heads;
    const Visits visits(c, a_.ids ? a_.ids + (c.row0 * a_.kv_heads + head) * a_.topk : nullptr, a_.kv_heads * a_.topk,
                        topk(), a_.block, scratch);
    const Work w = take();
    prepare(c, head, w);
    const long before = c.position ? item - a_.kv_heads : -1, blocks = c.blocks(block_);
    for (long b = 0; b < blocks; b++) {
      const int n = visits.count(b);
      if (n) {
        memset(w.dk, 0, size_t(block_) * dim_ * 4);
        memset(w.dv, 0, size_t(block_) * dim_ * 4);
        for (int i = 0; i < n; i += tile_tokens_)
          tile(c, head, visits, b, i, n - i < tile_tokens_ ? n - i : tile_tokens_, w);
      }
      turns_.await(before, b);
      if (n) add(c, head, b, w);
      turns_.done(item, b);
    }
    turns_.finished(item);
    const vf scale = set1(a_.scale);
    for (int i = 0; i < c.tokens; i++) {
      const float* from = w.dq + size_t(i) * group_ * dim_;
      T* to = (T*)a_.dq + at(c, i, head);
      for (int d = 0; d < group_ * dim_; d += VL) store_row(to + d, load(from + d) * scale);
    }
    return 0;
  }

  void prepare(const Chunk& c, long head, const Work& w) const {
    memset(w.dq, 0, size_t(c.tokens) * group_ * dim_ * 4);
    for (int i = 0; i < c.tokens; i++)
      for (int g = 0; g < group_; g++) {
        const T *o = (const T*)a_.out + at(c, i, head) + size_t(g) * dim_,
                *d = (const T*)a_.dout + at(c, i, head) + size_t(g) * dim_;
        vf sum{};
        for (int k = 0; k < dim_; k += VL) sum = fma(load_row(o + k), load_row(d + k), sum);
        w.delta[size_t(i) * group_ + g] = hsum(sum);
        w.lse[size_t(i) * group_ + g] = a_.lse[(c.row0 + i) * a_.heads + head * group_ + g] * LOG2E;
      }
  }

  // Tokens [first, first + n) of block b's list.
  void tile(const Chunk& c, long head, const Visits& visits, long b, int first, int n, const Work& w) const {
    const int rows = n * group_, padded = (rows + PER_LANE<T> - 1) / PER_LANE<T> * PER_LANE<T>;
    const auto of = [&](const void* x) {
      return [&, x](int r) -> const T* {
        if (r >= rows) return nullptr;
        return (const T*)x + at(c, visits.token(b, first + r / group_), head) + size_t(r % group_) * dim_;
      };
    };
    gather_rows<T>(of(a_.q), padded, dim_, w.q);
    gather_rows<T>(of(a_.dout), padded, dim_, w.dout);
    pack_columns<T>(of(a_.q), padded, tile_rows_, dim_, w.q_columns);
    pack_columns<T>(of(a_.dout), padded, tile_rows_, dim_, w.dout_columns);

    const uint32_t *k = keys_.by_rows(c.document, b, head), *v = values_.by_rows(c.document, b, head),
                   *k_columns = keys_.by_columns(c.document, b, head);
    // Tokens ascend: the last sees the most.
    const int most = visits.visible(b, visits.token(b, first + n - 1)), width = strip_width(block_);
    const int columns = (most + width - 1) / width * width, used = (most + 15) / 16 * 16;
    for (int r0 = 0; r0 < padded; r0 += GRAD_STEP) {
      const int m = padded - r0 < GRAD_STEP ? padded - r0 : GRAD_STEP;
      product<T>(w.q + size_t(r0) * dim_, dim_, m, k, block_, columns, dim_, dim_, w.s, block_);
      product<T>(w.dout + size_t(r0) * dim_, dim_, m, v, block_, columns, dim_, dim_, w.dp, block_);
      for (int r = 0; r < m; r += PER_LANE<T>) {
        float lse[2] = {}, delta[2] = {};
        for (int i = 0; i < PER_LANE<T> && r0 + r + i < rows; i++) {
          const int token = visits.token(b, first + (r0 + r + i) / group_);
          const size_t row = size_t(token) * group_ + (r0 + r + i) % group_;
          lse[i] = w.lse[row];
          delta[i] = w.delta[row];
          for (int j = visits.visible(b, token); j < used; j++) w.s[(r + i) * block_ + j] = NEG_INF;
        }
        probabilities(r, r0 + r, used, lse, delta, w);
      }
      product<T>(w.ds_rows, block_, m, k_columns, dim_, dim_, block_, used, w.part, dim_);
      for (int r = 0; r < m && r0 + r < rows; r++) {
        const int token = visits.token(b, first + (r0 + r) / group_);
        float* to = w.dq + (size_t(token) * group_ + (r0 + r) % group_) * dim_;
        const float* from = w.part + size_t(r) * dim_;
        for (int d = 0; d < dim_; d += VL) store(to + d, load(to + d) + load(from + d));
      }
    }
    outer<T>(w.p, block_, used, w.dout_columns, dim_, tile_rows_, padded, w.dv, dim_);
    outer<T>(w.ds, block_, used, w.q_columns, dim_, tile_rows_, padded, w.dk, dim_);
  }

  // P and dS of row r of the step (and r + 1 where pairs are stored), which is row `row` of the tile.
  void probabilities(int r, int row, int used, const float* lse, const float* delta, const Work& w) const {
    constexpr bool PRECISE = PER_LANE<T> == 1;
    const vf c = set1(a_.scale * LOG2E);
    const float *s = w.s + size_t(r) * block_, *dp = w.dp + size_t(r) * block_;
    A* ds = w.ds_rows + size_t(r) * block_;
    const vf lse0 = set1(-lse[0]), delta0 = set1(delta[0]), lse1 = set1(-lse[1]), delta1 = set1(delta[1]);
    for (int j = 0; j < used; j += VL) {
      const vf p0 = exp2_nonpositive<PRECISE>(fma(load(s + j), c, lse0)), ds0 = p0 * (load(dp + j) - delta0);
      store_row(ds + j, ds0);
      if constexpr (PER_LANE<T> == 1) {
        store(w.p + size_t(row) * block_ + j, p0);
        store(w.ds + size_t(row) * block_ + j, ds0);
      } else {
        const vf p1 = exp2_nonpositive<PRECISE>(fma(load(s + block_ + j), c, lse1));
        const vf ds1 = p1 * (load(dp + block_ + j) - delta1);
        store_row(ds + block_ + j, ds1);
        store_columns<T>(w.p + size_t(row) * block_, block_, j, p0, p1);
        store_columns<T>(w.ds + size_t(row) * block_, block_, j, ds0, ds1);
      }
    }
  }

  void add(const Chunk& c, long head, long b, const Work& w) const {
    long row;
    const int n = grid_.block_rows(c.document, b, &row);
    const vf scale = set1(a_.scale);
    for (int j = 0; j < n; j++) {
      float *dk = a_.dk + ((row + j) * a_.kv_heads + head) * dim_, *dv = a_.dv + ((row + j) * a_.kv_heads + head) * dim_;
      const float *k = w.dk + size_t(j) * dim_, *v = w.dv + size_t(j) * dim_;
      for (int d = 0; d < dim_; d += VL) {
        store(dk + d, fma(load(k + d), scale, load(dk + d)));
        store(dv + d, load(dv + d) + load(v + d));
      }
    }
  }

  const ls_attention_grad_args& a_;
  const int group_, dim_, block_, tile_tokens_, tile_rows_;
  Grid grid_;
  PackedBlocks<T> keys_, values_;
  Turns turns_;
};

}  // namespace LS_NS
