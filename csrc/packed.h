// What gradients share: packed documents cut in chunks of query tokens, the tokens that chose each block, operands in the
// orders that products want, and sums whose order no thread can change.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <type_traits>
#include <utility>

#include "outer.h"
#include "parallel.h"

namespace LS_NS {

constexpr int CHUNK_ROWS = 16384;  // query rows (token x head of a group) of a chunk: bounds each thread's workspace

// Scratch by a list of parts that is walked twice, to count and to take: layout(part) calls part(pointer, count) for each.
template <class P>
using Pointee = std::remove_reference_t<decltype(*std::declval<P>())>;
template <class Layout>
size_t bytes_of(const Layout& layout) {
  size_t bytes = 0;
  layout([&](auto*& p, size_t n) { bytes += Scratch::padded<Pointee<decltype(p)>>(n); });
  return bytes;
}
template <class Layout>
void take(const Layout& layout) {
  layout([](auto*& p, size_t n) { p = scratch.take<Pointee<decltype(p)>>(n); });
}

// Consecutive query tokens of one document.
struct Chunk {
  long document, row0, position;  // row0: of the packed rows
  int tokens;

  long blocks(long block) const { return (position + tokens + block - 1) / block; }  // that it can see
};

// Documents in chunks and in blocks.
class Grid {
 public:
  Grid(const ls_documents& documents, long block, int group)
      : documents_(documents), block_(block), tokens_(CHUNK_ROWS / group > 0 ? CHUNK_ROWS / group : 1) {}
  Grid(const Grid&) = delete;
  ~Grid() { free(chunks_), free(first_block_); }

  bool build() {
    for (long d = 0; d < documents_.count; d++) count_ += (length(d) + tokens_ - 1) / tokens_;
    chunks_ = (Chunk*)malloc(size_t(count_ + 1) * sizeof(Chunk));
    first_block_ = (long*)malloc(size_t(documents_.count + 1) * sizeof(long));
    if (!chunks_ || !first_block_) return false;
    long n = 0;
    first_block_[0] = 0;
    for (long d = 0; d < documents_.count; d++) {
      first_block_[d + 1] = first_block_[d] + (length(d) + block_ - 1) / block_;
      for (long t = 0; t < length(d); t += tokens_) {
        const long left = length(d) - t;
        chunks_[n++] = Chunk{d, begin(d) + t, t, int(left < tokens_ ? left : tokens_)};
        longest_ = chunks_[n - 1].tokens > longest_ ? chunks_[n - 1].tokens : longest_;
      }
    }
    return true;
  }

