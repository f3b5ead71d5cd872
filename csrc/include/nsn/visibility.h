#pragma once

/// Marks what the shared library exports; everything else has hidden visibility.
#if defined(_WIN32)
#if defined(NSN_BUILDING)
#define NSN_API __declspec(dllexport)
#else
#define NSN_API __declspec(dllimport)
#endif
#else
#define NSN_API __attribute__((visibility("default")))
#endif
