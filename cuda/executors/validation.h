// Validation data on the device, and what evaluations of them leave: results on their way to the host, and the
// parameters that had the smallest loss.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "../../host/accuracy.h"
#include "../../host/executor.h"
#include "../../host/matrix_ops.h"
#include "../../host/parameters.h"
#include "../../host/planning/arena_space.h"
#include "../../host/planning/kernel_layout.h"
#include "../../host/step/step.h"
#include "../kernels/kernels.h"
#include "../runtime/graph.h"
#include "../runtime/owners.h"
#include "device_memory.h"
#include "executor_stream.h"

namespace deviceloop::cuda {

/// Where they lie: offsets in bytes from the start of one buffer. Predictions are made `panel_rows` rows at a time.
struct ValidationLayout {
  ValidationLayout(const NetworkSpec& network, const TrainingSpec& training, std::int64_t sample_rows,
                   std::int64_t target_columns, std::int64_t panel)
      : rows(sample_rows), panel_rows(panel), columns(network.widths.back()) {
    constexpr std::uint64_t kAlignment = 256, kDouble = sizeof(double);
    const std::uint64_t element = size_of(element_type(training.precision));
    ArenaSpace space(network, training, kAlignment);
    loss = loss_of(network, training, rows, target_columns != columns);
    x = space.take(rows, network.widths.front(), element);
    y = space.take(rows, target_columns, element);
    panels = divide_up(rows, panel_rows);
    losses = space.take(panels, 1, kDouble);
    counts = space.take(divide_up(rows, kLossRows), 1, kDouble);
    slots = space.take(
        std::max({element_loss_slots<double>(panel_rows * columns), row_loss_slots(panel_rows), std::int64_t{1}}), 1,
        kDouble);
    state = space.take(1, 1, sizeof(EvaluationState));
    if (training.watch.keep_best)
      for (const ParameterInfo& info : parameter_layout(network))
        best.push_back(space.take(info.rows, info.columns, element));
    bytes = space.used();
  }

  std::int64_t rows, panel_rows, columns, panels = 0;
  LossOfStep loss{};
  std::uint64_t x = 0, y = 0;       ///< [rows, in_features], [rows, outputs] or [rows, 1] of classes
  std::uint64_t losses = 0;         ///< double [panels]
  std::uint64_t counts = 0;         ///< double: one for every kLossRows rows
  std::uint64_t slots = 0;          ///< double: partial sums of the loss of a panel
  std::uint64_t state = 0;          ///< EvaluationState
  std::vector<std::uint64_t> best;  ///< the parameters, with Watch::keep_best
  std::uint64_t bytes = 0;
};

/// Evaluations that are not fetched, on the host: each is copied there behind it on its stream.
class EvaluationQueue {
 public:
  EvaluationQueue() : pinned_(kRoom * sizeof(EvaluationSums)) {}

  void send(const EvaluationState* state, cudaStream_t stream) {
    static_assert(sizeof(EvaluationSums) == 2 * sizeof(double) && offsetof(EvaluationState, loss) == 0 &&
                  offsetof(EvaluationState, correct) == sizeof(double));
    if (sent_ == kRoom) collect(stream);
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(static_cast<EvaluationSums*>(pinned_.data()) + sent_, state,
                                          sizeof(EvaluationSums), cudaMemcpyDeviceToHost, stream));
    ++sent_;
  }

  /// Waits for all of the stream.
  void fetch(std::span<EvaluationSums> out, cudaStream_t stream) {
    collect(stream);
    std::copy_n(collected_.begin(), out.size(), out.begin());
    collected_.erase(collected_.begin(), collected_.begin() + static_cast<std::ptrdiff_t>(out.size()));
  }

 private:
  static constexpr std::size_t kRoom = 1024;

  void collect(cudaStream_t stream) {
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream));
    const auto* const sums = static_cast<const EvaluationSums*>(pinned_.data());
    collected_.insert(collected_.end(), sums, sums + sent_);
    sent_ = 0;
  }

  PinnedBuffer pinned_;
  std::size_t sent_ = 0;
  std::vector<EvaluationSums> collected_;
};

