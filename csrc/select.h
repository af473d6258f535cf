// Index scan fused with exact top-k (the contract is docs/selection.md).
//
// Floor: 2 * dim FLOPs per (row, visible key); keys stream through L1 once per tile of ~512 rows, so prefill is bound by the
// dot-product instruction and decode by memory. Forced blocks (the most recent and the first ones) are never scored, so no
// scored block is ever partial and nothing past a sequence's end is read. Scores live in a panel of 8 blocks x tile rows.
//
// The chosen set depends on the total order (score descending, id ascending) alone: any split over tiles, key segments or
// threads gives the same ids, and so does a first reading of 8-bit copies (screen.h) that leaves few blocks to score.
#pragma once

#include "screen.h"

namespace LS_NS {

constexpr int SELECT_ROWS = 480;  // rows of a tile: A fits L2 beside the streaming keys; a multiple of 48
constexpr int SELECT_GROUP = 48;  // rows between two horizontal reductions
constexpr int SELECT_PANEL = 8;   // blocks scored between two looks at the thresholds
constexpr int SCREEN_PANEL = 16;  // the same for estimates: the midranges of so many pages make one strip
constexpr int SCREEN_CHUNK = 1024;         // blocks screened, then rescored, at a time: 2 MB of upper bounds
constexpr size_t MAX_UPPERS = 4ul << 20;   // upper bounds of tiles that several threads share; 16 MiB
// Where keys are such that the codes rule out little (many blocks with the same score), screening is paused for so many
// calls, twice as many each time it happens again.
constexpr int64_t FIRST_PAUSE = 32, LONGEST_PAUSE = 4096;

// A row's best blocks so far, best first; unused entries are -inf. `kept` entries count, `padded` are stored.
struct TopList {
  float* score;
  int32_t* id;
};

LS_INLINE void insert(TopList list, int kept, int padded, float score, int32_t id) {
#if defined(__AVX512F__)
  if (padded == 16) {
    const __m512 s = _mm512_load_ps(list.score);
    const __m512i i = _mm512_load_si512(list.id);
    const int at = __builtin_popcount(_mm512_cmp_ps_mask(s, _mm512_set1_ps(score), _CMP_GE_OQ));
    const __mmask16 others = __mmask16(~(1u << at));
    _mm512_store_ps(list.score, _mm512_mask_expand_ps(_mm512_set1_ps(score), others, s));
    _mm512_store_si512(list.id, _mm512_mask_expand_epi32(_mm512_set1_epi32(id), others, i));
    return;
  }
#endif
  (void)padded;
  int at = kept - 1;  // the last kept entry is the one that leaves
  for (; at > 0 && list.score[at - 1] < score; at--) {
    list.score[at] = list.score[at - 1];
    list.id[at] = list.id[at - 1];
  }
  list.score[at] = score;
  list.id[at] = id;
}

// The row's final ids: forced blocks and the chosen ones, ascending, then -1.
inline void finish_row(const ls_select_args& a, long position, TopList list, int kept, int32_t* out) {
  int n = 0;
  if (position >= 0) {
    const long own = position / a.block;
    if (own + 1 <= a.topk) {
      for (; n <= own; n++) out[n] = n;
    } else {
      for (; n < a.init_blocks; n++) out[n] = n;
      for (int i = 0; i < kept && list.score[i] > NEG_INF; i++) {
        int at = n++;
        for (; at > a.init_blocks && out[at - 1] > list.id[i]; at--) out[at] = out[at - 1];
        out[at] = list.id[i];
      }
      for (long b = own - a.local_blocks + 1; b <= own; b++) out[n++] = int32_t(b);
    }
  }
  for (; n < a.topk; n++) out[n] = -1;
}

// Rows [first_row, first_row + rows) of one sequence (row = token * groups + group).
struct SelectTile {
  long sequence, first_row, rows;  // first_row: in the packed batch
  long position;                   // of the first row's token
  long segments;                   // parts of the keys that threads take on their own
  size_t partial;                  // this tile's first row in the segments' lists, when there are several
  bool screened;                   // by 8-bit codes first
  size_t uppers, bars;             // its upper bounds and its rows' bars, when screened and segments > 1
};

// Which blocks each row of a tile chooses among.
struct Candidates {
  int rows, rows16;
  int32_t* limit;  // [rows16]; blocks below this one; limits ascend with the position

