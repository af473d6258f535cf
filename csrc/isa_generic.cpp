#define LS_NS ls_generic
#define LS_NAME "generic"
#include "isa.inc"