  long begin(long d) const { return documents_.cu_seqlens[d]; }
  long length(long d) const { return documents_.cu_seqlens[d + 1] - documents_.cu_seqlens[d]; }
  long chunks() const { return count_; }
  const Chunk& chunk(long i) const { return chunks_[i]; }
  int longest() const { return longest_; }  // tokens of the longest chunk
  long blocks() const { return first_block_[documents_.count]; }
  long first_block(long d) const { return first_block_[d]; }
  // Packed rows [*row, *row + result) are block b of document d.
  int block_rows(long d, long b, long* row) const {
    *row = begin(d) + b * block_;
    const long left = length(d) - b * block_;
    return int(left < block_ ? left : block_);
  }
  // The document of block i of all, for walks over every block.
  long document_of(long i) const {
    long low = 0, high = documents_.count - 1;
    while (low < high) {
      const long middle = (low + high) / 2;
      if (first_block_[middle + 1] <= i)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

 private:
  const ls_documents& documents_;
  const long block_, tokens_;
  Chunk* chunks_ = nullptr;
  long* first_block_ = nullptr;
  long count_ = 0;
  int longest_ = 0;
};

// Every list is walked once, in order: ids must ascend, -1 padding last, none past the row's own block.
inline bool ids_are_sound(const ls_documents& documents, const int32_t* ids, long groups, long topk, long block) {
  for (long d = 0; d < documents.count; d++)
    for (long t = documents.cu_seqlens[d]; t < documents.cu_seqlens[d + 1]; t++)
      for (long g = 0; g < groups; g++) {
        const int32_t* id = ids + (t * groups + g) * topk;
        const long own = (t - documents.cu_seqlens[d]) / block;
        long n = 0;
        for (int32_t before = -1; n < topk && id[n] >= 0; before = id[n++])
          if (id[n] <= before || id[n] > own) return false;
        for (; n < topk; n++)
          if (id[n] != -1) return false;
      }
  return true;
}

// Which tokens of a chunk attend to each block: the inverse of the chosen ids by count, prefix sum and fill; without ids,
// every token from the block's first on.
class Visits {
 public:
  static size_t bytes(long tokens, long topk, long blocks) {
    return Scratch::padded<int32_t>(size_t(tokens) * topk) + Scratch::padded<int32_t>(blocks + 2);
  }

  Visits(const Chunk& chunk, const int32_t* ids, long stride, long topk, long block, Scratch& from)
      : chunk_(chunk), block_(block), dense_(!ids) {
    const long blocks = chunk.blocks(block);
    tokens_ = from.take<int32_t>(size_t(chunk.tokens) * topk);
    end_ = from.take<int32_t>(blocks + 2);
    if (dense_) return;
    int32_t* start = end_ + 1;
    memset(end_, 0, size_t(blocks + 2) * 4);
    const auto each = [&](auto&& body) {
      for (int i = 0; i < chunk.tokens; i++)
        for (long s = 0; s < topk && ids[i * stride + s] >= 0; s++) body(i, ids[i * stride + s]);
    };
    each([&](int, int32_t b) { start[b + 1]++; });
    for (long b = 0; b < blocks; b++) start[b + 1] += start[b];
    // Filling advances start[b] to its end, which is then read as end_[b + 1].
    each([&](int i, int32_t b) { tokens_[start[b]++] = i; });
    end_[0] = 0;
  }

  int count(long b) const { return dense_ ? chunk_.tokens - first(b) : end_[b + 1] - end_[b]; }
  int token(long b, int i) const { return dense_ ? first(b) + i : tokens_[end_[b] + i]; }  // ascending; of the chunk
  // Tokens of the block that token i of the chunk sees.
  int visible(long b, int i) const {
    const long n = chunk_.position + i + 1 - b * block_;
    return int(n < block_ ? n : block_);
  }

 private:
  int first(long b) const {
    const long at = b * block_ - chunk_.position;
    return at > 0 ? int(at) : 0;
  }
  const Chunk& chunk_;
  const long block_;
  const bool dense_;
  int32_t *tokens_, *end_;
};

// Chains of items that add to the same memory, in the order of the items: item i of a chain adds block b after item i - 1
// has. Items are claimed in order, so whoever is waited for is running.
class Turns {
 public:
  Turns() = default;
  Turns(const Turns&) = delete;
  ~Turns() { free(done_); }
  bool build(long items) {
    done_ = (int32_t*)calloc(size_t(items) + 1, sizeof(int32_t));
    return done_ != nullptr;
  }
  // Returns once item `before` (< 0: none) has added its block b, or cannot any more.
  void await(long before, long b) const {
    if (before < 0) return;
    for (int spins = 0; __atomic_load_n(done_ + before, __ATOMIC_ACQUIRE) <= b; spins++) {
      if (__atomic_load_n(&failed_, __ATOMIC_RELAXED)) return;
#if defined(__linux__)
      if (spins > 64) sched_yield();
#endif
    }
  }
  void done(long item, long b) { __atomic_store_n(done_ + item, int32_t(b + 1), __ATOMIC_RELEASE); }
  void finished(long item) { __atomic_store_n(done_ + item, INT32_MAX, __ATOMIC_RELEASE); }
  int fail(int status) {
    __atomic_store_n(&failed_, true, __ATOMIC_RELAXED);
    return status;
  }

 private:
  int32_t* done_ = nullptr;
  bool failed_ = false;
};

// Rows of several matrices that the next tokens of a list will need, handed out to the tiles of the current ones as they
// run: rows come from main memory or the outer cache, in no order that the hardware could guess.
class RowsAhead {
 public:
  static constexpr int LINES = 1;

  // `bytes` at base + token * bytes, for each of `count` tokens from `first` on in block b's list.
  RowsAhead(const Visits& visits, long b, int first, int count) : visits_(visits), b_(b), first_(first), tokens_(count) {}
  void also(const void* base, size_t stride, size_t bytes) {
    rows_[kinds_++] = Rows{(const char*)base, stride, bytes};
    turn();
  }

  LS_INLINE const char* take(size_t bytes) {
    for (int lines = 0; lines < 16 && token_ < tokens_;) {
      if (left_ >= bytes) {
        const char* p = at_;
        at_ += bytes;
        left_ -= bytes;
        return p;
      }
      for (size_t i = 0; i < left_; i += 64, lines++) __builtin_prefetch(at_ + i, 0, 2);
      if (++kind_ == kinds_) kind_ = 0, token_++;
      turn();
    }
    return nullptr;
  }

 private:
  struct Rows {
    const char* base;
    size_t stride, bytes;
  };
  void turn() {
    if (token_ >= tokens_) return;
    at_ = rows_[kind_].base + size_t(visits_.token(b_, first_ + token_)) * rows_[kind_].stride;
    left_ = rows_[kind_].bytes;
  }
  const Visits& visits_;
  const long b_;
  const int first_, tokens_;
  Rows rows_[3];
  int kinds_ = 0, kind_ = 0, token_ = 0;
  const char* at_ = nullptr;
  size_t left_ = 0;
};

template <class T>
LS_INLINE uint32_t lane_of(const T* x, const T* y) {
  if constexpr (PER_LANE<T> == 1) {
    uint32_t lane;
    memcpy(&lane, x, 4);
    return (void)y, lane;
  } else {
    return uint32_t(x->bits) | uint32_t(y->bits) << 16;
  }
}

// Rows x[0, rows), then zeros up to `block`, as B with n = row, k = column: [block / W][dim / E][W] lanes.
template <class T>
inline void pack_rows(const T* x, size_t ldx, int rows, int block, int dim, uint32_t* out) {
  const int width = strip_width(block), steps = dim / PER_LANE<T>;
  for (int j = 0; j < block; j++) {
    uint32_t* to = out + size_t(j / width) * width * steps + j % width;
    const T* from = x + size_t(j) * ldx;
    for (int s = 0; s < steps; s++)
      to[size_t(s) * width] = j < rows ? lane_of(from + s * PER_LANE<T>, from + s * PER_LANE<T> + PER_LANE<T> - 1) : 0;
  }
}

// Rows given one by one (null: zeros; `padded` of them, even for bf16) as B with n = column, k = row:
// [dim / W][padded / E][W] lanes. ldk: rows that the packing has room for.
template <class T, class Row>
LS_INLINE void pack_columns(const Row& row, int padded, int ldk, int dim, uint32_t* out) {
  const int width = strip_width(dim);
  static const T zero[256] = {};
  for (int r = 0; r < padded; r += PER_LANE<T>) {
    const T* x = row(r);
    const T* y = PER_LANE<T> == 2 ? row(r + 1) : x;
    x = x ? x : zero;
    y = y ? y : zero;
    for (int d0 = 0; d0 < dim; d0 += width) {
      uint32_t* to = out + size_t(d0) * (ldk / PER_LANE<T>) + size_t(r / PER_LANE<T>) * width;
      for (int d = 0; d < width; d += 16)
        for (int i = d; i < d + 16; i++) to[i] = lane_of(x + d0 + i, y + d0 + i);
    }
  }
}

// Rows given one by one (null: zeros) as A: [rows][dim].
template <class T, class Row>
LS_INLINE void gather_rows(const Row& row, int rows, int dim, A_of<T>* out) {
  for (int r = 0; r < rows; r++, out += dim) {
    const T* x = row(r);
    if (!x)
      memset(out, 0, size_t(dim) * sizeof(A_of<T>));
    else if constexpr (sizeof(A_of<T>) == sizeof(T))
      memcpy(out, x, size_t(dim) * sizeof(T));
    else
      for (int i = 0; i < dim; i += VL) store((float*)out + i, load_row(x + i));
  }
}

// Values of rows r and r + 1 (`second`), columns j.., as A by columns; `at` is row r's place in [rows][ld].
template <class T>
LS_INLINE void store_columns(A_of<T>* at, size_t ld, int j, vf first, vf second) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(A_of<T>) == 2) {
    // cvtne2 leaves the first row's values in the low half: lane i wants words i and 16 + i.
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512((uint32_t*)at + j, _mm512_permutexvar_epi16(_mm512_load_si512(order), both));
    return;
  }
#elif defined(LS_BF16_DOT)
  if constexpr (sizeof(A_of<T>) == 2) {
    const bfloat16x8_t both = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32((float32x4_t)first), (float32x4_t)second);
    const uint16x8_t words = vreinterpretq_u16_bf16(both);
    vst1q_u16((uint16_t*)((uint32_t*)at + j), vzip1q_u16(words, vextq_u16(words, words, 4)));
    return;
  }
#endif
  store((float*)at + j, first);
  store((float*)at + ld + j, second);
}

