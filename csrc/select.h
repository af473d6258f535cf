// Index scan fused with exact top-k (the contract is docs/selection.md).
//
// Floor: 2 * dim FLOPs per (row, visible key); keys stream through L1 once per tile of ~512 rows, so prefill is bound by the
// dot-product instruction and decode by memory. Forced blocks (the most recent and the first ones) are never scored, so no
// scored block is ever partial and nothing past a sequence's end is read. Scores live in a panel of 8 blocks x tile rows.
//
// The chosen set depends on the total order (score descending, id ascending) alone: any split over tiles, key segments or
// threads gives the same ids.
#pragma once

#include "parallel.h"
#include "tile.h"

namespace LS_NS {

constexpr int SELECT_ROWS = 480;  // rows of a tile: A fits L2 beside the streaming keys; a multiple of 48
constexpr int SELECT_GROUP = 48;  // rows between two horizontal reductions
constexpr int SELECT_PANEL = 8;   // blocks scored between two looks at the thresholds

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

// Rows [row0, row0 + rows) of one sequence (row = token * groups + group) against blocks [b0, b1).
struct SelectTile {
  long sequence, first_row, rows;  // first_row: in the packed batch
  long position;                   // of the first row's token
  long segments;
  long partial;  // index of this tile's first row in the partial lists, when segments > 1
};

template <class T>
int scan_tile(const ls_select_args& a, const SelectTile& t, long b0, long b1, int kept, int padded, TopList* lists_out,
              float* partial_score, int32_t* partial_id) {
  const int rows = int(t.rows), rows16 = (rows + 15) / 16 * 16, dim = int(a.dim), block = int(a.block);
  const int width = strip_width(block), steps = dim / PER_LANE<T>;
  const bool own_lists = partial_score == nullptr;
  const size_t operand = sizeof(A_of<T>) == sizeof(T) ? 0 : size_t(rows) * dim;
  if (!scratch.reserve(Scratch::padded<A_of<T>>(operand) + Scratch::padded<float>(SELECT_GROUP * VL) +
                       Scratch::padded<float>(size_t(SELECT_PANEL) * rows16) + 2 * Scratch::padded<float>(rows16) +
                       (own_lists ? 2 * Scratch::padded<float>(size_t(rows16) * padded) : 0)))
    return OUT_OF_MEMORY;
  A_of<T>* widened = scratch.take<A_of<T>>(operand);
  float* lane_max = scratch.take<float>(SELECT_GROUP * VL);
  float* panel = scratch.take<float>(size_t(SELECT_PANEL) * rows16);
  float* threshold = scratch.take<float>(rows16);
  int32_t* limit = scratch.take<int32_t>(rows16);  // blocks below this one are candidates of the row
  float* score = own_lists ? scratch.take<float>(size_t(rows16) * padded) : partial_score;
  int32_t* id = own_lists ? scratch.take<int32_t>(size_t(rows16) * padded) : partial_id;

  size_t lda;
  const A_of<T>* q = operand_rows<T>((const T*)a.index_q + t.first_row * dim, dim, rows, dim, widened, &lda);
  const int list_rows = own_lists ? rows16 : rows;
  for (int i = 0; i < list_rows * padded; i++) score[i] = NEG_INF, id[i] = -1;
  for (int i = 0; i < SELECT_GROUP * VL; i++) lane_max[i] = 0;
  for (int r = 0; r < rows16; r++) {
    const long p = t.position + r / a.groups, own = p >= 0 ? p / block : -1;
    threshold[r] = NEG_INF;
    limit[r] = r < rows && own + 1 > a.topk ? int32_t(own + 1 - a.local_blocks) : 0;
  }
  const int32_t* pages = a.batch.block_table + t.sequence * a.batch.max_blocks;
  const uint32_t* keys = (const uint32_t*)a.index_k;
  const size_t page_lanes = size_t(block) * steps, strip_lanes = size_t(width) * steps;
  const int strips = block / width;
  const bool few = rows <= 2 * MR;  // memory-bound: fetch a strip ahead, across page borders

  int first = 0;  // rows before this one have no candidate left (limits ascend with the position)
  for (long p0 = b0; p0 < b1; p0 += SELECT_PANEL) {
    const int blocks = int(b1 - p0 < SELECT_PANEL ? b1 - p0 : SELECT_PANEL);
    while (first < rows && limit[first] <= p0) first++;
    const int group0 = first / SELECT_GROUP * SELECT_GROUP;
    for (int i = 0; i < blocks; i++) {
      const uint32_t* page = keys + size_t(pages[p0 + i]) * page_lanes;
      for (int g = group0; g < rows; g += SELECT_GROUP) {
        const int n = rows - g < SELECT_GROUP ? rows - g : SELECT_GROUP;
        for (int s = 0; s < strips; s++) {
          const uint32_t* at = page + s * strip_lanes;
          const uint32_t* next = s + 1 < strips ? at + strip_lanes
                                 : p0 + i + 1 < b1 ? keys + size_t(pages[p0 + i + 1]) * page_lanes
                                                   : at;
          const Stream ahead{few ? (const char*)next : nullptr};
          if (s == 0)
            strip<T, Out::MaxFirst>(q + g * lda, lda, n, at, width, steps, lane_max, VL, ahead);
          else
            strip<T, Out::Max>(q + g * lda, lda, n, at, width, steps, lane_max, VL, ahead);
        }
        for (int r = 0; r < n; r += 16) max_of_rows(lane_max + r * VL, panel + size_t(i) * rows16 + g + r);
      }
    }
    for (int r0 = group0; r0 < rows16; r0 += 16) {
      for (int i = 0; i < blocks; i++) {
        const float* s = panel + size_t(i) * rows16 + r0;
        const int32_t b = int32_t(p0 + i);
#if defined(__AVX512F__)
        uint32_t better = _mm512_cmp_ps_mask(_mm512_loadu_ps(s), _mm512_loadu_ps(threshold + r0), _CMP_GT_OQ) &
                          _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(limit + r0), _mm512_set1_epi32(b));
#else
        uint32_t better = 0;
        for (int r = 0; r < 16; r++) better |= uint32_t(s[r] > threshold[r0 + r] && limit[r0 + r] > b) << r;
#endif
        for (; better; better &= better - 1) {
          const int r = r0 + __builtin_ctz(better);
          const TopList list{score + size_t(r) * padded, id + size_t(r) * padded};
          insert(list, kept, padded, s[r - r0], b);
          threshold[r] = list.score[kept - 1];
        }
      }
    }
  }
  *lists_out = TopList{score, id};
  return 0;
}