template <class T>
class Validation {
 public:
  Validation(ValidationLayout layout, ExecutorStream& stream, const CudaOptions& options)
      : layout_(std::move(layout)), memory_(static_cast<std::size_t>(layout_.bytes), options), stream_(stream) {}
  /// Work that still runs must not lose its memory; what fails now has failed before.
  ~Validation() { drop_error(cudaStreamSynchronize(stream_.get())); }
  Validation(const Validation&) = delete;
  Validation& operator=(const Validation&) = delete;

  const ValidationLayout& layout() const { return layout_; }
  T* x() const { return at<T>(layout_.x); }
  T* y() const { return at<T>(layout_.y); }
  T* best(std::size_t index) const { return at<T>(layout_.best[index]); }

  void forget_best() { set_best_loss(std::numeric_limits<double>::infinity()); }

  /// Of the parameters that lie at best().
  void set_best_loss(double loss) {
    EvaluationState state{};
    state.best_loss = loss;
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(at<EvaluationState>(layout_.state), &state, sizeof state,
                                          cudaMemcpyHostToDevice, stream_.get()));
    stream_.wait();
  }

  /// `predict(x, rows)` enqueues the predictions of some rows and returns where they will lie. It is done once as it
  /// is, so that all code is loaded, and then captured.
  template <class Predict>
  void prepare(const Predict& predict) {
    enqueue_panels(predict);
    stream_.wait();
    panels_ = stream_.capture([&] { enqueue_panels(predict); });
    forget_best();
  }

  /// `parameters` [layout().best.size()] are kept where the loss is the smallest so far.
  void enqueue(bool may_be_best, const std::vector<std::pair<const T*, std::int64_t>>& parameters) {
    panels_.launch(stream_.get());
    auto* const state = at<EvaluationState>(layout_.state);
    launch_end_evaluation(state, at<double>(layout_.losses), layout_.panels, at<double>(layout_.counts), count_terms(),
                          may_be_best, stream_.get());
    if (may_be_best)
      for (std::size_t index = 0; index < layout_.best.size(); ++index)
        launch_keep_best(best(index), parameters[index].first, state, parameters[index].second, stream_.get());
    queue_.send(state, stream_.get());
  }

  void fetch(std::span<EvaluationSums> out) { queue_.fetch(out, stream_.get()); }

 private:
  template <class Element>
  Element* at(std::uint64_t offset) const {
    return reinterpret_cast<Element*>(static_cast<std::byte*>(memory_.data()) + offset);
  }

  std::int64_t count_terms() const {
    return counted_predictions(layout_.loss.kind, layout_.rows, layout_.columns) == 0
               ? 0
               : divide_up(layout_.rows, kLossRows);
  }

  template <class Predict>
  void enqueue_panels(const Predict& predict) const {
    const std::int64_t target_columns = layout_.loss.has_classes ? 1 : layout_.columns;
    for (std::int64_t panel = 0; panel < layout_.panels; ++panel) {
      const std::int64_t first = panel * layout_.panel_rows, rows = std::min(layout_.panel_rows, layout_.rows - first);
      const T* const prediction = predict(first, rows);
      const T* const target = y() + first * target_columns;
      launch_loss<T>(layout_.loss, {at<double>(layout_.losses) + panel}, nullptr, prediction, target, nullptr, rows,
                     layout_.columns, at<double>(layout_.slots), stream_.get());
      if (count_terms() > 0)
        launch_count_right(at<double>(layout_.counts) + first / kLossRows, layout_.loss, prediction, target, rows,
                           layout_.columns, stream_.get());
    }
  }

  const ValidationLayout layout_;
  DeviceMemory memory_;
  ExecutorStream& stream_;
  Graph panels_;
  EvaluationQueue queue_;
};

}  // namespace deviceloop::cuda
