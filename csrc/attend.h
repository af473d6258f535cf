// Softmax attention over a list of blocks: chosen ones (sparse) or all visible ones (dense). One block step serves both.
//
// Floor: 4 * D FLOPs per (query head, attended token). Loop order, chosen by measurement (docs/kernels.md): a tile of
// neighbouring tokens walks the union of their blocks in ascending order and, for each block, the tokens that chose it run
// together; their state (output, maximum, sum) stays in L2. The next block of the union is prefetched meanwhile, which matters
// more than the order. Every row meets its blocks in ascending order with the same arithmetic however tiles are cut.
//
// Dense rows keep one state per segment of 64 blocks and merge the segments in order, so that a decode step, which spreads
// segments over threads, gives the bits of prefill.
#pragma once

#include "parallel.h"
#include "tile.h"

namespace LS_NS {

constexpr int ATTEND_CHUNK = 24;     // rows per block step: scores, probabilities and a strip share L1
constexpr int ATTEND_CHUNK_PADDED = 32;
constexpr int ATTEND_SEGMENT = 64;   // blocks per dense segment
constexpr float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;

// Running softmax of `rows` rows: out [rows, D], max [rows] (base 2), sum [rows, VL] (per lane).
struct State {
  float *out, *max, *sum;
};

template <class T>
struct Attention {
  const ls_attention_args& a;
  const int group, dim, block;

  explicit Attention(const ls_attention_args& args)
      : a(args), group(int(args.heads / args.kv_heads)), dim(int(args.dim)), block(int(args.block)) {}

  size_t state_floats(size_t rows) const { return rows * (size_t(dim) + 16 + VL); }
  State state_at(float* p, size_t rows) const { return State{p, p + rows * dim, p + rows * dim + rows * 16}; }
  void clear(State s, size_t rows) const {
    memset(s.out, 0, rows * dim * sizeof(float));
    memset(s.sum, 0, rows * VL * sizeof(float));
    for (size_t r = 0; r < rows; r++) s.max[r] = NEG_INF;
  }

  size_t page_elements() const { return size_t(block) * dim; }
  const T* page(const void* pool, int32_t id, long head) const {
    return (const T*)pool + (size_t(id) * a.kv_heads + head) * page_elements();
  }

  // rows of q against the first `visible` tokens of one block; S and P are scratch of [ATTEND_CHUNK, block].
  void step(const A_of<T>* q, size_t ldq, int rows, State s, const T* k, const T* v, int visible, float* S, A_of<T>* P,
            NextBlock& next) const {
    const int k_width = strip_width(block), k_steps = dim / PER_LANE<T>;
    const int v_width = strip_width(dim), v_steps = visible / PER_LANE<T>;
    const int columns = (visible + k_width - 1) / k_width * k_width;
    for (int r0 = 0; r0 < rows; r0 += ATTEND_CHUNK) {
      const int n = rows - r0 < ATTEND_CHUNK ? rows - r0 : ATTEND_CHUNK;
      for (int s0 = 0; s0 < columns; s0 += k_width)
        strip<T, Out::Store>(q + r0 * ldq, ldq, n, (const uint32_t*)k + size_t(s0) * k_steps, k_width, k_steps, S + s0,
                             block, next);
      softmax(S, P, n, visible, columns, s, r0);
      for (int d0 = 0; d0 < dim; d0 += v_width) {
        const uint32_t* b = (const uint32_t*)v + size_t(d0) * (block / PER_LANE<T>);
        float* out = s.out + size_t(r0) * dim + d0;
        if (v_steps) strip<T, Out::Accumulate>(P, block, n, b, v_width, v_steps, out, dim, next);
        if (visible % PER_LANE<T>) {  // the last pair's second token does not exist yet: its slot may hold anything
          uint32_t pair[64];
          for (int i = 0; i < v_width; i++) pair[i] = b[size_t(v_steps) * v_width + i] & 0xffffu;
          strip<T, Out::Accumulate>(P + v_steps * PER_LANE<T>, block, n, pair, v_width, 1, out, dim, NoPrefetch{});
        }
      }
    }
  }

