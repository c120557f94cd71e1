/// \file
/// DEVICELOOP_EXPORT marks what the library offers to others; everything else is hidden. Every public header that needs
/// C++20 includes this one, which says so to a compiler that is set to less.
#pragma once

// MSVC has the language's version in _MSVC_LANG, whatever __cplusplus says; GCC 10 calls its C++20 201709.
#if (defined(_MSVC_LANG) && _MSVC_LANG <= 201703L) || (!defined(_MSVC_LANG) && __cplusplus <= 201703L)
#error \
    "deviceloop needs C++20: compile with -std=c++20 (MSVC: /std:c++20; CMake: target_compile_features(... cxx_std_20))"
#endif

/// Set on every class and function that a program may use.
#if defined(__GNUC__)
#define DEVICELOOP_EXPORT __attribute__((visibility("default")))
#else
#define DEVICELOOP_EXPORT
#endif
