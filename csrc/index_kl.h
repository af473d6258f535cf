// How far the index branch is from the attention it should predict, and the gradient of that: per (token, group) the KL
// divergence of P_idx = softmax(index scores) from P = the mean of the group's attention probabilities, over the keys of the
// chosen blocks, or over all visible ones.
//
// Floor: 2 * (heads * dim + 3 * groups * index_dim) FLOPs per (token, attended token): the teacher's scores again, the
// index scores, and E = P_idx - P times the index keys and the index queries. Index scores are made twice, first for their
// log-sum-exp, so that no row of them is ever kept. The loop is that of attend_grad.h.
#pragma once

#include "attend.h"
#include "packed.h"

namespace LS_NS {

constexpr int KL_TOKENS = 64;  // tokens of a tile
constexpr int KL_STEP = 48;    // query rows whose scores are averaged at a time
constexpr float MASKED = -1e30f;  // an index score whose probability is 0, though its logarithm is a number

// log2 of positive normal x within fp32 rounding; a finite number for 0. The mantissa lies in [sqrt(1/2), sqrt(2)), where
// log(m) = 2 artanh((m - 1) / (m + 1)).
LS_INLINE vf log2_of(vf x) {
  const vi bits = (vi)x;
  const vi exponent = (bits - 0x3f3504f3) >> 23;
  const vf m = (vf)(bits - (exponent << 23));
  const vf f = (m - 1.0f) / (m + 1.0f), f2 = f * f;
  vf p = set1(2.0f / 11 / LN2);
  p = fma(p, f2, set1(2.0f / 9 / LN2));
  p = fma(p, f2, set1(2.0f / 7 / LN2));
  p = fma(p, f2, set1(2.0f / 5 / LN2));
  p = fma(p, f2, set1(2.0f / 3 / LN2));
  p = fma(p, f2, set1(2.0f / LN2));
  return fma(p, f, __builtin_convertvector(exponent, vf));
}

template <class T>
class IndexKl {
 public:
  explicit IndexKl(const ls_index_kl_args& a)
      : a_(a),
        group_(int(a.heads / a.kv_heads)),
        dim_(int(a.dim)),
        index_dim_(int(a.index_dim)),
        block_(int(a.block)),
        step_tokens_(KL_STEP / group_ > 0 ? KL_STEP / group_ : 1),
        grid_(a.documents, a.block, group_),
        keys_(grid_, a.k, a.kv_heads, block_, dim_),
        index_keys_(grid_, a.index_k, 1, block_, index_dim_) {}
  IndexKl(const IndexKl&) = delete;
  ~IndexKl() { free(terms_); }

  int run() {
    if (a_.ids && !ids_are_sound(a_.documents, a_.ids, a_.kv_heads, a_.topk, a_.block)) return LS_BAD_SELECTION;
    const long rows = a_.documents.cu_seqlens[a_.documents.count] * a_.kv_heads;
    terms_ = (float*)malloc(size_t(rows + 1) * sizeof(float));
    if (!terms_ || !grid_.build() || !turns_.build(grid_.chunks() * a_.kv_heads) ||
        !keys_.build(true, false, a_.threads) || !index_keys_.build(true, wants_gradients(), a_.threads))
      return OUT_OF_MEMORY;
    const int status = parallel_for(grid_.chunks() * a_.kv_heads, a_.threads, [&](long item) { return run(item); });
    double sum = 0;
    for (long i = 0; i < rows; i++) sum += terms_[i];
    *a_.loss = float(sum / a_.kv_heads);
    return status;
  }

 private:
  using A = A_of<T>;

  struct Work {
    float *lse, *weight, *term;    // of the chunk: [tokens * group] base 2, [tokens], [tokens]
    float *max, *sum;              // index softmax, base 2: [tokens], then the log-sum-exp in max; [tokens][VL]
    float* dq;                     // [tokens][index_dim]
    A *index_q, *q;                // [KL_TOKENS][index_dim], [step][dim]
    uint32_t* q_columns;           // of the index queries
    float *index_s, *teacher, *s;  // [KL_TOKENS][block] twice, [step][block]
    A *e_rows, *e;                 // [KL_TOKENS][block] by rows and by columns
    float *part, *dk;              // [KL_TOKENS][index_dim], [block][index_dim]
  };

  bool wants_gradients() const { return a_.dindex_q; }
  long topk() const { return a_.ids ? a_.topk : 0; }