  // Scores S of rows [row, row + n) to unnormalised probabilities P, updating maxima and sums. Outputs are rescaled only when
  // a row's maximum grew.
  void softmax(float* S, A_of<T>* P, int n, int visible, int columns, State s, int row) const {
    const float c = a.scale * LOG2E;
    float lane_max[ATTEND_CHUNK_PADDED * VL], top[ATTEND_CHUNK_PADDED];
    for (int r = 0; r < n; r++) {
      float* x = S + r * block;
      for (int j = visible; j < columns; j++) x[j] = NEG_INF;
      vf m = load(x);
      for (int j = VL; j < columns; j += VL) m = vmax(m, load(x + j));
      store(lane_max + r * VL, m);
    }
    for (int r = n; r % 16; r++) store(lane_max + r * VL, set1(NEG_INF));
    for (int r = 0; r < n; r += 16) max_of_rows(lane_max + r * VL, top + r);
    for (int r = 0; r < n; r++) {
      const float grown = top[r] * c;
      float& max = s.max[row + r];
      vf sum = load(s.sum + size_t(row + r) * VL);
      if (grown > max) {
        if (max > NEG_INF) {
          const vf w = exp2_nonpositive<true>(set1(max - grown));
          float* out = s.out + size_t(row + r) * dim;
          for (int d = 0; d < dim; d += VL) store(out + d, load(out + d) * w);
          sum = sum * w;
        }
        max = grown;
      }
      const vf scale = set1(c), offset = set1(-max);
      for (int j = 0; j < columns; j += VL) {
        const vf p = exp2_nonpositive<PER_LANE<T> == 1>(fma(load(S + r * block + j), scale, offset));
        sum = sum + p;
        store_row(P + r * block + j, p);
      }
      store(s.sum + size_t(row + r) * VL, sum);
    }
  }

  // total = total merged with part (log-sum-exp weights); `part` rows that saw nothing change nothing.
  void merge(State total, State part, int rows) const {
    for (int r = 0; r < rows; r++) {
      if (part.max[r] == NEG_INF) continue;
      const float m = total.max[r] > part.max[r] ? total.max[r] : part.max[r];
      const vf w0 = set1(exp2_nonpositive(total.max[r] - m)), w1 = set1(exp2_nonpositive(part.max[r] - m));
      total.max[r] = m;
      float *o = total.out + size_t(r) * dim, *p = part.out + size_t(r) * dim;
      for (int d = 0; d < dim; d += VL) store(o + d, fma(load(p + d), w1, load(o + d) * w0));
      float *so = total.sum + size_t(r) * VL, *sp = part.sum + size_t(r) * VL;
      store(so, fma(load(sp), w1, load(so) * w0));
    }
  }

  // Rows of the tile to the output; rows are [token, group] of tokens token0.. and one kv head.
  void finish(State s, int tokens, long token0, long kv_head) const {
    for (int r = 0; r < tokens * group; r++) {
      const long at = (token0 + r / group) * a.heads + kv_head * group + r % group;
      const float sum = hsum(load(s.sum + size_t(r) * VL));
      const bool any = s.max[r] > NEG_INF && sum > 0;
      const vf w = set1(any ? 1.0f / sum : 0.0f);
      for (int d = 0; d < dim; d += VL) store_row((T*)a.out + at * dim + d, load(s.out + size_t(r) * dim + d) * w);
      if (a.lse) a.lse[at] = any ? (s.max[r] + log2f(sum)) * LN2 : NEG_INF;
    }
  }

  struct Tile {
    long sequence, token0;  // token0: row of the packed batch
    int tokens;
    long position;  // of the first token
  };

