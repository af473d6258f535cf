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

constexpr int GRAD_ROWS = 192;  // rows of a tile: outer products over so many rows
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
        ld_(block_ + 16),
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
    A *p, *ds;                // [rows][ld] by columns
    int32_t *row, *visible;   // [rows]: each row's place in the chunk, and what it sees of the block
    int64_t* offset;          // [rows]: its place in q, out and their gradients, from the chunk's first row on
    float *s, *dp;            // of a step: [rows][block]
    A* ds_rows;               // [rows][block]
    float *part;              // [rows][dim]
    float *dk, *dv;           // [block][dim]
  };

  long topk() const { return a_.ids ? a_.topk : 0; }

  template <class F>
  void parts(const F& part, Work& w) const {
    const size_t rows = size_t(grid_.longest()) * group_, tile = tile_rows_, step = GRAD_STEP, block = block_;
    part(w.dq, rows * dim_), part(w.delta, rows), part(w.lse, rows);
    part(w.q, tile * dim_), part(w.dout, tile * dim_);
    part(w.q_columns, tile * dim_ / PER_LANE<T>), part(w.dout_columns, tile * dim_ / PER_LANE<T>);
    part(w.p, tile * ld_), part(w.ds, tile * ld_), part(w.row, tile), part(w.visible, tile), part(w.offset, tile);
    part(w.s, step * block), part(w.dp, step * block), part(w.ds_rows, step * block), part(w.part, step * dim_);
    part(w.dk, block * dim_), part(w.dv, block * dim_);
  }

  // Row 0 of token i of the chunk in q, out and their gradients; its other heads follow.
  size_t at(const Chunk& c, int i, long kv_head) const {
    return (size_t(c.row0 + i) * a_.heads + kv_head * group_) * dim_;
  }

  int run(long item) {
    Work w;
    const auto layout = [&](const auto& part) { parts(part, w); };
    if (!scratch.reserve(Visits::bytes(grid_.longest(), topk(), grid_.blocks()) + bytes_of(layout)))
      return turns_.fail(OUT_OF_MEMORY);
    const Chunk& c = grid_.chunk(item / a_.kv_heads);
    const long head = item % a_.kv_heads;
    const Visits visits(c, a_.ids ? a_.ids + (c.row0 * a_.kv_heads + head) * a_.topk : nullptr, a_.kv_heads * a_.topk,
                        topk(), a_.block, scratch);
    take(layout);
    prepare(c, head, w);
    const long before = c.position ? item - a_.kv_heads : -1, blocks = c.blocks(block_);
    for (long b = 0; b < blocks; b++) {
      const int n = visits.count(b);
      if (n) {
        memset(w.dk, 0, size_t(block_) * dim_ * 4);
        memset(w.dv, 0, size_t(block_) * dim_ * 4);
        for (int i = 0; i < n; i += tile_tokens_) {
          RowsAhead ahead = after(c, head, visits, b, i + tile_tokens_, blocks, w);
          tile(c, head, visits, b, i, n - i < tile_tokens_ ? n - i : tile_tokens_, ahead, w);
        }
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

  // What the tile from place `first` of block b's list needs, or else the first tile of the next block.
  RowsAhead after(const Chunk& c, long head, const Visits& visits, long b, int first, long blocks, const Work& w) const {
    if (first >= visits.count(b)) {
      first = 0;
      for (b++; b < blocks && !visits.count(b);) b++;
    }
    const int left = b < blocks ? visits.count(b) - first : 0;
    RowsAhead ahead(visits, b, first, left < tile_tokens_ ? left : tile_tokens_);
    const size_t stride = size_t(a_.heads) * dim_ * sizeof(T), used = size_t(group_) * dim_;
    ahead.also((const T*)a_.q + at(c, 0, head), stride, used * sizeof(T));
    ahead.also((const T*)a_.dout + at(c, 0, head), stride, used * sizeof(T));
    ahead.also(w.dq, used * 4, used * 4);
    return ahead;
  }

  // Tokens [first, first + n) of block b's list.
  void tile(const Chunk& c, long head, const Visits& visits, long b, int first, int n, RowsAhead& ahead,
            const Work& w) const {
    const int rows = n * group_, padded = (rows + PER_LANE<T> - 1) / PER_LANE<T> * PER_LANE<T>;
    for (int i = 0, r = 0; i < n; i++) {
      const int token = visits.token(b, first + i), seen = visits.visible(b, token);
      for (int g = 0; g < group_; g++, r++) {
        w.row[r] = token * group_ + g;
        w.offset[r] = (token * a_.heads + g) * dim_;
        w.visible[r] = seen;
      }
    }
    const auto of = [&](const void* x) {
      return [&, x = (const T*)x + at(c, 0, head)](int r) { return r < rows ? x + w.offset[r] : nullptr; };
    };
    gather_rows<T>(of(a_.q), padded, dim_, w.q);
    gather_rows<T>(of(a_.dout), padded, dim_, w.dout);
    pack_columns<T>(of(a_.q), padded, tile_rows_, dim_, w.q_columns);
    pack_columns<T>(of(a_.dout), padded, tile_rows_, dim_, w.dout_columns);

    const uint32_t *k = keys_.by_rows(c.document, b, head), *v = values_.by_rows(c.document, b, head),
                   *k_columns = keys_.by_columns(c.document, b, head);
    // Tokens ascend: the last sees the most.
    const int most = w.visible[rows - 1], width = strip_width(block_);
    const int columns = (most + width - 1) / width * width, used = (most + 15) / 16 * 16;
    for (int r0 = 0; r0 < padded; r0 += GRAD_STEP) {
      const int m = padded - r0 < GRAD_STEP ? padded - r0 : GRAD_STEP;
      product<T>(w.q + size_t(r0) * dim_, dim_, m, k, block_, columns, dim_, dim_, w.s, block_, ahead);
      product<T>(w.dout + size_t(r0) * dim_, dim_, m, v, block_, columns, dim_, dim_, w.dp, block_, ahead);
      for (int r = 0; r < m; r += PER_LANE<T>) {
        float lse[2] = {}, delta[2] = {};
        for (int i = 0; i < PER_LANE<T> && r0 + r + i < rows; i++) {
          lse[i] = w.lse[w.row[r0 + r + i]];
          delta[i] = w.delta[w.row[r0 + r + i]];
          for (int j = w.visible[r0 + r + i]; j < used; j++) w.s[(r + i) * block_ + j] = NEG_INF;
        }
        probabilities(r, r0 + r, used, lse, delta, w);
      }
      product<T>(w.ds_rows, block_, m, k_columns, dim_, dim_, block_, used, w.part, dim_, ahead);
      for (int r = 0; r < m && r0 + r < rows; r++) {
        float* to = w.dq + size_t(w.row[r0 + r]) * dim_;
        const float* from = w.part + size_t(r) * dim_;
        for (int d = 0; d < dim_; d += VL) store(to + d, load(to + d) + load(from + d));
      }
    }
    outer<T>(w.p, ld_, used, w.dout_columns, dim_, tile_rows_, padded, w.dv, dim_);
    outer<T>(w.ds, ld_, used, w.q_columns, dim_, tile_rows_, padded, w.dk, dim_);
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
        store(w.p + size_t(row) * ld_ + j, p0);
        store(w.ds + size_t(row) * ld_ + j, ds0);
      } else {
        const vf p1 = exp2_nonpositive<PRECISE>(fma(load(s + block_ + j), c, lse1));
        const vf ds1 = p1 * (load(dp + block_ + j) - delta1);
        store_row(ds + block_ + j, ds1);
        store_columns<T>(w.p + size_t(row) * ld_, ld_, j, p0, p1);
        store_columns<T>(w.ds + size_t(row) * ld_, ld_, j, ds0, ds1);
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
  const int ld_;  // of P and dS by columns: rows a power of two apart would share few sets of L1
  Grid grid_;
  PackedBlocks<T> keys_, values_;
  Turns turns_;
};

}  // namespace LS_NS
