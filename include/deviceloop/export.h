// DEVICELOOP_EXPORT marks what the library offers to others; everything else is hidden.
#pragma once

#if defined(__GNUC__)
#define DEVICELOOP_EXPORT __attribute__((visibility("default")))
#else
#define DEVICELOOP_EXPORT
#endif