  template <class F>
  void parts(const F& part, Work& w) const {
    const size_t tokens = grid_.longest(), step = size_t(step_tokens_) * group_, tile = KL_TOKENS;
    part(w.lse, tokens * group_), part(w.weight, tokens), part(w.term, tokens), part(w.max, tokens);
    part(w.sum, tokens * VL), part(w.dq, tokens * index_dim_), part(w.index_q, tile * index_dim_);
    part(w.q, step * dim_), part(w.q_columns, tile * index_dim_ / PER_LANE<T>), part(w.index_s, tile * block_);
    part(w.teacher, tile * block_), part(w.s, step * block_), part(w.e_rows, tile * block_), part(w.e, tile * block_);
    part(w.part, tile * index_dim_), part(w.dk, size_t(block_) * index_dim_);
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
    for (long b = 0; b < blocks; b++)
      each_tile(visits, b, [&](int first, int n) { normalise(c, head, visits, b, first, n, w); });
    for (int i = 0; i < c.tokens; i++) {
      const float sum = hsum(load(w.sum + size_t(i) * VL));
      w.max[i] = sum > 0 ? w.max[i] + log2f(sum) : 0;
    }
    for (long b = 0; b < blocks; b++) {
      memset(w.dk, 0, size_t(block_) * index_dim_ * 4);
      each_tile(visits, b, [&](int first, int n) { compare(c, head, visits, b, first, n, w); });
      turns_.await(before, b);
      if (wants_gradients() && visits.count(b)) add(c, head, b, w);
      turns_.done(item, b);
    }
    turns_.finished(item);
    const vf scale = set1(a_.index_scale);
    for (int i = 0; i < c.tokens; i++) {
      const long row = (c.row0 + i) * a_.kv_heads + head;
      terms_[row] = w.term[i] * a_.weight[c.row0 + i];
      if (wants_gradients())
        for (int d = 0; d < index_dim_; d += VL)
          store(a_.dindex_q + row * index_dim_ + d, load(w.dq + size_t(i) * index_dim_ + d) * scale);
    }
    return 0;
  }

  template <class Body>
  static void each_tile(const Visits& visits, long b, const Body& body) {
    const int n = visits.count(b);
    for (int i = 0; i < n; i += KL_TOKENS) body(i, n - i < KL_TOKENS ? n - i : KL_TOKENS);
  }

  void prepare(const Chunk& c, long head, const Work& w) const {
    memset(w.dq, 0, size_t(c.tokens) * index_dim_ * 4);
    memset(w.sum, 0, size_t(c.tokens) * VL * 4);
    for (int i = 0; i < c.tokens; i++) {
      w.max[i] = NEG_INF;
      w.term[i] = 0;
      w.weight[i] = a_.weight[c.row0 + i] / float(a_.kv_heads);
      for (int g = 0; g < group_; g++)
        w.lse[i * group_ + g] = a_.lse[(c.row0 + i) * a_.heads + head * group_ + g] * LOG2E;
    }
  }

  int columns_of(int used) const {
    const int width = strip_width(block_);
    return (used + width - 1) / width * width;
  }
  // Columns of block b that any of a tile's tokens sees: tokens ascend, the last sees the most.
  static int used_columns(const Visits& visits, long b, int first, int n) {
    return (visits.visible(b, visits.token(b, first + n - 1)) + 15) / 16 * 16;
  }

  // Scaled index scores in base 2 of a tile's tokens; MASKED where a token does not see the key.
  void index_scores(const Chunk& c, long head, const Visits& visits, long b, int first, int n, const Work& w) const {
    const int used = used_columns(visits, b, first, n);
    const auto row = [&](int r) {
      return (const T*)a_.index_q + ((c.row0 + visits.token(b, first + r)) * a_.kv_heads + head) * index_dim_;
    };
    NoPrefetch none;
    gather_rows<T>(row, n, index_dim_, w.index_q);
    product<T>(w.index_q, index_dim_, n, index_keys_.by_rows(c.document, b, 0), block_, columns_of(used), index_dim_,
               index_dim_, w.index_s, block_, none);
    const vf scale = set1(a_.index_scale * LOG2E);
    for (int r = 0; r < n; r++) {
      float* s = w.index_s + size_t(r) * block_;
      for (int j = 0; j < used; j += VL) store(s + j, load(s + j) * scale);
      for (int j = visits.visible(b, visits.token(b, first + r)); j < used; j++) s[j] = MASKED;
    }
  }

  void normalise(const Chunk& c, long head, const Visits& visits, long b, int first, int n, const Work& w) const {
    index_scores(c, head, visits, b, first, n, w);
    const int used = used_columns(visits, b, first, n);
    for (int r = 0; r < n; r++) {
      const float* s = w.index_s + size_t(r) * block_;
      const int token = visits.token(b, first + r);
      vf top = load(s);
      for (int j = VL; j < used; j += VL) top = vmax(top, load(s + j));
      const float most = hmax(top);
      vf sum = load(w.sum + size_t(token) * VL);
      if (most > w.max[token]) {
        sum = sum * exp2_nonpositive<true>(set1(w.max[token] - most));
        w.max[token] = most;
      }
      const vf offset = set1(w.max[token]);
      for (int j = 0; j < used; j += VL) sum = sum + exp2_nonpositive<true>(load(s + j) - offset);
      store(w.sum + size_t(token) * VL, sum);
    }
  }

