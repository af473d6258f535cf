#define LS_NS ls_neon_bf16
#define LS_NAME "neon_bf16"
#define LS_NEON
#include "isa.inc"