  Candidates(const ls_select_args& a, const SelectTile& t, Scratch& from)
      : rows(int(t.rows)), rows16((rows + 15) / 16 * 16), limit(from.take<int32_t>(rows16)) {
    for (int r = 0; r < rows16; r++) {
      const long p = t.position + r / a.groups, own = p >= 0 ? p / a.block : -1;
      limit[r] = r < rows && own + 1 > a.topk ? int32_t(own + 1 - a.local_blocks) : 0;
    }
  }
  static size_t bytes(int rows16) { return Scratch::padded<int32_t>(rows16); }

  // The first row of the first group of SELECT_GROUP with a candidate from block b on.
  int group_from(long b) const {
    int first = 0;
    while (first < rows && limit[first] <= b) first++;
    return first / SELECT_GROUP * SELECT_GROUP;
  }
};

// A tile's lists, and for each row the score that a further block must exceed.
struct Best {
  int kept, padded;
  float* threshold;
  float* score;
  int32_t* id;

  // The lists lie in `lists_score`, or in scratch if that is null.
  Best(int kept_, int padded_, int rows, int rows16, Scratch& from, float* lists_score = nullptr,
       int32_t* lists_id = nullptr)
      : kept(kept_), padded(padded_), threshold(from.take<float>(rows16)) {
    score = lists_score ? lists_score : from.take<float>(size_t(rows16) * padded);
    id = lists_score ? lists_id : from.take<int32_t>(size_t(rows16) * padded);
    for (long i = 0; i < long(rows) * padded; i++) score[i] = NEG_INF, id[i] = -1;
    for (int r = 0; r < rows16; r++) threshold[r] = NEG_INF;
  }
  static size_t bytes(int rows16, int padded, bool own_lists) {
    return Scratch::padded<float>(rows16) + (own_lists ? 2 * Scratch::padded<float>(size_t(rows16) * padded) : 0);
  }

  LS_INLINE TopList list(int row) const { return {score + size_t(row) * padded, id + size_t(row) * padded}; }
  LS_INLINE void offer(int row, float s, int32_t block) {
    insert(list(row), kept, padded, s, block);
    const float last = score[size_t(row) * padded + kept - 1];
    threshold[row] = last > threshold[row] ? last : threshold[row];
  }

  // Segments tell each other what is out of reach. What a floor is, is a lower bound of the row's last place in the
  // end, so it may be old or lost; just below a score, because an equal one of a lower id comes before it.
  void start_from(const float* floors, int rows) {
    for (int r = 0; r < rows; r++) __atomic_load(floors + r, threshold + r, __ATOMIC_RELAXED);
  }
  void raise(float* floors, int rows) const {
    for (int r = 0; r < rows; r++) {
      float floor = nextafterf(threshold[r], NEG_INF);
      if (floor > floors[r]) __atomic_store(floors + r, &floor, __ATOMIC_RELAXED);
    }
  }
};

// The score of `n` rows for each block of a page, its maximum over the block's keys: out[0, n), room for 16 more.
template <class T, class Ahead>
LS_INLINE void block_maxima(const A_of<T>* q, size_t lda, int n, const uint32_t* page, int width, int strips, int steps,
                            float* lane_max, float* out, const Ahead& ahead) {
  for (int s = 0; s < strips; s++) {
    const uint32_t* at = page + size_t(s) * width * steps;
    if (s == 0)
      strip<T, Out::MaxFirst>(q, lda, n, at, width, steps, lane_max, VL, ahead(s));
    else
      strip<T, Out::Max>(q, lda, n, at, width, steps, lane_max, VL, ahead(s));
  }
  for (int r = 0; r < n; r += 16) max_of_rows(lane_max + r * VL, out + r);
}

// One call: rows in tiles, their blocks in segments where there are too few tiles for the threads.
template <class T>
class Selection {
 public:
  explicit Selection(const ls_select_args& a)
      : a_(a),
        kept_(int(a.topk - a.local_blocks - a.init_blocks)),
        padded_(kept_ > 0 ? (kept_ + 15) / 16 * 16 : 16),
        dim_(int(a.dim)),
        width_(strip_width(int(a.block))),
        strips_(int(a.block) / width_),
        page_lanes_(size_t(a.block) * a.dim / PER_LANE<T>) {}
  Selection(const Selection&) = delete;
  ~Selection() { free(tiles_), free(list_score_), free(list_id_), free(uppers_), free(bars_), free(floors_); }

