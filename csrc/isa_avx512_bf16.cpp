#define LS_NS ls_avx512_bf16
#define LS_NAME "avx512_bf16"
#include "isa.inc"
