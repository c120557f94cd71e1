/// \file
/// The version of these headers. CMakeLists.txt reads it from here; there is no second copy.
#pragma once

/// Numbers and text of the version; while the major one is 0, a new minor one may change the interface.
/// @{
#define DEVICELOOP_VERSION_MAJOR 0
#define DEVICELOOP_VERSION_MINOR 1
#define DEVICELOOP_VERSION_PATCH 0
#define DEVICELOOP_VERSION "0.1.0"
/// @}