  int run() {
    if (!plan()) return OUT_OF_MEMORY;
    int status = each([&](const SelectTile& t, long segment) { return read(t, segment); });
#if LS_SCREEN  // not `if constexpr` alone: compilers look names up in the branch not taken
    if constexpr (SCREENS)
      if (bar_count_) {
        if (!status) status = parallel_for(count_, a_.threads, [&](long i) { return this->set_bars(tiles_[i]); });
        if (!status) status = each([&](const SelectTile& t, long segment) { return this->rescore(t, segment); });
      }
#endif
    if (!status && list_rows_) status = parallel_for(count_, a_.threads, [&](long i) { return merge(tiles_[i]); });
    if (SCREENS && a_.codes)
      for (int many = 0; many < 2; many++) judge(many);
    return status;
  }

 private:
  static constexpr bool SCREENS = HAS_SCREEN && PER_LANE<T> == 2;

  // Tiles of SELECT_ROWS at most and of equal height, as many as the threads share evenly; whole register tiles of rows.
  static long tile_tokens(long tokens, long groups, long threads) {
    const long most = SELECT_ROWS / groups > 0 ? SELECT_ROWS / groups : 1;
    long tiles = (tokens + most - 1) / most;
    if (tiles > 1) tiles = (tiles + threads - 1) / threads * threads;
    if (tiles < 2) return tokens ? tokens : 1;
    long step = 1;
    while (step * groups % (2 * MR)) step++;
    const long even = ((tokens + tiles - 1) / tiles + step - 1) / step * step;
    return even < most ? even : most;
  }

  bool plan() {
    const long sequences = a_.batch.sequences;
    const auto tokens_of = [&](long s) { return long(a_.batch.cu_seqlens[s + 1]) - a_.batch.cu_seqlens[s]; };
    long tiles = 0;
    for (long s = 0; s < sequences; s++) {
      const long each = tile_tokens(tokens_of(s), a_.groups, a_.threads);
      tiles += (tokens_of(s) + each - 1) / each;
    }
    if (!tiles) return true;
    tiles_ = (SelectTile*)malloc(size_t(tiles) * sizeof(SelectTile));
    if (!tiles_) return false;
    const long wanted = (32L * a_.threads + tiles - 1) / tiles;
    for (long s = 0; s < sequences; s++) {
      const long begin = a_.batch.cu_seqlens[s], end = a_.batch.cu_seqlens[s + 1];
      const long each = tile_tokens(end - begin, a_.groups, a_.threads);
      for (long t0 = begin; t0 < end; t0 += each) {
        const long t1 = t0 + each < end ? t0 + each : end;
        SelectTile t{s, t0 * a_.groups, (t1 - t0) * a_.groups, a_.batch.kv_lens[s] - end + t0, 1, 0, false, 0, 0};
        const long blocks = visible(t);
        t.segments = a_.threads > 1 ? blocks / 64 : 1;
        t.segments = t.segments < 1 ? 1 : t.segments > wanted ? wanted : t.segments;
        const bool many = t.rows > 2 * MR;
        t.screened = SCREENS && a_.codes && kept_ > 0 && blocks >= (many ? a_.screen_rows_from : a_.screen_from);
        if (t.screened && a_.pauses[2 * many] > 0) {
          t.screened = false;
          paused_[many] = true;
        }
        const size_t uppers = size_t((t.rows + 15) / 16 * 16) * blocks;
        if (t.screened && t.segments > 1 && (tiles >= 4 * a_.threads || upper_count_ + uppers > MAX_UPPERS))
          t.segments = 1;
        if (t.segments > 1) {
          t.partial = list_rows_;
          list_rows_ += t.segments * t.rows;
          if (t.screened) {
            t.uppers = upper_count_;
            upper_count_ += uppers;
            t.bars = bar_count_;
            bar_count_ += (t.rows + 15) / 16 * 16;
          }
        }
        max_segments_ = t.segments > max_segments_ ? t.segments : max_segments_;
        tiles_[count_++] = t;
      }
    }
    if (list_rows_ && reserve(floors_, list_rows_))
      for (size_t r = 0; r < list_rows_; r++) floors_[r] = NEG_INF;
    return (!list_rows_ || (floors_ && reserve(list_score_, list_rows_ * padded_) && reserve(list_id_, list_rows_ * padded_))) &&
           (!bar_count_ || (reserve(uppers_, upper_count_) && reserve(bars_, bar_count_)));
  }

  // Whether screening paid in this call: pairs of row and block that were scored after all against all there were.
  void judge(int many) {
    int64_t *left = a_.pauses + 2 * many, *length = left + 1;
    if (paused_[many]) {
      --*left;
    } else if (screened_[many]) {
      const bool pays = scored_[many] * 3 < screened_[many];
      *length = pays ? 0 : *length < FIRST_PAUSE ? FIRST_PAUSE : *length < LONGEST_PAUSE ? 2 * *length : LONGEST_PAUSE;
      *left = *length;
    }
  }

