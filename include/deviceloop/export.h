/// \file
/// DEVICELOOP_EXPORT marks what the library offers to others; everything else is hidden.
#pragma once

/// Set on every class and function that a program may use.
#if defined(__GNUC__)
#define DEVICELOOP_EXPORT __attribute__((visibility("default")))
#else
#define DEVICELOOP_EXPORT
#endif
