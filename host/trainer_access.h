// What the command asks of a Trainer beside its public functions: the trainer is the one that looks at the elements of
// data from files, and its messages name the files.
#pragma once

#include <string>

#include <deviceloop/trainer.h>

#include "files/safetensors.h"

namespace deviceloop {

struct TrainerAccess {
  /// Trainer::set_data, set_validation and predict; a message about an element begins with these names. Null weights:
  /// none.
  /// @{
  static void set_data(Trainer& trainer, ConstMatrix x, ConstMatrix y, const std::string& x_name,
                       const std::string& y_name, const ConstMatrix* sample_weights = nullptr,
                       const std::string& weights_name = "");
  static void set_validation(Trainer& trainer, ConstMatrix x, ConstMatrix y, const std::string& x_name,
                             const std::string& y_name);
  static void predict(Trainer& trainer, ConstMatrix x, Matrix out, const std::string& x_name);
  /// @}
  /// Trainer::load_weights of a file that is open, so that a pipe is read once.
  static void load_weights(Trainer& trainer, const SafeTensorsFile& file);
};

}  // namespace deviceloop