  void compare(const Chunk& c, long head, const Visits& visits, long b, int first, int n, const Work& w) const {
    index_scores(c, head, visits, b, first, n, w);
    const int used = used_columns(visits, b, first, n);
    for (int i = 0; i < n; i += step_tokens_)
      teach(c, head, visits, b, first + i, n - i < step_tokens_ ? n - i : step_tokens_, used,
            w.teacher + size_t(i) * block_, w);
    const int padded = (n + PER_LANE<T> - 1) / PER_LANE<T> * PER_LANE<T>;
    for (int r = 0; r < padded; r += PER_LANE<T>) {
      int token[2] = {};
      float weight[2] = {};
      vf term[2] = {};
      for (int i = 0; i < PER_LANE<T> && r + i < n; i++) {
        token[i] = visits.token(b, first + r + i);
        weight[i] = w.weight[token[i]];
      }
      const bool pair = r + 1 < n;
      for (int j = 0; j < used; j += VL) {
        vf e[2] = {};
        for (int i = 0; i < PER_LANE<T>; i++) {
          if (i && !pair) break;
          const vf p = load(w.teacher + size_t(r + i) * block_ + j);
          const vf log_p_idx = load(w.index_s + size_t(r + i) * block_ + j) - set1(w.max[token[i]]);
          term[i] = fma(p, log2_of(p) - log_p_idx, term[i]);
          e[i] = (exp2_nonpositive<true>(log_p_idx) - p) * set1(weight[i]);
        }
        store_row(w.e_rows + size_t(r) * block_ + j, e[0]);
        if constexpr (PER_LANE<T> == 1) {
          store(w.e + size_t(r) * block_ + j, e[0]);
        } else {
          store_row(w.e_rows + size_t(r + 1) * block_ + j, e[1]);
          store_columns<T>(w.e + size_t(r) * block_, block_, j, e[0], e[1]);
        }
      }
      for (int i = 0; i < PER_LANE<T> && r + i < n; i++) w.term[token[i]] += hsum(term[i]) * LN2;
    }
    if (!wants_gradients()) return;
    NoPrefetch none;
    const auto row = [&](int r) -> const T* {
      if (r >= n) return nullptr;
      return (const T*)a_.index_q + ((c.row0 + visits.token(b, first + r)) * a_.kv_heads + head) * index_dim_;
    };
    pack_columns<T>(row, padded, KL_TOKENS, index_dim_, w.q_columns);
    outer<T>(w.e, block_, used, w.q_columns, index_dim_, KL_TOKENS, padded, w.dk, index_dim_);
    product<T>(w.e_rows, block_, n, index_keys_.by_columns(c.document, b, 0), index_dim_, index_dim_, block_, used, w.part,
               index_dim_, none);
    for (int r = 0; r < n; r++) {
      float* to = w.dq + size_t(visits.token(b, first + r)) * index_dim_;
      const float* from = w.part + size_t(r) * index_dim_;
      for (int d = 0; d < index_dim_; d += VL) store(to + d, load(to + d) + load(from + d));
    }
  }

  // The mean over the group's heads of the attention probabilities of a few tokens, [n][block].
  void teach(const Chunk& c, long head, const Visits& visits, long b, int first, int n, int used, float* out,
             const Work& w) const {
    const auto row = [&](int r) {
      const long token = c.row0 + visits.token(b, first + r / group_);
      return (const T*)a_.q + (token * a_.heads + head * group_ + r % group_) * dim_;
    };
    const int next = first + n, left = visits.count(b) - next;
    RowsAhead ahead(visits, b, next, left < step_tokens_ ? left : step_tokens_);
    if (left > 0)
      ahead.also((const T*)a_.q + (c.row0 * a_.heads + head * group_) * dim_, size_t(a_.heads) * dim_ * sizeof(T),
                 size_t(group_) * dim_ * sizeof(T));
    gather_rows<T>(row, n * group_, dim_, w.q);
    product<T>(w.q, dim_, n * group_, keys_.by_rows(c.document, b, head), block_, columns_of(used), dim_, dim_, w.s,
               block_, ahead);
    const vf scale = set1(a_.scale * LOG2E), share = set1(1.0f / float(group_));
    for (int i = 0; i < n; i++, out += block_) {
      const int token = visits.token(b, first + i);
      const float *lse = w.lse + size_t(token) * group_, *s = w.s + size_t(i) * group_ * block_;
      for (int j = 0; j < used; j += VL) {
        vf sum{};
        for (int g = 0; g < group_; g++)
          sum = sum + exp2_nonpositive<PER_LANE<T> == 1>(fma(load(s + size_t(g) * block_ + j), scale, set1(-lse[g])));
        store(out + j, sum * share);
      }
      for (int j = visits.visible(b, token); j < used; j++) out[j] = 0;
    }
  }

  void add(const Chunk& c, long head, long b, const Work& w) const {
    long row;
    const int n = grid_.block_rows(c.document, b, &row);
    const long rows = a_.documents.cu_seqlens[a_.documents.count];
    const vf scale = set1(a_.index_scale);
    float* to = a_.dindex_k + (head * rows + row) * index_dim_;
    for (long i = 0; i < long(n) * index_dim_; i += VL) store(to + i, fma(load(w.dk + i), scale, load(to + i)));
  }

  const ls_index_kl_args& a_;
  const int group_, dim_, index_dim_, block_, step_tokens_;
  Grid grid_;
  PackedBlocks<T> keys_, index_keys_;
  Turns turns_;
  float* terms_ = nullptr;
};

}  // namespace LS_NS
