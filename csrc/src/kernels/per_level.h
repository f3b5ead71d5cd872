// Compiles the file that includes it once for each level. No include guard: Highway has its own.
//
//     #define HWY_TARGET_INCLUDE "kernels/this_file.cpp"
//     #include "kernels/per_level.h"
//     HWY_BEFORE_NAMESPACE();
//     namespace nsn::kernels::HWY_NAMESPACE { ... }  // the kernels, compiled several times
//     HWY_AFTER_NAMESPACE();
//     #if HWY_ONCE
//     ... NSN_AT_LEVEL(function)(arguments) ...      // the one for this processor
//     #endif

#ifndef NSN_PER_LEVEL
#define NSN_PER_LEVEL
#if defined(__x86_64__)
// Of Highway's targets those that are levels: SSE4, AVX2 and AVX3, not AVX3_SPR, _ZEN4 and _DL,
// which bring no better products, and no AES, which is no part of a level. The build gives -msse4.2
// (CMakeLists.txt), which makes SSE4 the least.
#define HWY_DISABLED_TARGETS ((1LL << 4) | (1LL << 6) | (1LL << 7))
#define HWY_DISABLE_PCLMUL_AES
#define NSN_AT_LEVEL(function)                 \
  (level() == Level::kV4   ? &N_AVX3::function \
   : level() == Level::kV3 ? &N_AVX2::function \
                           : &N_SSE4::function)
#else
// The compiler's baseline alone, on ARM without SVE, whose vectors have no size that tiles could be
// made of.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#define HWY_COMPILE_ONLY_STATIC
#define NSN_AT_LEVEL(function) (&HWY_NAMESPACE::function)
#endif
#endif

#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>