  size_t scratch_bytes(int tokens, bool with_total) const {
    const size_t rows = size_t(tokens) * group;
    return Scratch::padded<A_of<T>>(rows * dim) + Scratch::padded<float>(size_t(ATTEND_CHUNK) * block) +
           Scratch::padded<A_of<T>>(size_t(ATTEND_CHUNK) * block) + Scratch::padded<int32_t>(tokens) +
           Scratch::padded<float>(state_floats(rows)) * (with_total ? 2 : 1);
  }

  struct Work {
    A_of<T>* q;
    float* S;
    A_of<T>* P;
    int32_t* cursor;
    State state;
  };

  Work prepare(const Tile& t, long kv_head) const {
    const size_t rows = size_t(t.tokens) * group;
    Work w;
    w.q = scratch.take<A_of<T>>(rows * dim);
    w.S = scratch.take<float>(size_t(ATTEND_CHUNK) * block);
    w.P = scratch.take<A_of<T>>(size_t(ATTEND_CHUNK) * block);
    w.cursor = scratch.take<int32_t>(t.tokens);
    w.state = state_at(scratch.take<float>(state_floats(rows)), rows);
    for (int i = 0; i < t.tokens; i++) {
      const T* q = (const T*)a.q + ((t.token0 + i) * a.heads + kv_head * group) * dim;
      A_of<T>* to = w.q + size_t(i) * group * dim;
      if constexpr (sizeof(A_of<T>) == sizeof(T))
        memcpy(to, q, size_t(group) * dim * sizeof(T));
      else
        for (int j = 0; j < group * dim; j += VL) store((float*)to + j, load_row(q + j));
    }
    clear(w.state, rows);
    return w;
  }

  // Tokens [i0, i1) of the tile, all of which see `visible` tokens of the block.
  void run(const Work& w, int i0, int i1, int32_t page_id, long kv_head, int visible, NextBlock& next) const {
    const size_t r = size_t(i0) * group;
    const State s{w.state.out + r * dim, w.state.max + r, w.state.sum + r * VL};
    step(w.q + r * dim, dim, (i1 - i0) * group, s, page(a.k, page_id, kv_head), page(a.v, page_id, kv_head), visible,
         w.S, w.P, next);
  }

  NextBlock lookahead(int32_t page_id, long kv_head) const {
    return NextBlock(page(a.k, page_id, kv_head), page(a.v, page_id, kv_head), page_elements() * sizeof(T));
  }

  int sparse_tile(const Tile& t, long kv_head) const {
    if (!scratch.reserve(scratch_bytes(t.tokens, false))) return OUT_OF_MEMORY;
    const Work w = prepare(t, kv_head);
    const int32_t* pages = a.batch.block_table + t.sequence * a.batch.max_blocks;
    constexpr int32_t END = INT32_MAX;
    const auto ids = [&](int i) { return a.ids + ((t.token0 + i) * a.kv_heads + kv_head) * a.topk; };
    const auto head = [&](int i) {
      const int32_t c = w.cursor[i];
      const int32_t id = c < a.topk ? ids(i)[c] : -1;
      return id < 0 ? END : id;
    };
    int32_t next = END;
    for (int i = 0; i < t.tokens; i++) {
      w.cursor[i] = 0;
      next = head(i) < next ? head(i) : next;
    }
    while (next != END) {
      const int32_t now = next;
      next = END;
      // One look over the tile: who is at this block, and which block comes after it.
      for (int i = 0; i < t.tokens; i++) {
        const int32_t* list = ids(i);
        int32_t c = w.cursor[i], id = c < a.topk ? list[c] : -1;
        if (id == now) id = c + 1 < a.topk ? list[c + 1] : -1;
        if (id >= 0 && id < next) next = id;
      }
      NextBlock ahead = next == END ? NextBlock() : lookahead(pages[next], kv_head);
      for (int i = 0; i < t.tokens;) {
        if (head(i) != now) {
          i++;
          continue;
        }
        const auto visible = [&](int j) {
          const long n = t.position + j + 1 - long(now) * block;
          return int(n < block ? n : block);
        };
        const int seen = visible(i);
        int j = i + 1;
        w.cursor[i]++;
        while (j < t.tokens && head(j) == now && visible(j) == seen) w.cursor[j++]++;
        if (seen > 0) run(w, i, j, pages[now], kv_head, seen, ahead);
        i = j;
      }
    }
    finish(w.state, t.tokens, t.token0, kv_head);
    return 0;
  }

