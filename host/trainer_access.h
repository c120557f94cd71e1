// What the command asks of a Trainer beside its public functions: the trainer is the one that looks at the elements of
// data from files, and its messages name the files.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include <deviceloop/trainer.h>

#include "files/network_metadata.h"
#include "files/output_file.h"
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
  /// Memory of the plan's GPU that outlives the trainer; null for 0 bytes. Throws InvalidArgument for the plan 'cpu',
  /// and while the stream is being captured; DeviceError where there is none left.
  static std::shared_ptr<void> device_memory(const Trainer& trainer, std::size_t bytes);
  /// Trainer::load_weights of a file that is open, so that a pipe is read once.
  static void load_weights(Trainer& trainer, const SafeTensorsFile& file);
  /// Trainer::save_state into a file that the caller commits, with what the command knows of the network and with more
  /// metadata, which throws Error where a parameter, or what the optimizer keeps, is not finite; and
  /// Trainer::load_state of the same run, on the same data: all settings must be equal (Settings::all), and so must the
  /// checksums of data and validation data, of which messages say what they are called.
  /// @{
  static void save_state(const Trainer& trainer, OutputFile& file, const NetworkMetadata& network,
                         const SafeTensorsMetadata& more);
  static void resume(Trainer& trainer, const SafeTensorsFile& file, const std::string& data_name,
                     const std::string& validation_name);
  /// @}
};

}  // namespace deviceloop