template <class T>
int select_blocks_of(const ls_select_args& a) {
  const int kept = int(a.topk - a.local_blocks - a.init_blocks), padded = kept > 0 ? (kept + 15) / 16 * 16 : 16;
  const long tile_tokens = SELECT_ROWS / a.groups > 0 ? SELECT_ROWS / a.groups : 1;
  long tiles = 0;
  for (long s = 0; s < a.batch.sequences; s++)
    tiles += (a.batch.cu_seqlens[s + 1] - a.batch.cu_seqlens[s] + tile_tokens - 1) / tile_tokens;
  if (!tiles) return 0;
  SelectTile* tile = (SelectTile*)malloc(size_t(tiles) * sizeof(SelectTile));
  if (!tile) return OUT_OF_MEMORY;

  // Few rows: split the keys as well, so that every thread has work; lists of the segments are merged below.
  const long wanted = (16L * a.threads + tiles - 1) / tiles;
  long n = 0, items = 0, partial_rows = 0, max_segments = 1;
  for (long s = 0; s < a.batch.sequences; s++) {
    const long begin = a.batch.cu_seqlens[s], end = a.batch.cu_seqlens[s + 1];
    for (long t0 = begin; t0 < end; t0 += tile_tokens) {
      const long t1 = t0 + tile_tokens < end ? t0 + tile_tokens : end;
      const long position = a.batch.kv_lens[s] - end + t0, last = position + (t1 - t0) - 1;
      const long blocks = last >= 0 ? last / a.block + 1 : 0;
      long segments = a.threads > 1 ? blocks / 64 : 1;
      segments = segments < 1 ? 1 : segments > wanted ? wanted : segments;
      tile[n++] = SelectTile{s, t0 * a.groups, (t1 - t0) * a.groups, position, segments, partial_rows};
      items += segments;
      max_segments = segments > max_segments ? segments : max_segments;
      if (segments > 1) partial_rows += segments * (t1 - t0) * a.groups;
    }
  }
  float* partial_score = nullptr;
  int32_t* partial_id = nullptr;
  if (partial_rows) {
    partial_score = (float*)aligned_alloc(64, size_t(partial_rows) * padded * 4);
    partial_id = (int32_t*)aligned_alloc(64, size_t(partial_rows) * padded * 4);
    if (!partial_score || !partial_id) {
      free(partial_score), free(partial_id), free(tile);
      return OUT_OF_MEMORY;
    }
  }

  int status = parallel_for(n * max_segments, a.threads, [&](long item) -> int {
    const SelectTile& t = tile[n - 1 - item / max_segments];  // the longest contexts first
    const long segment = item % max_segments;
    if (segment >= t.segments) return 0;
    const long last = t.position + (t.rows / a.groups) - 1;
    const long limit = kept > 0 && last >= 0 && last / a.block + 1 > a.topk ? last / a.block + 1 - a.local_blocks : 0;
    const long from = a.init_blocks, span = limit > from ? limit - from : 0;
    const long b0 = from + span * segment / t.segments, b1 = from + span * (segment + 1) / t.segments;
    float* ps = t.segments > 1 ? partial_score + size_t(t.partial + segment * t.rows) * padded : nullptr;
    int32_t* pi = t.segments > 1 ? partial_id + size_t(t.partial + segment * t.rows) * padded : nullptr;
    TopList lists;
    if (int bad = scan_tile<T>(a, t, b0, b1, kept, padded, &lists, ps, pi)) return bad;
    if (t.segments == 1)
      for (long r = 0; r < t.rows; r++)
        finish_row(a, t.position + r / a.groups, TopList{lists.score + r * padded, lists.id + r * padded}, kept,
                   a.ids + (t.first_row + r) * a.topk);
    return 0;
  });

  if (!status && partial_rows)
    status = parallel_for(n, a.threads, [&](long item) -> int {
      const SelectTile& t = tile[item];
      if (t.segments == 1) return 0;
      for (long r = 0; r < t.rows; r++) {
        const size_t first = size_t(t.partial + r) * padded;
        const TopList merged{partial_score + first, partial_id + first};
        for (long s = 1; s < t.segments; s++) {
          const size_t other = size_t(t.partial + s * t.rows + r) * padded;
          for (int i = 0; i < kept && partial_score[other + i] > merged.score[kept - 1]; i++)
            insert(merged, kept, padded, partial_score[other + i], partial_id[other + i]);
        }
        finish_row(a, t.position + r / a.groups, merged, kept, a.ids + (t.first_row + r) * a.topk);
      }
      return 0;
    });
  free(partial_score), free(partial_id), free(tile);
  return status;
}

}  // namespace LS_NS