  template <class N>
  static bool reserve(N*& p, size_t count) {
    p = (N*)aligned_alloc(64, (count * sizeof(N) + 63) / 64 * 64);
    return p != nullptr;
  }

  template <class Body>
  int each(const Body& body) {
    return parallel_for(count_ * max_segments_, a_.threads, [&](long item) -> int {
      const SelectTile& t = tiles_[count_ - 1 - item / max_segments_];  // the longest contexts first
      const long segment = item % max_segments_;
      return segment < t.segments ? body(t, segment) : 0;
    });
  }

  // Blocks that the tile's last row sees.
  long visible(const SelectTile& t) const {
    const long last = t.position + t.rows / a_.groups - 1;
    return last >= 0 ? last / a_.block + 1 : 0;
  }
  // The first block of a segment: forced blocks are left out. `segment` == segments gives the end.
  long first_block(const SelectTile& t, long segment) const {
    const long blocks = visible(t);
    const long span = kept_ > 0 && blocks > a_.topk ? blocks - a_.local_blocks - a_.init_blocks : 0;
    return a_.init_blocks + span * segment / t.segments;
  }
  size_t page_of(const SelectTile& t, long block) const {
    return size_t(a_.batch.block_table[t.sequence * a_.batch.max_blocks + block]);
  }
  const uint32_t* keys_of(const SelectTile& t, long block) const {
    return (const uint32_t*)a_.index_k + page_of(t, block) * page_lanes_;
  }
  const T* queries_of(const SelectTile& t) const { return (const T*)a_.index_q + t.first_row * dim_; }
  // A segment's lists of a tile, or null where a tile has no segments.
  float* scores_of(const SelectTile& t, long segment) const {
    return t.segments > 1 ? list_score_ + (t.partial + segment * t.rows) * padded_ : nullptr;
  }
  int32_t* ids_of(const SelectTile& t, long segment) const {
    return t.segments > 1 ? list_id_ + (t.partial + segment * t.rows) * padded_ : nullptr;
  }

  int read(const SelectTile& t, long segment) {
#if LS_SCREEN
    if constexpr (SCREENS)
      if (t.screened) return t.segments > 1 ? this->screen(t, segment) : this->screen_and_rescore(t);
#endif
    return scan(t, segment);
  }

  void finish(const SelectTile& t, const Best& best) {
    for (long r = 0; r < t.rows; r++)
      finish_row(a_, t.position + r / a_.groups, best.list(int(r)), kept_, a_.ids + (t.first_row + r) * a_.topk);
  }

  // Scores every block.
  int scan(const SelectTile& t, long segment) {
    const int rows = int(t.rows), rows16 = (rows + 15) / 16 * 16, steps = dim_ / PER_LANE<T>;
    const size_t operand = sizeof(A_of<T>) == sizeof(T) ? 0 : size_t(rows) * dim_;
    if (!scratch.reserve(Scratch::padded<A_of<T>>(operand) + Scratch::padded<float>(SELECT_GROUP * VL) +
                         Scratch::padded<float>(size_t(SELECT_PANEL) * rows16) + Candidates::bytes(rows16) +
                         Best::bytes(rows16, padded_, t.segments == 1)))
      return OUT_OF_MEMORY;
    A_of<T>* widened = scratch.take<A_of<T>>(operand);
    float* lane_max = lane_maxima();
    float* panel = scratch.take<float>(size_t(SELECT_PANEL) * rows16);
    const Candidates candidates(a_, t, scratch);
    Best best(kept_, padded_, rows, rows16, scratch, scores_of(t, segment), ids_of(t, segment));
    if (t.segments > 1) best.start_from(floors_ + t.partial, rows);
    size_t lda;
    const A_of<T>* q = operand_rows<T>(queries_of(t), dim_, rows, dim_, widened, &lda);
    const bool few = rows <= 2 * MR;  // memory-bound: fetch a strip ahead, across page borders

    const long b0 = first_block(t, segment), b1 = first_block(t, segment + 1);
    for (long p0 = b0; p0 < b1; p0 += SELECT_PANEL) {
      const int blocks = int(b1 - p0 < SELECT_PANEL ? b1 - p0 : SELECT_PANEL), group0 = candidates.group_from(p0);
      for (int i = 0; i < blocks; i++) {
        const uint32_t* page = keys_of(t, p0 + i);
        const uint32_t* next = p0 + i + 1 < b1 ? keys_of(t, p0 + i + 1) : page;
        const auto ahead = [&](int s) {
          return Stream{!few ? nullptr : (const char*)(s + 1 < strips_ ? page + size_t(s + 1) * width_ * steps : next)};
        };
        for (int g = group0; g < rows; g += SELECT_GROUP) {
          const int n = rows - g < SELECT_GROUP ? rows - g : SELECT_GROUP;
          block_maxima<T>(q + g * lda, lda, n, page, width_, strips_, steps, lane_max, panel + size_t(i) * rows16 + g,
                          ahead);
        }
      }
      for (int r0 = group0; r0 < rows16; r0 += 16)
        for (int i = 0; i < blocks; i++) {
          const float* s = panel + size_t(i) * rows16 + r0;
          const int32_t b = int32_t(p0 + i);
#if defined(__AVX512F__)
          uint32_t better =
              _mm512_cmp_ps_mask(_mm512_loadu_ps(s), _mm512_loadu_ps(best.threshold + r0), _CMP_GT_OQ) &
              _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(candidates.limit + r0), _mm512_set1_epi32(b));
#else
          uint32_t better = 0;
          for (int r = 0; r < 16; r++)
            better |= uint32_t(s[r] > best.threshold[r0 + r] && candidates.limit[r0 + r] > b) << r;
#endif
          for (; better; better &= better - 1) {
            const int r = __builtin_ctz(better);
            best.offer(r0 + r, s[r], b);
          }
        }
    }
    if (t.segments == 1)
      finish(t, best);
    else
      best.raise(floors_ + t.partial, rows);
    return 0;
  }

