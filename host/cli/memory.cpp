#include "memory.h"

#include <cstdio>
#include <iterator>
#include <limits>

#include <deviceloop/error.h>

#include "machine.h"
#include "matrix_ops.h"
#include "planning/decision.h"
#include "text.h"

namespace deviceloop::cli {
namespace {

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

std::uint64_t multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kMost : product;
}

/// The data as an executor has them, and as they are generated.
ByteCount data_bytes(const TrainOptions& run, std::int64_t samples) {
  return ByteCount().add(size_of(element_type(run.training.precision)), static_cast<std::uint64_t>(samples),
                         static_cast<std::uint64_t>(run.network.widths.front() + run.network.widths.back() +
                                                    (run.training.sample_weights ? 1 : 0)));
}

}  // namespace

ByteCount& ByteCount::add(std::uint64_t bytes, std::uint64_t rows, std::uint64_t columns) {
  if (__builtin_add_overflow(total_, multiply(multiply(bytes, rows), columns), &total_)) total_ = kMost;
  return *this;
}

ByteCount& ByteCount::add_parameters(const NetworkSpec& network, Precision precision) {
  const std::uint64_t element = size_of(element_type(precision));
  for (int layer = 0; layer < network.layers(); ++layer) {
    const auto columns = static_cast<std::uint64_t>(network.out_features(layer));
    add(element, static_cast<std::uint64_t>(network.in_features(layer)), columns);
    if (network.bias) add(element, columns);
  }
  return *this;
}

void check_memory(const std::string& what, const ByteCount& bytes, const CpuCaps& caps) {
  // A machine whose memory is unknown still cannot address more than this.
  const std::uint64_t most =
      caps.memory_bytes != 0 ? caps.memory_bytes : std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  if (bytes.total() > most)
    throw InvalidArgument(what + " take " + (bytes.total() == kMost ? "more than " : "") + bytes_text(bytes.total()) +
                          " of memory, but only " + bytes_text(most) + " are free; ask for less, or free some memory");
}

std::string run_text(const TrainOptions& run, std::int64_t samples) {
  return "--layers " + widths_text(run.network.widths) +
         (samples > 0 ? ", " + std::to_string(samples) + " samples" : "") +
         (run.epochs > 0 ? " and --epochs " + std::to_string(run.epochs) : " and --steps " + std::to_string(run.steps));
}

std::uint64_t host_bytes(const Plan& plan) {
  return row_of(plan.executor).is_on_gpu ? std::uint64_t{kPieceBytes} : plan.bytes;
}

ByteCount held_bytes(const TrainOptions& run, const Samples& read) {
  ByteCount bytes = run.has_files()
                        ? ByteCount().add(read.x.bytes.size()).add(read.y.bytes.size()).add(read.weights.bytes.size())
                        : data_bytes(run, run.training.samples);
  bytes.add(2 * sizeof(double), static_cast<std::uint64_t>(run.steps));
  // The weights as drawn or read, and as they are handed on.
  for (int copy = 0; copy < 2; ++copy) bytes.add_parameters(run.network, run.training.precision);
  return bytes;
}

Plan plan_run(const TrainOptions& run, DeviceCaps& caps, const Samples& read) {
  TrainingSpec training = run.training;
  if (run.has_files()) training.samples = read.x.rows;
  training.class_targets = are_classes(run, read);  // which the trainer finds out for itself
  const std::string what = run_text(run, training.samples);
  ByteCount bytes = held_bytes(run, read);
  // Where there is no GPU, the executor has at least one copy here: now the message can name what was asked for.
  ByteCount least = bytes;
  if (caps.gpus.empty())
    least.add(data_bytes(run, training.samples).total()).add_parameters(run.network, training.precision);
  check_memory(what, least, caps.cpu);

  Plan plan = decide_here(run.network, training, caps, run.forced).plan;
  check_memory(what, bytes.add(host_bytes(plan)), caps.cpu);
  return plan;
}

}  // namespace deviceloop::cli
