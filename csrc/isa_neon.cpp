#define LS_NS ls_neon
#define LS_NAME "neon"
#define LS_NEON
#include "isa.inc"
