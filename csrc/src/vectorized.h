#pragma once

// The same source compiled for several instruction sets; the loader picks the machine's. An
// instrumented build takes one: sanitizers cannot run the loader's choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NSN_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NSN_VECTORIZED
#endif
/// Says of the loop behind it that its stores do not change what it loads.
#if defined(__GNUC__) && !defined(__clang__)
#define NSN_IVDEP _Pragma("GCC ivdep")
#else
#define NSN_IVDEP
#endif
/// What a vectorized function calls has to be compiled as part of it.
#define NSN_INLINE inline __attribute__((always_inline))
