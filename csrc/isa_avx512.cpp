#define LS_NS ls_avx512
#define LS_NAME "avx512"
#include "isa.inc"
