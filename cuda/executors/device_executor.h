// What the executors of a GPU share: one arena, a stream, the way of data and parameters in and out, losses on their
// way to the host, and what becomes of a failure.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <deviceloop/error.h>

#include "../../host/executor.h"
#include "../../host/matrix_ops.h"
#include "../../host/parameters.h"
#include "../../host/text.h"
#include "../kernels/kernels.h"
#include "../runtime/owners.h"
#include "../runtime/range.h"
#include "device_memory.h"
#include "executor_stream.h"
#include "loss_queue.h"
#include "validation.h"

namespace deviceloop::cuda {

/// T is float or double. A derived class says where the parameters lie, takes its resources on the executor's device in
/// its constructor by take_arena, and rehearses a step there, so that all code is loaded before the first one.
template <class T>
class DeviceExecutor : public Executor {
 public:
  DeviceExecutor(const NetworkSpec& network, const TrainingSpec& training, const Plan& plan, const CudaOptions& options)
      : network_(network),
        training_(training),
        state_(state_layout(network, training)),
        plan_name_(name(plan.executor)),
        device_(plan.device),
        options_(options) {
    const CurrentDevice current(device_);
    cuda::refuse_capture(options_.stream);
    DEVICELOOP_CHECK_CUDA(cudaFree(nullptr));  // creates the device's context, where there is none yet
    this->preparation_.lap("context");
  }

  void losses(std::span<double> out) override {
    if (out.empty()) return;
    alive([&] {
      const Range range("deviceloop: read losses");
      losses_->fetch(out);
      check_run();
    });
  }

  std::int64_t losses_here() override {
    std::int64_t count = 0;
    alive([&] { count = losses_->here(); });
    return count;
  }

  void end_run() override {
    alive([&] { enqueue_end(); });
  }

  void finish() override {
    alive([&] {
      enqueue_end();
      DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
      check_run();
    });
  }

  void read_state(int index, Matrix out) override {
    alive_reading([&] {
      enqueue_end();  // where an exception ended the run before
      const ParameterInfo& info = state_[static_cast<std::size_t>(index)];
      give_matrix(out, state_at(info), info.rows, info.columns);
    });
  }

  void predict(ConstMatrix x, Matrix out) override {
    const bool waits = x.space == MemorySpace::host || out.space == MemorySpace::host;
    const auto predict_all = [&] {
      enqueue_end();
      prepare_predict();
      const PredictRoom room = predict_room();
      if (!waits && !is_captured(options_.stream)) prepare_panels();
      for (std::int64_t first = 0, rows = 0; first < x.rows; first += rows) {
        rows = predict_in_place(rows_of(x, first, x.rows - first), rows_of(out, first, x.rows - first));
        if (rows > 0) continue;
        rows = std::min(room.rows, x.rows - first);
        take_matrix(room.input, rows_of(x, first, rows));
        give_matrix(rows_of(out, first, rows), enqueue_predict(rows), rows, out.columns);
      }
    };
    alive_reading(predict_all, waits);
  }

  void set_validation(ConstMatrix x, ConstMatrix y) override {
    check_alive();
    const PredictRoom room = predict_room();
    ValidationLayout layout(network_, training_, x.rows, y.columns, room.rows);
    if (x.rows > 0) {
      // Not the end of the executor: nothing has changed.
      const CurrentDevice current(device_);
      check_free(layout.bytes, validation_ ? validation_->layout().bytes : 0, "the validation data take",
                 "use fewer of them");
    }
    alive([&] {
      validation_.reset();
      if (x.rows == 0) return;
      prepare_predict();
      validation_.emplace(std::move(layout), *stream_, options_);
      upload_matrix(validation_->x(), x);
      upload_matrix(validation_->y(), y);
      validation_->prepare([&](std::int64_t first, std::int64_t rows) {
        const std::int64_t inputs = network_.widths.front();
        DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(room.input, validation_->x() + first * inputs, bytes_of(rows * inputs),
                                              cudaMemcpyDeviceToDevice, stream()));
        return enqueue_predict(rows);
      });
    });
  }