  float* lane_maxima() {
    float* lane_max = scratch.take<float>(SELECT_GROUP * VL);
    for (int i = 0; i < SELECT_GROUP * VL; i++) lane_max[i] = 0;
    return lane_max;
  }

  // Merges the segments' lists of each row into the first one.
  TopList merged(const SelectTile& t, long row) const {
    const TopList all{scores_of(t, 0) + row * padded_, ids_of(t, 0) + row * padded_};
    for (long s = 1; s < t.segments; s++) {
      const float* score = scores_of(t, s) + row * padded_;
      const int32_t* id = ids_of(t, s) + row * padded_;
      for (int i = 0; i < kept_ && score[i] > all.score[kept_ - 1]; i++) insert(all, kept_, padded_, score[i], id[i]);
    }
    return all;
  }
  int merge(const SelectTile& t) {
    if (t.segments == 1) return 0;
    for (long r = 0; r < t.rows; r++)
      finish_row(a_, t.position + r / a_.groups, merged(t, r), kept_, a_.ids + (t.first_row + r) * a_.topk);
    return 0;
  }

#if LS_SCREEN
  // --- Two readings: estimates from 8-bit codes, then exact scores of what they leave. ---

  // What estimates need of a tile: its rows' codes, and room for the midranges of a panel and their products.
  struct Screen {
    Candidates candidates;
    RowCodes codes;
    float* lane_max;
    float* panel;       // [SCREEN_PANEL][rows16]
    uint32_t* middles;  // [dim / 2][SCREEN_PANEL]
    float* products;    // [rows16][SCREEN_PANEL]
  };
  static size_t screen_bytes(int rows, int rows16, int dim) {
    return Candidates::bytes(rows16) + RowCodes::bytes(rows, rows16, dim) +
           Scratch::padded<float>(SELECT_GROUP * VL) + 2 * Scratch::padded<float>(size_t(SCREEN_PANEL) * rows16) +
           Scratch::padded<uint32_t>(size_t(dim) / 2 * SCREEN_PANEL);
  }
  Screen prepare(const SelectTile& t, int rows16) {
    const Candidates candidates(a_, t, scratch);
    const RowCodes codes(queries_of(t), int(t.rows), rows16, dim_, scratch);
    float* lane_max = lane_maxima();
    float* panel = scratch.take<float>(size_t(SCREEN_PANEL) * rows16);
    float* products = scratch.take<float>(size_t(SCREEN_PANEL) * rows16);
    uint32_t* middles = scratch.take<uint32_t>(size_t(dim_) / 2 * SCREEN_PANEL);
    memset(middles, 0, size_t(dim_) / 2 * SCREEN_PANEL * 4);
    memset(products, 0, size_t(SCREEN_PANEL) * rows16 * 4);
    return {candidates, codes, lane_max, panel, middles, products};
  }

  PageCodes codes_of(const SelectTile& t, long block) const {
    return PageCodes(a_.codes, page_of(t, block), a_.block, a_.dim);
  }

