/// \file
/// DEVICELOOP_EXPORT marks the symbols that the library exports; all others are hidden. Every public header that needs
/// C++20 includes this one, which stops with an error if the compiler is set to an older standard.
#pragma once

// MSVC reports the language's version in _MSVC_LANG, whatever __cplusplus says; GCC 10 reports 201709 for C++20.
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
