#define LS_NS ls_avx2
#define LS_NAME "avx2"
#include "isa.inc"