  void enqueue_evaluation(bool may_be_best) override {
    alive([&] {
      enqueue_end();
      std::vector<std::pair<const T*, std::int64_t>> parameters;
      for (const ParameterInfo& info : state_)
        if (info.state < 0) parameters.emplace_back(state_at(info), info.rows * info.columns);
      validation_->enqueue(may_be_best, parameters);
    });
  }

  void evaluations(std::span<EvaluationSums> out) override {
    if (out.empty()) return;
    alive([&] {
      validation_->fetch(out);
      check_run();
    });
  }

  void forget_best() override {
    alive([&] {
      if (validation_) validation_->forget_best();
    });
  }

  void read_best(int index, Matrix out) override {
    alive_reading([&] {
      const ParameterInfo& info = state_[static_cast<std::size_t>(index)];
      give_matrix(out, validation_->best(static_cast<std::size_t>(index)), info.rows, info.columns);
    });
  }

  void read_tensor(TensorId id, std::int64_t first_row, Matrix out) override {
    alive([&] { download_matrix(out, tensor_at(id) + first_row * out.columns, out.rows, out.columns); });
  }
  void write_tensor(TensorId id, ConstMatrix in) override {
    alive([&] { upload_matrix(tensor_at(id), in); });
  }
  void write_best(double loss, const Parameters& parameters) override {
    alive([&] {
      for (std::size_t index = 0; index < parameters.size(); ++index)
        upload_matrix(validation_->best(index), parameters[index].view());
      validation_->set_best_loss(loss);
    });
  }

 protected:
  /// Where a tensor of the state lies.
  virtual T* state_at(const ParameterInfo& info) = 0;
  /// Where a tensor of the step lies that read_tensor() may name.
  virtual T* tensor_at(TensorId id) = 0;
  /// Enqueues what a run owes after its last step, unless that was done.
  virtual void enqueue_end() {}
  /// Where the input of predictions lies, and of how many rows at most.
  struct PredictRoom {
    T* input;
    std::int64_t rows;
  };
  virtual PredictRoom predict_room() const = 0;
  /// What predictions need and training does not.
  virtual void prepare_predict() {}
  /// Enqueues the predictions of so many rows, and returns where they will lie.
  virtual const T* enqueue_predict(std::int64_t rows) const = 0;
  /// Enqueues the predictions of some of the first rows of x to `out` without a copy, where the executor can do that
  /// with these matrices, and returns how many; 0 where it cannot.
  virtual std::int64_t predict_in_place(ConstMatrix, Matrix) { return 0; }
  /// What that needs, before the first call; not while the stream is being captured.
  virtual void prepare_panels() {}
  /// Throws where the run that the stream has ended went wrong.
  virtual void check_run() {}

  /// Takes the memory, all of it 0: no kernel reads what nothing has written, a rehearsal on it changes nothing, and
  /// parameters begin at 0. Before that it is seen whether `bytes` are free: an allocation that fails says less.
  /// `losses` is where the arena has the ring of [2, steps_per_launch] doubles; 0 steps: no run, no ring.
  void take_arena(std::uint64_t bytes, std::uint64_t losses, std::int64_t steps_per_launch) {
    stream_.emplace(options_.stream);
    check_free(bytes, 0, "plan '" + plan_name_ + "' takes",
               "end what else runs on it, use fewer samples, or the plan 'cpu'");
    arena_.emplace(static_cast<std::size_t>(bytes), options_);
    clear(0, bytes);
    if (steps_per_launch > 0) losses_.emplace(at<double>(losses), steps_per_launch);
    this->preparation_.lap("memory");
  }