// A matrix in the orders that products want, block after block of every document and head.
template <class T>
class PackedBlocks {
 public:
  PackedBlocks(const Grid& grid, const void* x, long heads, int block, int dim)
      : grid_(grid), x_((const T*)x), heads_(heads), block_(block), dim_(dim) {}
  PackedBlocks(const PackedBlocks&) = delete;
  ~PackedBlocks() { free(rows_), free(columns_); }

  bool build(bool rows, bool columns, int threads) {
    const size_t bytes = size_t(grid_.blocks()) * heads_ * lanes() * 4 + 64;
    if (rows && !(rows_ = (uint32_t*)aligned_alloc(64, bytes / 64 * 64))) return false;
    if (columns && !(columns_ = (uint32_t*)aligned_alloc(64, bytes / 64 * 64))) return false;
    parallel_for(grid_.blocks(), threads, [&](long i) {
      const long d = grid_.document_of(i);
      long row;
      const int n = grid_.block_rows(d, i - grid_.first_block(d), &row);
      for (long h = 0; h < heads_; h++) {
        const T* x = x_ + (row * heads_ + h) * dim_;
        const size_t ld = size_t(heads_) * dim_;
        if (rows_) pack_rows(x, ld, n, block_, dim_, rows_ + (i * heads_ + h) * lanes());
        if (columns_)
          pack_columns<T>([&](int r) { return r < n ? x + r * ld : nullptr; }, block_, block_, dim_,
                          columns_ + (i * heads_ + h) * lanes());
      }
      return 0;
    });
    return true;
  }

  // B with n = token, k = channel.
  const uint32_t* by_rows(long document, long b, long head) const { return rows_ + at(document, b, head); }
  // B with n = channel, k = token.
  const uint32_t* by_columns(long document, long b, long head) const { return columns_ + at(document, b, head); }

 private:
  size_t lanes() const { return size_t(block_) * dim_ / PER_LANE<T>; }
  size_t at(long document, long b, long head) const {
    return (size_t(grid_.first_block(document) + b) * heads_ + head) * lanes();
  }
  const Grid& grid_;
  const T* x_;
  const long heads_;
  const int block_, dim_;
  uint32_t *rows_ = nullptr, *columns_ = nullptr;
};

}  // namespace LS_NS
