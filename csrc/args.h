// The C interface between ops/cpu.py and the kernels. Plain structs, raw pointers; no torch and no Python headers.
#pragma once

#include <cstddef>
#include <cstdint>

// What a kernel returns: 0, or one of these.
enum { LS_OUT_OF_MEMORY = 1, LS_BAD_SELECTION = 2, LS_BAD_EXPERT = 3 };

extern "C" {

// See ops/batch.py. All arrays int32.
struct ls_batch {
  const int32_t* cu_seqlens;
  const int32_t* kv_lens;
  const int32_t* block_table;
  int64_t sequences, max_blocks;
};

struct ls_select_args {
  const void* index_q;  // [T, groups, dim]
  const void* index_k;  // packed pages
  const void* codes;    // the pages' 8-bit copies (screen.h), or null
  int64_t* pauses;      // [2][2], for a few rows and for many: calls yet to go without codes, length of the last pause
  int32_t* ids;         // [T, groups, topk]
  ls_batch batch;
  int64_t groups, dim, block, topk, local_blocks, init_blocks;
  int64_t screen_rows_from, screen_from;  // visible blocks from which codes are used: for many rows, for a few
  int32_t is_bf16, threads;
};

struct ls_attention_args {
  const void* q;       // [T, heads, dim]
  const void* k;       // packed pages
  const void* v;       // packed pages
  const int32_t* ids;  // [T, kv_heads, topk], or null for causal dense attention
  void* out;           // [T, heads, dim]
  float* lse;          // [T, heads], or null
  ls_batch batch;
  int64_t heads, kv_heads, dim, block, topk;
  float scale;
  int32_t is_bf16, threads;
};

struct ls_append_args {
  const void *k, *v, *index_k;  // [T, kv_heads, dim] twice, [T, index_dim] or null; row strides below, in elements
  void *k_pages, *v_pages, *index_pages;
  void* index_codes;  // 8-bit copies of full pages (screen.h), or null
  ls_batch batch;
  int64_t kv_heads, dim, index_dim, block, k_stride, v_stride, index_stride;
  int32_t is_bf16, threads;
};

struct ls_linear_args {
  const void* x;       // [rows, in], row stride x_stride
  const void* weight;  // packed [out, in]
  void* y;             // [rows, out], contiguous
  int64_t rows, in, out, padded_out, x_stride;
  int32_t is_bf16, threads;
};

struct ls_add_args {
  void* y;        // [count]: y = y + x, or y = x
  const void* x;  // [count]
  int64_t count;
  int32_t y_is_bf16, x_is_bf16, accumulate, threads;
};

struct ls_route_args {
  const float* logits;  // [rows, experts]
  const float* bias;    // [experts]
  int64_t* ids;         // [rows, topk], ascending
  float* weights;       // [rows, topk]
  int64_t rows, experts, topk;
  float scale;
  int32_t threads;
};

struct ls_moe_args {
  const void* x;               // [rows, hidden]
  const int64_t* expert_ids;   // [rows, topk]
  const float* expert_weights; // [rows, topk]
  const void* const* gate_up;  // per expert: packed [2 * width, hidden]
  const void* const* down;     // per expert: packed [hidden, width]
  float* y;                    // [rows, hidden]
  int64_t rows, hidden, width, experts, topk;
  float alpha, limit;
  int32_t is_bf16, threads;
};

struct ls_norm_args {
  const void* x;
  const void* weight;  // same dtype as x
  void* y;             // contiguous
  const float *cos, *sin;  // [rows, half], or null for a plain norm
  int64_t rows, heads, dim, half, x_stride;
  float eps;
  int32_t is_bf16, threads;
};

struct ls_swiglu_args {
  const void* gate_up;  // [rows, 2 * width]
  void* y;              // [rows, width]
  int64_t rows, width;
  float alpha, limit;
  int32_t is_bf16, threads;
};

struct ls_likeliest_args {
  const void* logits;  // [rows, vocab]
  int32_t* ids;        // [rows]: the place of the largest, the first of equal ones; a NaN counts as larger than all
  float* best;         // [rows]: that logit
  int64_t rows, vocab;
  int32_t is_bf16, threads;
};

// Documents packed one after the other for training (ops/training/documents.py).
struct ls_documents {
  const int32_t* cu_seqlens;  // [count + 1]
  int64_t count;
};

struct ls_attention_grad_args {
  const void *q, *k, *v;    // [T, heads, dim], [T, kv_heads, dim] twice
  const void *out, *dout;   // [T, heads, dim]
  const float* lse;         // [T, heads]
  const int32_t* ids;       // [T, kv_heads, topk], or null for causal dense attention
  void* dq;                 // [T, heads, dim]
  float *dk, *dv;           // [T, kv_heads, dim], zeros before
  ls_documents documents;
  int64_t heads, kv_heads, dim, block, topk;
  float scale;
  int32_t is_bf16, threads;
};

struct ls_index_kl_args {
  const void *index_q, *index_k;  // [T, kv_heads, index_dim], [T, index_dim]
  const void *q, *k;              // [T, heads, dim], [T, kv_heads, dim]
  const float* lse;               // [T, heads], of the attention over the same keys
  const int32_t* ids;             // [T, kv_heads, topk], or null for all visible keys
  const float* weight;            // [T]
  float* loss;                    // one number
  float* dindex_q;                // [T, kv_heads, index_dim], or null for no gradients
  float* dindex_k;                // [kv_heads, T, index_dim], zeros before: each group's share
  ls_documents documents;
  int64_t heads, kv_heads, dim, index_dim, block, topk;
  float scale, index_scale;
  int32_t is_bf16, threads;
};

// One call of a recorded step (ops/tape.py): which kernel, by its place in ls_kernel, and its arguments.
enum ls_kernel {
  LS_SELECT,
  LS_ATTENTION,
  LS_APPEND,
  LS_LINEAR,
  LS_MOE,
  LS_NORM,
  LS_SWIGLU,
  LS_ADD,
  LS_ROUTE,
  LS_LIKELIEST,
};
struct ls_call {
  int64_t kernel;
  const void* args;
};
}

// One instruction set's kernels.
struct ls_kernels {
  const char* name;
  bool screens;  // whether it uses, and writes, 8-bit copies of index keys
  int (*select_blocks)(const ls_select_args&);
  int (*attention)(const ls_attention_args&);
  int (*append_kv)(const ls_append_args&);
  int (*linear)(const ls_linear_args&);
  int (*moe)(const ls_moe_args&);
  int (*norm)(const ls_norm_args&);
  int (*swiglu)(const ls_swiglu_args&);
  int (*add)(const ls_add_args&);
  int (*route)(const ls_route_args&);
  int (*likeliest)(const ls_likeliest_args&);
  int (*attention_grad)(const ls_attention_grad_args&);
  int (*index_kl)(const ls_index_kl_args&);
  double (*peak_flops)(int is_bf16, int threads, double seconds);
  double (*stream_read)(const void* memory, size_t bytes, int threads);
};