  /// Throws where `bytes` are not free on the current device once `given_back` are.
  void check_free(std::uint64_t bytes, std::uint64_t given_back, const std::string& what_takes,
                  const std::string& remedy) const {
    if (options_.allocate) return;
    std::size_t free = 0, total = 0;
    DEVICELOOP_CHECK_CUDA(cudaMemGetInfo(&free, &total));
    if (bytes > free + given_back)
      throw Unsupported(what_takes + " " + bytes_text(bytes) + " of the memory of GPU " + std::to_string(device_) +
                        ", of which " + bytes_text(free + given_back) + " are free; " + remedy);
  }

  /// Runs `work`, of a derived class's constructor, on the executor's device, which stays current while a failure gives
  /// back what was taken.
  template <class Work>
  void build(Work work) {
    const Range range("deviceloop: make executor");
    try {
      const CurrentDevice current(device_);
      work();
    } catch (...) {
      leave();
      throw;
    }
  }

  void clear(std::uint64_t offset, std::uint64_t bytes) const {
    DEVICELOOP_CHECK_CUDA(cudaMemsetAsync(at<std::byte>(offset), 0, static_cast<std::size_t>(bytes), stream()));
  }

  /// In the destructor of a derived class: waits for the work that still runs, and keeps the device current while
  /// resources are freed. An error now was reported before.
  void leave() noexcept {
    try {
      last_.emplace(device_);
    } catch (const std::exception&) {
    }
    if (stream_) drop_error(cudaStreamSynchronize(stream()));
  }

  /// Runs `call` on the executor's device; what it throws, arguments having been checked before, is the end of the
  /// executor: a step may have been taken in part. Refuses a stream that the caller captures, before `call`.
  template <class Call>
  void alive(Call call) {
    run(call, true);
  }
  /// The same of a call that the caller may capture.
  template <class Call>
  void capturable(Call call) {
    run(call, false);
  }

  /// The same of a call that only reads: memory of the host that it is refused is not the end.
  template <class Call>
  void alive_reading(Call call, bool refuses_capture = true) {
    std::exception_ptr refused;
    const auto read = [&] {
      try {
        call();
      } catch (const std::bad_alloc&) {
        refused = std::current_exception();
      }
    };
    run(read, refuses_capture);
    if (refused) std::rethrow_exception(refused);
  }

  void check_alive() const {
    if (is_dead_)
      throw DeviceError("this trainer cannot be used any more, because of an earlier failure: " + cause_of_death_ +
                            "; make a new one",
                        "deviceloop", 0, "", "", 0);
  }

  cudaStream_t stream() const { return stream_->get(); }

  template <class Enqueue>
  Graph captured(const Enqueue& enqueue) {
    return stream_->capture(enqueue);
  }

  template <class Element>
  Element* at(std::uint64_t offset) const {
    return reinterpret_cast<Element*>(static_cast<std::byte*>(arena_->data()) + offset);
  }

  // From and to the caller. Those of the host wait.

  void take_matrix(T* to, const ConstMatrix& from) {
    if (from.space == MemorySpace::host) return upload_matrix(to, from);
    copy_on_device(on_device(to, from.rows, from.columns), from);
  }
  void give_matrix(const Matrix& to, const T* from, std::int64_t rows, std::int64_t columns) {
    if (to.space == MemorySpace::host) return download_matrix(to, from, rows, columns);
    copy_on_device(to, on_device(from, rows, columns));
  }
  /// Where an executor has its copies of data; null where the caller's are read, or there are none.
  struct DataCopies {
    T *x = nullptr, *y = nullptr, *sample_weights = nullptr;
  };
  void take_data(const TrainingData& data, const DataCopies& copies) {
    data_ = data;
    copies_ = copies;
    for_copies([&](T* to, const ConstMatrix& from) { take_matrix(to, from); });
  }
  /// Those in device memory again.
  void take_device_data() {
    for_copies([&](T* to, const ConstMatrix& from) {
      if (from.space == MemorySpace::device) take_matrix(to, from);
    });
  }
  void copy_on_device(const Matrix& to, const ConstMatrix& from) {
    if (from.rows * from.columns == 0) return;
    with_type(to.type, [&]<class Out>(Out*) {
      with_read_type(from.type, [&]<class In>(In*) {
        launch_convert(static_cast<Out*>(to.data), to.row_stride, static_cast<const In*>(from.data), from.row_stride,
                       from.rows, from.columns, stream());
      });
    });
  }

