/// \file
/// Everything that deviceloop offers to C++ programs.
#pragma once

#include <deviceloop/error.h>
#include <deviceloop/kernels.h>
#include <deviceloop/matrix.h>
#include <deviceloop/plan.h>
#include <deviceloop/random.h>
#include <deviceloop/spec.h>
#include <deviceloop/trainer.h>
#include <deviceloop/version.h>

/// The whole library. Names that begin with `DEVICELOOP_` are macros.
namespace deviceloop {}
