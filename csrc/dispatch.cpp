// The exported functions: pick an instruction set once, hand the call over.
#include <cstdlib>
#include <cstring>

#include "args.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#define LS_DECLARE(ns)              \
  namespace ns {                    \
  extern const ls_kernels kernels;  \
  }
LS_DECLARE(ls_generic)
#if defined(__x86_64__)
LS_DECLARE(ls_avx2)
LS_DECLARE(ls_avx512)
LS_DECLARE(ls_avx512_bf16)
#elif defined(__aarch64__)
LS_DECLARE(ls_neon)
LS_DECLARE(ls_neon_bf16)
#endif

namespace {

#if defined(__aarch64__)
// Dot products of bf16 (FEAT_BF16) and of 8-bit integers of either sign (FEAT_I8MM).
bool has_bf16_and_i8mm() {
#if defined(__linux__)
  constexpr unsigned long I8MM = 1 << 13, BF16 = 1 << 14;  // HWCAP2_*, which older headers lack
  return (getauxval(AT_HWCAP2) & (I8MM | BF16)) == (I8MM | BF16);
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(name, &value, &size, nullptr, 0) && value;
  };
  return has("hw.optional.arm.FEAT_BF16") && has("hw.optional.arm.FEAT_I8MM");
#else
  return false;
#endif
}
#endif

struct Choice {
  const ls_kernels* kernels;
  bool usable;
};

// Best first.
const Choice* choices(int* count) {
  static const Choice list[] = {
#if defined(__x86_64__)
      {&ls_avx512_bf16::kernels, bool(__builtin_cpu_supports("avx512bf16")) && bool(__builtin_cpu_supports("avx512vl")) &&
                                     bool(__builtin_cpu_supports("avx512bw")) &&
                                     bool(__builtin_cpu_supports("avx512vnni"))},
      {&ls_avx512::kernels, bool(__builtin_cpu_supports("avx512f")) && bool(__builtin_cpu_supports("avx512vl")) &&
                                bool(__builtin_cpu_supports("avx512bw")) && bool(__builtin_cpu_supports("avx512dq"))},
      {&ls_avx2::kernels, bool(__builtin_cpu_supports("avx2")) && bool(__builtin_cpu_supports("fma"))},
#elif defined(__aarch64__)
      {&ls_neon_bf16::kernels, has_bf16_and_i8mm()},
      {&ls_neon::kernels, true},  // part of every 64-bit Arm
#endif
      {&ls_generic::kernels, true},
  };
  *count = int(sizeof list / sizeof list[0]);
  return list;
}

const ls_kernels* current = nullptr;

const ls_kernels& chosen() {
  if (!current) {
    int n;
    const Choice* list = choices(&n);
    for (int i = 0; i < n && !current; i++)
      if (list[i].usable) current = list[i].kernels;
  }
  return *current;
}

}  // namespace

#define LS_EXPORT extern "C" __attribute__((visibility("default")))

LS_EXPORT int ls_abi() { return 5; }
LS_EXPORT const char* ls_isa() { return chosen().name; }
LS_EXPORT int ls_screens() { return chosen().screens; }

// The i-th instruction set this machine can run, best first; null past the last.
LS_EXPORT const char* ls_usable_isa(int i) {
  int n;
  const Choice* list = choices(&n);
  for (int j = 0; j < n; j++)
    if (list[j].usable && i-- == 0) return list[j].kernels->name;
  return nullptr;
}

// 0, or 1 if `name` is unknown or cannot run here.
LS_EXPORT int ls_use_isa(const char* name) {
  int n;
  const Choice* list = choices(&n);
  for (int i = 0; i < n; i++)
    if (list[i].usable && !strcmp(list[i].kernels->name, name)) {
      current = list[i].kernels;
      return 0;
    }
  return 1;
}

LS_EXPORT int ls_select_blocks(const ls_select_args* a) { return chosen().select_blocks(*a); }
LS_EXPORT int ls_attention(const ls_attention_args* a) { return chosen().attention(*a); }
LS_EXPORT int ls_append_kv(const ls_append_args* a) { return chosen().append_kv(*a); }
LS_EXPORT int ls_linear(const ls_linear_args* a) { return chosen().linear(*a); }
LS_EXPORT int ls_moe(const ls_moe_args* a) { return chosen().moe(*a); }
LS_EXPORT int ls_norm(const ls_norm_args* a) { return chosen().norm(*a); }
LS_EXPORT int ls_swiglu(const ls_swiglu_args* a) { return chosen().swiglu(*a); }
LS_EXPORT int ls_add(const ls_add_args* a) { return chosen().add(*a); }
LS_EXPORT int ls_route(const ls_route_args* a) { return chosen().route(*a); }
LS_EXPORT int ls_likeliest(const ls_likeliest_args* a) { return chosen().likeliest(*a); }
LS_EXPORT int ls_attention_grad(const ls_attention_grad_args* a) { return chosen().attention_grad(*a); }
LS_EXPORT int ls_index_kl(const ls_index_kl_args* a) { return chosen().index_kl(*a); }

// Runs recorded calls in order. 0, or what the first failing one returned; its place is left in *failed.
LS_EXPORT int ls_run(const ls_call* calls, int64_t count, int64_t* failed) {
  const ls_kernels& k = chosen();
  for (int64_t i = 0; i < count; i++) {
    const void* a = calls[i].args;
    int status = 0;
    switch (calls[i].kernel) {
      case LS_SELECT: status = k.select_blocks(*(const ls_select_args*)a); break;
      case LS_ATTENTION: status = k.attention(*(const ls_attention_args*)a); break;
      case LS_APPEND: status = k.append_kv(*(const ls_append_args*)a); break;
      case LS_LINEAR: status = k.linear(*(const ls_linear_args*)a); break;
      case LS_MOE: status = k.moe(*(const ls_moe_args*)a); break;
      case LS_NORM: status = k.norm(*(const ls_norm_args*)a); break;
      case LS_SWIGLU: status = k.swiglu(*(const ls_swiglu_args*)a); break;
      case LS_ADD: status = k.add(*(const ls_add_args*)a); break;
      case LS_ROUTE: status = k.route(*(const ls_route_args*)a); break;
      case LS_LIKELIEST: status = k.likeliest(*(const ls_likeliest_args*)a); break;
    }
    if (status) {
      *failed = i;
      return status;
    }
  }
  return 0;
}

LS_EXPORT double ls_peak_flops(int is_bf16, int threads, double seconds) {
  return chosen().peak_flops(is_bf16, threads, seconds);
}
LS_EXPORT double ls_stream_read(const void* memory, size_t bytes, int threads) {
  return chosen().stream_read(memory, bytes, threads);
}