  /// Whether kernels of T and products of the library can read or write the matrix where it is.
  static bool is_ready_for_use(const ConstMatrix& matrix) {
    return matrix.space == MemorySpace::device && lies_as_on_device(matrix) &&
           reinterpret_cast<std::uintptr_t>(matrix.data) % DeviceMemory::kAlignment == 0;
  }

  void upload(void* to, const void* from, std::size_t bytes) {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()));
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
  }
  void download(void* to, const void* from, std::size_t bytes) {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()));
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream()));
  }
  // Directly where the elements lie on the host as on the device, else piece by piece.
  void upload_matrix(T* to, ConstMatrix from) {
    const std::int64_t elements = from.rows * from.columns;
    if (lies_as_on_device(from)) return upload(to, from.data, bytes_of(elements));
    std::vector<T> values(static_cast<std::size_t>(std::min(elements, kPiece)));
    for_each_piece(from, kPiece, [&](const ConstMatrix& piece, std::int64_t first) {
      convert(Matrix(values.data(), piece.rows, piece.columns), piece);
      upload(to + first, values.data(), bytes_of(piece.rows * piece.columns));
    });
  }
  void download_matrix(Matrix to, const T* from, std::int64_t rows, std::int64_t columns) {
    if (lies_as_on_device(to)) return download(to.data, from, bytes_of(rows * columns));
    std::vector<T> values(static_cast<std::size_t>(std::min(rows * columns, kPiece)));
    for_each_piece(to, kPiece, [&](const Matrix& piece, std::int64_t first) {
      download(values.data(), from + first, bytes_of(piece.rows * piece.columns));
      convert(piece, ConstMatrix(values.data(), piece.rows, piece.columns));
    });
  }

  const NetworkSpec network_;
  const TrainingSpec training_;
  const std::vector<ParameterInfo> state_;
  const std::string plan_name_;
  const int device_;
  const CudaOptions options_;

 private:
  static constexpr std::int64_t kPiece = kPieceBytes / static_cast<std::int64_t>(sizeof(T));

  static bool lies_as_on_device(const ConstMatrix& matrix) {
    return matrix.type == element_type_of<T>() && matrix.row_stride == matrix.columns;
  }
  static std::size_t bytes_of(std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(T); }

  template <class Call>
  void run(Call call, bool refuses_capture) {
    check_alive();
    bool is_refusal = true;
    try {
      const CurrentDevice current(device_);
      if (refuses_capture) cuda::refuse_capture(options_.stream);
      is_refusal = false;
      call();
    } catch (const InvalidArgument& error) {
      if (!is_refusal) die(error.what());
      throw;
    } catch (const std::exception& error) {
      die(error.what());
      throw;
    }
  }

  /// Whatever else there is no memory for.
  void die(const char* cause) noexcept {
    is_dead_ = true;
    try {
      cause_of_death_ = cause;
    } catch (const std::bad_alloc&) {
    }
  }

  template <class Take>
  void for_copies(const Take& take) {
    if (copies_.x != nullptr) take(copies_.x, data_.x);
    if (copies_.y != nullptr) take(copies_.y, data_.y);
    if (copies_.sample_weights != nullptr) take(copies_.sample_weights, data_.sample_weights);
  }

  TrainingData data_;  ///< the views of set_data; those of the host are not read again
  DataCopies copies_;

  std::optional<CurrentDevice> last_;  ///< goes after all that it is for
  bool is_dead_ = false;
  std::string cause_of_death_;
  std::optional<DeviceMemory> arena_;
  std::optional<ExecutorStream> stream_;  ///< waits before the memory goes
  std::optional<Validation<T>> validation_;

 protected:
  std::optional<LossQueue> losses_;
};

}  // namespace deviceloop::cuda