  // Blocks [b0, b1) of a dense tile into w.state.
  void dense_blocks(const Tile& t, const Work& w, long kv_head, long b0, long b1) const {
    const int32_t* pages = a.batch.block_table + t.sequence * a.batch.max_blocks;
    for (long b = b0; b < b1; b++) {
      NextBlock ahead = b + 1 < b1 ? lookahead(pages[b + 1], kv_head) : NextBlock();
      const long first_seeing = b * block - t.position, first_full = first_seeing + block - 1;  // token offsets
      const int full = int(first_full < 0 ? 0 : first_full > t.tokens ? t.tokens : first_full);
      if (full < t.tokens) run(w, full, t.tokens, pages[b], kv_head, block, ahead);
      for (int i = int(first_seeing < 0 ? 0 : first_seeing); i < full; i++)
        run(w, i, i + 1, pages[b], kv_head, int(t.position + i + 1 - b * block), ahead);
    }
  }

  int dense_tile(const Tile& t, long kv_head) const {
    if (!scratch.reserve(scratch_bytes(t.tokens, true))) return OUT_OF_MEMORY;
    const Work w = prepare(t, kv_head);
    const int rows = t.tokens * group;
    const State total = state_at(scratch.take<float>(state_floats(rows)), rows);
    clear(total, rows);
    const long last = t.position + t.tokens - 1, blocks = last >= 0 ? last / block + 1 : 0;
    for (long b0 = 0; b0 < blocks; b0 += ATTEND_SEGMENT) {
      if (b0) clear(w.state, rows);
      dense_blocks(t, w, kv_head, b0, b0 + ATTEND_SEGMENT < blocks ? b0 + ATTEND_SEGMENT : blocks);
      merge(total, w.state, rows);
    }
    finish(total, t.tokens, t.token0, kv_head);
    return 0;
  }

  int run_all() const {
    // Tile sizes: state of 256 rows and D 128 is 128 KiB; dense keeps two. Small groups need more tokens to fill a row tile.
    const int tile_rows = a.ids ? 512 : 256;
    const int tile_tokens = tile_rows / group > 0 ? tile_rows / group : 1;
    long tiles = 0, longest = 0;
    for (long s = 0; s < a.batch.sequences; s++) {
      tiles += (a.batch.cu_seqlens[s + 1] - a.batch.cu_seqlens[s] + tile_tokens - 1) / tile_tokens;
      longest = a.batch.kv_lens[s] > longest ? a.batch.kv_lens[s] : longest;
    }
    if (!tiles) return 0;
    if (a.ids && !selection_is_sound()) return LS_BAD_SELECTION;
    Tile* tile = (Tile*)malloc(size_t(tiles) * sizeof(Tile));
    if (!tile) return OUT_OF_MEMORY;
    long n = 0;
    for (long s = 0; s < a.batch.sequences; s++) {
      const long begin = a.batch.cu_seqlens[s], end = a.batch.cu_seqlens[s + 1];
      for (long t0 = begin; t0 < end; t0 += tile_tokens)
        tile[n++] = Tile{s, t0, int(t0 + tile_tokens < end ? tile_tokens : end - t0), a.batch.kv_lens[s] - end + t0};
    }
    const long segments = (longest + long(ATTEND_SEGMENT) * block - 1) / (long(ATTEND_SEGMENT) * block);
    // Head by head: threads then share one head's keys and values in the outer cache.
    int status;
    if (a.ids) {
      status = parallel_for(n * a.kv_heads, a.threads, [&](long item) {
        return sparse_tile(tile[n - 1 - item % n], item / n);
      });
    } else if (a.threads > 1 && segments > 1 && n * a.kv_heads < 8L * a.threads) {
      status = dense_split(tile, n, segments);
    } else {
      status = parallel_for(n * a.kv_heads, a.threads, [&](long item) {
        return dense_tile(tile[n - 1 - item % n], item / n);
      });
    }
    free(tile);
    return status;
  }