  // Products of the rows and the midranges of the blocks [p0, p0 + blocks), w.products[row][block - p0].
  void multiply_many(const SelectTile& t, const Screen& w, long p0, int blocks, int first_row) const {
    for (int i = 0; i < blocks; i++) {
      const uint16_t* middle = codes_of(t, p0 + i).middle;
      for (int d = 0; d < dim_ / 2; d++) memcpy(&w.middles[d * SCREEN_PANEL + i], middle + 2 * d, 4);
    }
    strip<T, Out::Store>(queries_of(t) + size_t(first_row) * dim_, dim_, w.candidates.rows - first_row, w.middles,
                         SCREEN_PANEL, dim_ / 2, w.products + size_t(first_row) * SCREEN_PANEL, SCREEN_PANEL,
                         NoPrefetch{});
  }
  // The same for rows too few to pay for the packing.
  void multiply_few(const SelectTile& t, const Screen& w, long p0, int blocks) const {
    static_assert(SCREEN_PANEL == 16, "fold_rows takes sixteen blocks");
    const uint16_t* middle[SCREEN_PANEL];
    for (int i = 0; i < SCREEN_PANEL; i++) middle[i] = codes_of(t, p0 + (i < blocks ? i : 0)).middle;
    alignas(64) float lanes[SCREEN_PANEL * 16];
    for (int r = 0; r < w.candidates.rows; r++) {
      const T* q = queries_of(t) + size_t(r) * dim_;
      for (int i = 0; i < SCREEN_PANEL; i++) {
        __m512 sum = _mm512_setzero_ps();
        for (int d = 0; d < dim_; d += 32)
          sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q + d), (__m512bh)_mm512_loadu_si512(middle[i] + d));
        _mm512_store_ps(lanes + i * 16, sum);
      }
      fold_rows(lanes, w.products + size_t(r) * SCREEN_PANEL, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
    }
  }

  // Upper bounds of blocks [b0, b1) for each row, upper[block - b0][row] (-inf: no candidate; NaN: rules nothing out), and the best lower bounds.
  void estimate(const SelectTile& t, const Screen& w, long b0, long b1, long end, float* upper, Best& lower) {
    const int rows = w.candidates.rows, rows16 = w.candidates.rows16, steps = dim_ / 4;
    const bool few = rows <= 2 * MR;
    for (long p0 = b0; p0 < b1; p0 += SCREEN_PANEL) {
      const int blocks = int(b1 - p0 < SCREEN_PANEL ? b1 - p0 : SCREEN_PANEL);
      const int group0 = w.candidates.group_from(p0);
      for (int i = 0; i < blocks; i++) {
        const PageCodes page = codes_of(t, p0 + i);
        const uint32_t* next = page.codes;
        if (p0 + i + 1 < end) {
          next = codes_of(t, p0 + i + 1).codes;
          if (few)  // what follows its codes; the codes themselves are fetched strip by strip
            for (size_t at = size_t(a_.block) * dim_; at < PageCodes::bytes(a_.block, dim_); at += 64)
              __builtin_prefetch((const char*)next + at, 0, 2);
        }
        const auto ahead = [&](int s) {
          return Stream{!few ? nullptr
                             : (const char*)(next + size_t(s) * width_ * steps)};
        };
        for (int g = group0; g < rows; g += SELECT_GROUP) {
          const int n = rows - g < SELECT_GROUP ? rows - g : SELECT_GROUP;
          block_maxima<code8>(w.codes.codes + size_t(g) * dim_, dim_, n, page.codes, width_, strips_, steps, w.lane_max,
                              w.panel + size_t(i) * rows16 + g, ahead);
        }
      }
      if (few && dim_ % 32 == 0)
        multiply_few(t, w, p0, blocks);
      else
        multiply_many(t, w, p0, blocks, group0);
      const __m512i stride = _mm512_mullo_epi32(_mm512_set1_epi32(SCREEN_PANEL), _mm512_setr_epi32(
          0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
      for (int i = 0; i < blocks; i++) {
        if (few) {  // the arithmetic of a panel takes as long as two pages to come: fetch those after the next
          const long b = p0 + SCREEN_PANEL + 1 + i / 8;
          const size_t part = PageCodes::bytes(a_.block, a_.dim) / 8;
          if (b < end)
            for (size_t at = 0; at < part; at += 64)
              __builtin_prefetch((const char*)codes_of(t, b).codes + i % 8 * part + at, 0, 2);
        }
        const PageScale page = codes_of(t, p0 + i).scale;
        const int32_t b = int32_t(p0 + i);
        float* up = upper + size_t(p0 + i - b0) * rows16;
        for (int r0 = 0; r0 < group0; r0 += 16) store(up + r0, set1(NEG_INF));
        for (int r0 = group0; r0 < rows16; r0 += 16) {
          const vf product = (vf)_mm512_i32gather_ps(stride, w.products + size_t(r0) * SCREEN_PANEL + i, 4);
          const vf most = load(w.panel + size_t(i) * rows16 + r0) - load(w.codes.shift + r0);
          const vf middle = product + most * load(w.codes.scale + r0) * page.scale;
          const vf bound = load(w.codes.norm + r0) * page.error + load(w.codes.error + r0) * page.spread + 1e-30f;
          const __mmask16 candidate =
              _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(w.candidates.limit + r0), _mm512_set1_epi32(b));
          store(up + r0, (vf)_mm512_mask_blend_ps(candidate, _mm512_set1_ps(NEG_INF), (__m512)(middle + bound)));
          const vf least = middle - bound;
          uint32_t better = candidate & _mm512_cmp_ps_mask((__m512)least, _mm512_loadu_ps(lower.threshold + r0),
                                                           _CMP_GT_OQ);
          for (; better; better &= better - 1) {
            const int r = __builtin_ctz(better);
            lower.offer(r0 + r, least[r], b);
          }
        }
      }
    }
  }

  // Exact scores of the rows whose upper bound for a block reaches their bar, blocks [b0, b1) in ascending order.
  struct Rescoring {
    float* lane_max;
    T* gathered;           // [rows16][dim]
    float* score;          // [rows16]
    int32_t *row, *later;  // [rows16] each
  };
  static size_t rescoring_bytes(int rows16, int dim) {
    return Scratch::padded<float>(SELECT_GROUP * VL) + Scratch::padded<T>(size_t(rows16) * dim) +
           Scratch::padded<float>(rows16) + 2 * Scratch::padded<int32_t>(rows16);
  }
  Rescoring prepare_rescoring(int rows16) {
    float* lane_max = lane_maxima();
    T* gathered = scratch.take<T>(size_t(rows16) * dim_);
    float* score = scratch.take<float>(rows16);
    int32_t* row = scratch.take<int32_t>(rows16);
    return {lane_max, gathered, score, row, scratch.take<int32_t>(rows16)};
  }

  void score_left(const SelectTile& t, Rescoring w, long b0, long b1, const float* upper, const float* bar, Best& best) {
    const int rows16 = (int(t.rows) + 15) / 16 * 16, steps = dim_ / PER_LANE<T>;
    const auto left = [&](long b, int32_t* list) {
      int n = 0;
      const float* up = upper + size_t(b - b0) * rows16;
      for (int r0 = 0; r0 < rows16; r0 += 16) {
        const vf least = vmax(vmax(load(bar + r0), load(best.threshold + r0)), set1(-FLT_MAX));
        const __mmask16 open = _mm512_cmp_ps_mask(_mm512_loadu_ps(up + r0), (__m512)least, _CMP_NLT_UQ);
        if (!open) continue;
        const __m512i row = _mm512_add_epi32(_mm512_set1_epi32(r0), _mm512_setr_epi32(
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        _mm512_mask_compressstoreu_epi32(list + n, open, row);
        n += __builtin_popcount(open);
      }
      return n;
    };
    const auto next_block = [&](long b, int32_t* list, int* n) {
      while (b < b1 && !(*n = left(b, list))) b++;
      return b;
    };
    long scored = 0;
    int n = 0, later = 0;
    for (long b = next_block(b0, w.row, &n), next; b < b1; b = next, n = later) {
      next = next_block(b + 1, w.later, &later);  // known early, so that its keys are on their way
      const char* then = next < b1 ? (const char*)keys_of(t, next) : nullptr;
      const auto ahead = [&](int s) { return Stream{then ? then + size_t(s) * width_ * steps * 4 : nullptr}; };
      for (int i = 0; i < n; i++) memcpy(w.gathered + size_t(i) * dim_, queries_of(t) + size_t(w.row[i]) * dim_, dim_ * 2);
      for (int g = 0; g < n; g += SELECT_GROUP)
        block_maxima<T>(w.gathered + size_t(g) * dim_, dim_, n - g < SELECT_GROUP ? n - g : SELECT_GROUP, keys_of(t, b),
                        width_, strips_, steps, w.lane_max, w.score + g, ahead);
      for (int i = 0; i < n; i++)
        if (w.score[i] > best.threshold[w.row[i]]) best.offer(w.row[i], w.score[i], int32_t(b));
      // A block of a few rows costs the read of its keys, whichever of them it is scored for.
      scored += t.rows > 2 * MR ? n : t.rows;
      int32_t* done = w.row;
      w.row = w.later;
      w.later = done;
    }
    const int many = t.rows > 2 * MR;
    __atomic_fetch_add(&scored_[many], scored, __ATOMIC_RELAXED);
    __atomic_fetch_add(&screened_[many], (b1 - b0) * t.rows, __ATOMIC_RELAXED);
  }

  // A tile that one thread takes: chunk after chunk, estimates and then scores. What is known by then raises the bar.
  int screen_and_rescore(const SelectTile& t) {
    const int rows = int(t.rows), rows16 = (rows + 15) / 16 * 16;
    const long b0 = first_block(t, 0), b1 = first_block(t, 1);
    const long chunk = b1 - b0 < SCREEN_CHUNK ? b1 - b0 : SCREEN_CHUNK;
    if (!scratch.reserve(screen_bytes(rows, rows16, dim_) + rescoring_bytes(rows16, dim_) +
                         2 * Best::bytes(rows16, padded_, true) + Scratch::padded<float>(size_t(chunk) * rows16)))
      return OUT_OF_MEMORY;
    const Screen w = prepare(t, rows16);
    const Rescoring again = prepare_rescoring(rows16);
    Best lower(kept_, padded_, rows16, rows16, scratch), best(kept_, padded_, rows16, rows16, scratch);
    float* upper = scratch.take<float>(size_t(chunk) * rows16);
    for (long c0 = b0; c0 < b1; c0 += chunk) {
      const long c1 = c0 + chunk < b1 ? c0 + chunk : b1;
      estimate(t, w, c0, c1, b1, upper, lower);
      score_left(t, again, c0, c1, upper, lower.threshold, best);
    }
    finish(t, best);
    return 0;
  }

  // The same in two calls, where several threads share a tile: all must know the bar before any of them scores.
  float* uppers_of(const SelectTile& t, long block) const {
    return uppers_ + t.uppers + size_t(block - a_.init_blocks) * ((t.rows + 15) / 16 * 16);
  }
  int screen(const SelectTile& t, long segment) {
    const int rows = int(t.rows), rows16 = (rows + 15) / 16 * 16;
    if (!scratch.reserve(screen_bytes(rows, rows16, dim_) + Best::bytes(rows16, padded_, false))) return OUT_OF_MEMORY;
    const Screen w = prepare(t, rows16);
    Best lower(kept_, padded_, rows, rows16, scratch, scores_of(t, segment), ids_of(t, segment));
    const long b0 = first_block(t, segment), b1 = first_block(t, segment + 1);
    lower.start_from(floors_ + t.partial, rows);
    estimate(t, w, b0, b1, b1, uppers_of(t, b0), lower);
    lower.raise(floors_ + t.partial, rows);
    return 0;
  }
  int set_bars(const SelectTile& t) {
    if (t.screened && t.segments > 1)
      for (long r = 0; r < (t.rows + 15) / 16 * 16; r++)
        bars_[t.bars + r] = r < t.rows ? merged(t, r).score[kept_ - 1] : NEG_INF;
    return 0;
  }
  int rescore(const SelectTile& t, long segment) {
    if (!t.screened || t.segments == 1) return 0;
    const int rows = int(t.rows), rows16 = (rows + 15) / 16 * 16;
    if (!scratch.reserve(rescoring_bytes(rows16, dim_) + Best::bytes(rows16, padded_, false))) return OUT_OF_MEMORY;
    const Rescoring w = prepare_rescoring(rows16);
    Best best(kept_, padded_, rows, rows16, scratch, scores_of(t, segment), ids_of(t, segment));
    const long b0 = first_block(t, segment), b1 = first_block(t, segment + 1);
    score_left(t, w, b0, b1, uppers_of(t, b0), bars_ + t.bars, best);
    return 0;
  }
#endif

  const ls_select_args& a_;
  const int kept_, padded_, dim_, width_, strips_;
  const size_t page_lanes_;
  SelectTile* tiles_ = nullptr;
  long count_ = 0, max_segments_ = 1;
  size_t list_rows_ = 0, upper_count_ = 0, bar_count_ = 0;
  bool paused_[2] = {};
  long scored_[2] = {}, screened_[2] = {};
  float *list_score_ = nullptr, *uppers_ = nullptr, *bars_ = nullptr, *floors_ = nullptr;
  int32_t* list_id_ = nullptr;
};

}  // namespace LS_NS