  // Each list is walked once, in order: ids must ascend, -1 padding last, none past the row's own block.
  bool selection_is_sound() const {
    for (long s = 0; s < a.batch.sequences; s++) {
      const long begin = a.batch.cu_seqlens[s], end = a.batch.cu_seqlens[s + 1];
      for (long t = begin; t < end; t++) {
        const long position = a.batch.kv_lens[s] - end + t, own = position >= 0 ? position / block : -1;
        for (long g = 0; g < a.kv_heads; g++) {
          const int32_t* id = a.ids + (t * a.kv_heads + g) * a.topk;
          long n = 0;
          for (int32_t before = -1; n < a.topk && id[n] >= 0; before = id[n++])
            if (id[n] <= before || id[n] > own) return false;
          for (; n < a.topk; n++)
            if (id[n] != -1) return false;
        }
      }
    }
    return true;
  }

  // Few tiles (decode, verification): segments are items of their own, merged afterwards in order.
  int dense_split(const Tile* tile, long n, long segments) const {
    size_t* offset = (size_t*)malloc(size_t(n) * sizeof(size_t));
    size_t floats = 0;
    for (long i = 0; offset && i < n; i++) {
      offset[i] = floats;
      floats += state_floats(size_t(tile[i].tokens) * group) * a.kv_heads * segments;
    }
    float* partial = offset ? (float*)aligned_alloc(64, (floats * 4 + 63) / 64 * 64) : nullptr;
    if (!partial) {
      free(offset);
      return OUT_OF_MEMORY;
    }
    const auto state_of = [&](long i, long kv_head, long segment) {
      const size_t rows = size_t(tile[i].tokens) * group;
      return state_at(partial + offset[i] + state_floats(rows) * (kv_head * segments + segment), rows);
    };
    int status = parallel_for(n * a.kv_heads * segments, a.threads, [&](long item) -> int {
      const long i = item / (a.kv_heads * segments), kv_head = item / segments % a.kv_heads, segment = item % segments;
      const Tile& t = tile[i];
      const long last = t.position + t.tokens - 1, blocks = last >= 0 ? last / block + 1 : 0;
      const long b0 = segment * ATTEND_SEGMENT, b1 = b0 + ATTEND_SEGMENT < blocks ? b0 + ATTEND_SEGMENT : blocks;
      if (b0 >= b1) return 0;
      if (!scratch.reserve(scratch_bytes(t.tokens, false))) return OUT_OF_MEMORY;
      Work w = prepare(t, kv_head);
      w.state = state_of(i, kv_head, segment);
      clear(w.state, size_t(t.tokens) * group);
      dense_blocks(t, w, kv_head, b0, b1);
      return 0;
    });
    if (!status)
      status = parallel_for(n * a.kv_heads, a.threads, [&](long item) -> int {
        const Tile& t = tile[item / a.kv_heads];
        const int rows = t.tokens * group;
        if (!scratch.reserve(Scratch::padded<float>(state_floats(rows)))) return OUT_OF_MEMORY;
        const State total = state_at(scratch.take<float>(state_floats(rows)), rows);
        clear(total, rows);
        const long last = t.position + t.tokens - 1, blocks = last >= 0 ? last / block + 1 : 0;
        for (long b0 = 0; b0 < blocks; b0 += ATTEND_SEGMENT)
          merge(total, state_of(item / a.kv_heads, item % a.kv_heads, b0 / ATTEND_SEGMENT), rows);
        finish(total, t.tokens, t.token0, item % a.kv_heads);
        return 0;
      });
    free(partial);
    free(offset);
    return status;
  }
};

}  // namespace LS_NS
