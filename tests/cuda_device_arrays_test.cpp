// Arrays of the caller in device memory, and the caller's stream: on a GPU, and on the host by tests/simt.
#include <cuda_runtime_api.h>
#include <deviceloop/dlpack.h>
#include <dlpack/dlpack.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../cuda/runtime/graph.h"
#include "matrix_ops.h"
#include "support/cuda_test.h"
#include "support/narrow.h"
#include "support/problem.h"
#include "support/refusal.h"
#include "support/sanitized.h"
#include "support/where.h"

namespace deviceloop {
namespace {

using cuda::DeviceBuffer;
using cuda::StreamOwner;
using reference::Table;
using testing::refusal;

/// A matrix of T in device memory, its rows `stride` apart, `shift` bytes behind a border of 256.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const Table& table, std::int64_t stride = 0, std::size_t shift = 0)
      : rows_(static_cast<std::int64_t>(table.rows)),
        columns_(static_cast<std::int64_t>(table.columns)),
        stride_(stride == 0 ? columns_ : stride),
        shift_(shift),
        memory_(bytes() + shift) {
    const StreamOwner stream;
    write(table, stream.get());
    stream.wait();
  }

  T* data() const { return reinterpret_cast<T*>(static_cast<std::byte*>(memory_.data()) + shift_); }
  operator ConstMatrix() const { return on_device(static_cast<const T*>(data()), rows_, columns_, stride_); }
  operator Matrix() const { return on_device(data(), rows_, columns_, stride_); }

  /// Between the rows lies NaN. Behind what the stream holds; the copy is under way when this returns.
  void write(const Table& table, cudaStream_t stream) {
    auto values = std::make_unique<cuda::PinnedBuffer>(bytes());
    auto* const elements = static_cast<T*>(values->data());
    std::fill_n(elements, bytes() / sizeof(T), std::numeric_limits<T>::quiet_NaN());
    for (std::int64_t row = 0; row < rows_; ++row)
      for (std::int64_t column = 0; column < columns_; ++column)
        elements[row * stride_ + column] =
            static_cast<T>(table(static_cast<std::size_t>(row), static_cast<std::size_t>(column)));
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(data(), elements, bytes(), cudaMemcpyHostToDevice, stream));
    staged_.push_back(std::move(values));
  }

  Table read(cudaStream_t stream) const {
    std::vector<T> values(bytes() / sizeof(T));
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(values.data(), data(), bytes(), cudaMemcpyDeviceToHost, stream));
    DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream));
    Table table(static_cast<std::size_t>(rows_), static_cast<std::size_t>(columns_));
    for (std::int64_t row = 0; row < rows_; ++row)
      for (std::int64_t column = 0; column < columns_; ++column)
        table(static_cast<std::size_t>(row), static_cast<std::size_t>(column)) =
            values[static_cast<std::size_t>(row * stride_ + column)];
    return table;
  }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(rows_ * stride_) * sizeof(T); }

  std::int64_t rows_, columns_, stride_;
  std::size_t shift_;
  DeviceBuffer memory_;
  std::vector<std::unique_ptr<cuda::PinnedBuffer>> staged_;
};

std::vector<double> losses_of(Trainer& trainer, std::int64_t steps) { return trainer.train(steps).losses; }

class DeviceArrays : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override { require(GetParam()); }

  Problem problem(Precision precision = Precision::fp32, std::int64_t samples = 12) const {
    Problem made = Problem::random({20, 18, 2}, true, samples, precision, Init::he, 1e-3);
    made.training.form = GetParam().form;
    made.training.device.kind = DeviceKind::cuda;
    return made;
  }

  static Trainer trainer_of(const Problem& problem, const CudaOptions& options = {}) {
    Trainer trainer(problem.network, problem.training, options, GetParam().kind);
    problem.set_parameters(trainer, problem.start);
    return trainer;
  }

  static bool is_graph() { return GetParam().kind == ExecutorKind::graph; }
  static bool is_two_layer() { return GetParam().form == PersistentForm::two_layer; }
};

Table other_samples(const Table& like, std::uint64_t seed) {
  return Problem::filled(static_cast<std::int64_t>(like.rows), static_cast<std::int64_t>(like.columns), Precision::fp32,
                         seed, kTensorX);
}

TEST_P(DeviceArrays, TrainAsThoseOfTheHostDo) {
  const Problem of = problem();
  Trainer on_host = of.trainer(1, GetParam().kind);
  const std::vector<double> expected = losses_of(on_host, 7);
  const OnDevice<float> x(of.x), y(of.y), apart(of.x, 23), shifted(of.x, 0, 4);
  const OnDevice<double> wide_x(of.x), wide_y(of.y, 5);
  for (const auto& [name, data] :
       std::map<std::string, std::pair<ConstMatrix, ConstMatrix>>{{"in place", {x, y}},
                                                                  {"rows apart", {apart, y}},
                                                                  {"not aligned", {shifted, y}},
                                                                  {"converted", {wide_x, wide_y}},
                                                                  {"one of the host", {x, Problem::view(of.y)}}}) {
    SCOPED_TRACE(name);
    Trainer trainer = trainer_of(of);
    trainer.set_data(data.first, data.second);
    EXPECT_EQ(losses_of(trainer, 7), expected);
    EXPECT_EQ(of.parameters_of(trainer).front().weight.values, of.parameters_of(on_host).front().weight.values);
  }
}

TEST_P(DeviceArrays, MayHaveElementsOf16Bits) {
  const Problem of = problem();
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16}) {
    const testing::Narrow x(of.x, type), y(of.y, type);
    Trainer wide = trainer_of(of), narrow = trainer_of(of), mixed = trainer_of(of);
    wide.set_data(Problem::view(x.values), Problem::view(y.values));
    const StreamOwner stream;
    const auto copy_of = [&](const std::vector<std::uint16_t>& bits) {
      auto memory = std::make_unique<DeviceBuffer>(2 * bits.size());
      DEVICELOOP_CHECK_CUDA(
          cudaMemcpyAsync(memory->data(), bits.data(), 2 * bits.size(), cudaMemcpyHostToDevice, stream.get()));
      stream.wait();
      return memory;
    };
    const auto device_x = copy_of(x.bits), device_y = copy_of(y.bits);
    narrow.set_data(on_device(device_x->data(), type, 12, 20), on_device(device_y->data(), type, 12, 2));
    mixed.set_data(x.view(), y.view());
    const std::vector<double> expected = losses_of(wide, 5);
    EXPECT_EQ(losses_of(narrow, 5), expected);
    EXPECT_EQ(losses_of(mixed, 5), expected);

    std::vector<std::uint16_t> bits = x.bits;
    bits[27] = 0x7fff;
    const auto wrong = copy_of(bits);
    EXPECT_MENTIONS(refusal("x: row 1, column 7 is nan",
                            [&] { narrow.set_data(on_device(wrong->data(), type, 12, 20), Problem::view(of.y)); }),
                    "replace");
  }
}

TEST_P(DeviceArrays, TakeNewSamplesThatAreWrittenToThem) {
  for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
    if (formulation == Formulation::gram && is_two_layer()) continue;  // biases: checked below
    if (formulation == Formulation::gram && GetParam().form == PersistentForm::on_chip) continue;  // it has it not
    Problem of = problem();
    of.training.formulation = formulation;
    Trainer on_host = of.trainer(1, GetParam().kind);
    const StreamOwner stream;
    OnDevice<float> x(of.x);
    OnDevice<double> y(of.y);
    Trainer trainer = trainer_of(of, {.stream = stream.get()});
    trainer.set_data(x, y);
    EXPECT_EQ(losses_of(trainer, 3), losses_of(on_host, 3));
    for (const std::uint64_t seed : {21, 22}) {
      const Table new_x = other_samples(of.x, seed), new_y = other_samples(of.y, seed + 10);
      on_host.set_data(Problem::view(new_x), Problem::view(new_y));
      x.write(new_x, stream.get());
      y.write(new_y, stream.get());
      trainer.data_changed();
      EXPECT_EQ(losses_of(trainer, 3), losses_of(on_host, 3)) << name(formulation);
    }
  }
}

// Without a wait between frames, and in order with what the application puts on the stream.
TEST_P(DeviceArrays, TrainInFramesThatNobodyWaitsFor) {
  const Problem of = problem();
  Trainer on_host = of.trainer(1, GetParam().kind);
  const StreamOwner stream;
  OnDevice<float> x(of.x), y(of.y);
  Trainer trainer = trainer_of(of, {.stream = stream.get()});
  trainer.set_data(x, y);
  std::vector<TrainRun> runs;
  std::vector<std::vector<double>> expected;
  for (std::uint64_t frame = 0; frame < 5; ++frame) {
    const Table new_x = other_samples(of.x, 40 + frame), new_y = other_samples(of.y, 60 + frame);
    x.write(new_x, stream.get());
    y.write(new_y, stream.get());
    trainer.data_changed();
    runs.push_back(trainer.train_async(4));
    on_host.set_data(Problem::view(new_x), Problem::view(new_y));
    expected.push_back(losses_of(on_host, 4));
  }
  EXPECT_EQ(trainer.steps_done(), 20);
  // In another order than that of the runs.
  for (const std::size_t frame : {3, 0, 4, 1, 2}) {
    const TrainReport report = runs[frame].wait();
    EXPECT_EQ(report.losses, expected[frame]) << frame;
    EXPECT_EQ(report.first_step, static_cast<std::int64_t>(4 * frame));
    EXPECT_TRUE(runs[frame].done());
    EXPECT_EQ(runs[frame].losses(), expected[frame]);
  }
}

TEST_P(DeviceArrays, RunsOfTrainAsyncMayBeDroppedAndAreDoneBeforeOtherCalls) {
  const Problem of = problem();
  Trainer plain = of.trainer(1, GetParam().kind), trainer = of.trainer(1, GetParam().kind);
  const std::vector<double> expected = losses_of(plain, 12);
  trainer.train_async(3);
  TrainRun run = trainer.train_async(2);
  trainer.train_async(0);
  EXPECT_EQ(losses_of(trainer, 4), std::vector<double>(expected.begin() + 5, expected.begin() + 9));
  EXPECT_EQ(run.wait().losses, std::vector<double>(expected.begin() + 3, expected.begin() + 5));
  TrainRun last = trainer.train_async(3);
  EXPECT_EQ(of.parameters_of(trainer).front().weight.values, of.parameters_of(plain).front().weight.values);
  while (!last.done()) continue;
  EXPECT_EQ(last.losses(), std::vector<double>(expected.begin() + 9, expected.end()));
  // Data of another size make a new executor: the run is collected before.
  TrainRun before = trainer.train_async(1);
  const Table x = other_samples(Table(5, 20), 3), y = other_samples(Table(5, 2), 4);
  trainer.set_data(Problem::view(x), Problem::view(y));
  EXPECT_EQ(before.losses().size(), 1u);
}

TEST_P(DeviceArrays, ParametersAreReadAndWrittenThere) {
  const Problem of = problem();
  const StreamOwner stream;
  Trainer trainer = trainer_of(of, {.stream = stream.get()});
  const reference::Layer& layer = of.start.front();
  OnDevice<double> weight(Table(20, 18), 19);
  OnDevice<float> bias(Table(1, 18));
  trainer.read_weight(0, weight);  // before there is an executor
  trainer.read_bias(0, bias);
  EXPECT_EQ(weight.read(stream.get()).values, layer.weight.values);
  EXPECT_EQ(bias.read(stream.get()).values, layer.bias);
  const OnDevice<float> other(other_samples(layer.weight, 9));
  trainer.set_data(Problem::view(of.x), Problem::view(of.y));
  trainer.write_weight(0, other);
  trainer.read_weight(0, weight);
  EXPECT_EQ(weight.read(stream.get()).values, other_samples(layer.weight, 9).values);
  Table wrong(20, 18);
  wrong(3, 5) = std::numeric_limits<double>::infinity();
  EXPECT_MENTIONS(refusal("parameter 0.weight: row 3, column 5 is inf",
                          [&] { trainer.write_weight(0, OnDevice<double>(wrong, 20)); }),
                  "replace");
}

TEST_P(DeviceArrays, TensorsOfDlpackLieThereToo) {
  struct Delete {
    void operator()(DLManagedTensorVersioned* tensor) const { tensor->deleter(tensor); }
  };
  using Tensor = std::unique_ptr<DLManagedTensorVersioned, Delete>;
  const Problem of = problem();
  const StreamOwner stream;
  std::optional<Trainer> trainer(trainer_of(of, {.stream = stream.get()}));
  trainer->set_data(Problem::view(of.x), Problem::view(of.y));
  trainer->train(2);
  Table weight(20, 18), bias(1, 18), predicted(of.x.rows, 2);
  trainer->read_weight(0, Matrix(weight.values.data(), 20, 18));
  trainer->read_bias(0, Matrix(bias.values.data(), 1, 18));
  trainer->predict(Problem::view(of.x), Matrix(predicted.values.data(), static_cast<std::int64_t>(of.x.rows), 2));
  const OnDevice<float> x(of.x);
  const Tensor weights(weight_to_dlpack(*trainer, 0, MemorySpace::device)),
      biases(bias_to_dlpack(*trainer, 0, MemorySpace::device)), predictions(predict_to_dlpack(*trainer, x));
  const int device = trainer->plan().device;
  const ElementType type = element_type(of.training.precision);
  trainer.reset();  // the tensors stay
  const auto expect = [&](const Tensor& tensor, const Table& expected) {
    const DLTensor& of_dlpack = tensor->dl_tensor;
    EXPECT_EQ(of_dlpack.device.device_type, kDLCUDA);
    EXPECT_EQ(of_dlpack.device.device_id, device);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(of_dlpack.data) % 256, 0u);
    const ConstMatrix view = view_of_dlpack(*tensor);
    EXPECT_EQ(view.type, type);
    EXPECT_EQ(view.space, MemorySpace::device);
    with_type(type, [&]<class T>(T*) {
      std::vector<T> values(expected.values.size());
      DEVICELOOP_CHECK_CUDA(
          cudaMemcpyAsync(values.data(), view.data, values.size() * sizeof(T), cudaMemcpyDeviceToHost, stream.get()));
      DEVICELOOP_CHECK_CUDA(cudaStreamSynchronize(stream.get()));
      EXPECT_EQ(std::vector<double>(values.begin(), values.end()), expected.values);
    });
  };
  expect(weights, weight);
  expect(biases, bias);
  expect(predictions, predicted);
  EXPECT_EQ(biases->dl_tensor.ndim, 1);
}

TEST_P(DeviceArrays, PredictionsStayThereAndNobodyWaits) {
  const Problem of = problem();
  const StreamOwner stream;
  Trainer trainer = trainer_of(of, {.stream = stream.get()});
  trainer.set_data(Problem::view(of.x), Problem::view(of.y));
  for (const std::int64_t rows : {1, 1024, 1100}) {
    const Table x = other_samples(Table(static_cast<std::size_t>(rows), 20), 5);
    Table expected(x.rows, 2);
    trainer.predict(Problem::view(x), Matrix(expected.values.data(), rows, 2));
    const OnDevice<float> in(x), out(Table(x.rows, 2));
    const OnDevice<double> in_apart(x, 24), out_apart(Table(x.rows, 2), 3);
    trainer.predict(in, out);
    trainer.predict(in_apart, out_apart);
    EXPECT_EQ(out.read(stream.get()).values, expected.values) << rows;
    EXPECT_EQ(out_apart.read(stream.get()).values, expected.values) << rows;
    Table on_host(x.rows, 2);
    trainer.predict(in, Matrix(on_host.values.data(), rows, 2));
    EXPECT_EQ(on_host.values, expected.values);
  }
}

/// A graph of the caller's.
class CallersGraph {
 public:
  template <class Enqueue>
  CallersGraph(cudaStream_t stream, const Enqueue& enqueue)
      : graph_(cuda::Graph::capture(stream, [&](cudaStream_t) { enqueue(); })) {}
  void launch(cudaStream_t stream) const { graph_.launch(stream); }

 private:
  cuda::Graph graph_;
};

TEST_P(DeviceArrays, PredictIsTakenIntoTheCallersGraph) {
  const Problem of = problem();
  const StreamOwner stream;
  Trainer trainer = trainer_of(of, {.stream = stream.get()});
  trainer.set_data(Problem::view(of.x), Problem::view(of.y));
  const std::int64_t rows = 1100;
  Table x = other_samples(Table(static_cast<std::size_t>(rows), 20), 5), expected(x.rows, 2);
  OnDevice<float> in(x), out(Table(x.rows, 2));
  trainer.predict(in, out);
  const CallersGraph graph(stream.get(), [&] { trainer.predict(in, out); });
  for (int round = 0; round < 3; ++round) {  // with the parameters and inputs of each launch
    trainer.train_async(2);
    x = other_samples(x, 70 + static_cast<std::uint64_t>(round));
    in.write(x, stream.get());
    graph.launch(stream.get());
    const std::vector<double> values = out.read(stream.get()).values;
    trainer.predict(Problem::view(x), Matrix(expected.values.data(), rows, 2));
    EXPECT_EQ(values, expected.values) << round;
  }
}

TEST_P(DeviceArrays, AStepIsTakenIntoTheCallersGraph) {
  const Problem of = problem();
  const StreamOwner stream;
  OnDevice<float> x(of.x), y(of.y);
  Trainer trainer = trainer_of(of, {.stream = stream.get()});
  trainer.set_data(x, y);
  const DeviceBuffer loss(sizeof(double));
  auto* const at = static_cast<double*>(loss.data());
  if (!is_graph()) {
    EXPECT_MENTIONS(refusal<Unsupported>("enqueue_step", [&] { trainer.enqueue_step(at); }), "plan 'graph'");
    return;
  }
  Trainer plain = of.trainer(1, GetParam().kind);
  const std::vector<double> expected = losses_of(plain, 9);
  EXPECT_EQ(losses_of(trainer, 2), std::vector<double>(expected.begin(), expected.begin() + 2));
  const CallersGraph graph(stream.get(), [&] { trainer.enqueue_step(at); });
  const auto read_loss = [&] {
    double value = 0;
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(&value, at, sizeof value, cudaMemcpyDeviceToHost, stream.get()));
    stream.wait();
    return value;
  };
  for (std::size_t step = 2; step < 6; ++step) {
    graph.launch(stream.get());
    EXPECT_EQ(read_loss(), expected[step]) << step;
  }
  trainer.enqueue_step();
  EXPECT_EQ(losses_of(trainer, 2), std::vector<double>(expected.begin() + 7, expected.end()));
  EXPECT_EQ(trainer.steps_done(), 4);  // of train

  Problem varying = of;
  varying.training.optimizer.kind = OptimizerKind::adam;
  Trainer with_adam = varying.trainer(1, GetParam().kind);
  EXPECT_MENTIONS(refusal<Unsupported>("enqueue_step: steps have a learning rate", [&] { with_adam.enqueue_step(); }),
                  "use train");
  double on_host = 0;
  EXPECT_MENTIONS(refusal("the loss of enqueue_step is said to lie", [&] { trainer.enqueue_step(&on_host); }),
                  "cudaMalloc");
}

// What products read of them is a rounded copy, which follows what is written to them.
TEST_P(DeviceArrays, AreRoundedAnewWhenTheyChange) {
  for (const Precision precision : lower_precisions(GetParam())) {
    SCOPED_TRACE(name(precision));
    Problem of = problem();
    of.training.precision = precision;
    of.training.reduction = Reduction::mean;
    Trainer on_host = of.trainer(1, GetParam().kind);
    const StreamOwner stream;
    OnDevice<float> x(of.x), y(of.y), out(of.y);
    Trainer trainer = trainer_of(of, {.stream = stream.get()});
    trainer.set_data(x, y);
    EXPECT_EQ(losses_of(trainer, 3), losses_of(on_host, 3));
    Table samples = other_samples(of.x, 31), expected = of.y;
    x.write(samples, stream.get());
    trainer.data_changed();
    on_host.set_data(Problem::view(samples), Problem::view(of.y));
    EXPECT_EQ(losses_of(trainer, 3), losses_of(on_host, 3));
    trainer.predict(x, out);
    on_host.predict(Problem::view(samples), Matrix(expected.values.data(), static_cast<std::int64_t>(of.y.rows), 2));
    EXPECT_EQ(out.read(stream.get()).values, expected.values);
    const Table many = other_samples(Table(1100, 20), 34);
    Table expected_of_many(1100, 2);
    const OnDevice<float> all(many), made(expected_of_many);
    trainer.predict(all, made);  // the first 1024 in place
    on_host.predict(Problem::view(many), Matrix(expected_of_many.values.data(), 1100, 2));
    EXPECT_EQ(made.read(stream.get()).values, expected_of_many.values);
    const DeviceBuffer loss(sizeof(double));
    auto* const at = static_cast<double*>(loss.data());
    const CallersGraph graph(stream.get(), [&] { trainer.enqueue_step(at); });
    for (const std::uint64_t seed : {32, 33}) {
      samples = other_samples(of.x, seed);
      x.write(samples, stream.get());
      graph.launch(stream.get());
      double value = 0;
      DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(&value, at, sizeof value, cudaMemcpyDeviceToHost, stream.get()));
      stream.wait();
      on_host.set_data(Problem::view(samples), Problem::view(of.y));
      EXPECT_EQ(value, losses_of(on_host, 1).front());
    }
  }
}

// What waits, or takes host memory, would break a capture: it is refused, and the capture goes on.
TEST_P(DeviceArrays, OtherCallsRefuseAStreamThatIsCaptured) {
  const Problem of = problem();
  const StreamOwner stream;
  OnDevice<float> x(of.x), y(of.y), out(of.y);
  Trainer trainer = trainer_of(of, {.stream = stream.get()});
  trainer.set_data(x, y);
  trainer.predict(x, out);
  Table on_host = of.y;
  std::vector<float> weight(20 * 18);
  Trainer unprepared = trainer_of(of, {.stream = stream.get()});
  const CallersGraph graph(stream.get(), [&] {
    for (const std::function<void()>& call : std::vector<std::function<void()>>{
             [&] { trainer.train(1); }, [&] { trainer.train_async(1); }, [&] { trainer.loss(); },
             [&] { trainer.data_changed(); }, [&] { trainer.set_data(x, y); },
             [&] { trainer.predict(Problem::view(of.x), out); }, [&] { unprepared.prepare(); },
             [&] { trainer.read_weight(0, Matrix(weight.data(), 20, 18)); },
             [&] { trainer.write_weight(0, ConstMatrix(weight.data(), 20, 18)); }})
      EXPECT_MENTIONS(refusal("the trainer's stream is being captured", call), "end the capture first");
    trainer.predict(x, out);
  });
  graph.launch(stream.get());
  EXPECT_EQ(losses_of(trainer, 2), losses_of(unprepared = of.trainer(1, GetParam().kind), 2));
}

TEST_P(DeviceArrays, MemoryIsTheCallersAndComesBack) {
  const Problem of = problem();
  std::map<void*, std::size_t> taken;
  const CudaOptions options{.allocate =
                                [&](std::size_t bytes) {
                                  void* memory = nullptr;
                                  EXPECT_EQ(cudaMalloc(&memory, bytes), cudaSuccess);
                                  taken[memory] = bytes;
                                  return memory;
                                },
                            .free =
                                [&](void* memory, std::size_t bytes) {
                                  EXPECT_EQ(taken.at(memory), bytes);
                                  taken.erase(memory);
                                  EXPECT_EQ(cudaFree(memory), cudaSuccess);
                                }};
  Trainer plain = of.trainer(1, GetParam().kind);
  {
    OnDevice<float> x(of.x), y(of.y);
    Trainer trainer = trainer_of(of, options);
    trainer.set_data(x, y);
    trainer.set_validation(x, Problem::view(of.y));
    EXPECT_EQ(losses_of(trainer, 3), losses_of(plain, 3));
    EXPECT_FALSE(taken.empty());
  }
  EXPECT_TRUE(taken.empty());
  CudaOptions none = options;
  none.allocate = [](std::size_t) { return nullptr; };
  EXPECT_MENTIONS(refusal<Unsupported>("CudaOptions::allocate has no", [&] { trainer_of(of, none).prepare(); }), "use");
  none.allocate = [&](std::size_t bytes) { return static_cast<std::byte*>(options.allocate(bytes + 256)) + 16; };
  none.free = [&](void* memory, std::size_t bytes) { options.free(static_cast<std::byte*>(memory) - 16, bytes + 256); };
  EXPECT_MENTIONS(refusal("CudaOptions::allocate gave memory", [&] { trainer_of(of, none).prepare(); }), "256 bytes");
  EXPECT_TRUE(taken.empty());
  none.free = nullptr;
  EXPECT_MENTIONS(refusal("CudaOptions has one of allocate and free", [&] { trainer_of(of, none); }), "both or none");
}

TEST_P(DeviceArrays, ThatAreNotWhatTheySeemAreRefusedBeforeAnythingRuns) {
  const Problem of = problem();
  Trainer trainer = trainer_of(of);
  const OnDevice<float> x(of.x), y(of.y);
  const std::vector<float> host(of.x.values.size());
  EXPECT_MENTIONS(
      refusal("x is said to lie in a GPU's memory", [&] { trainer.set_data(on_device(host.data(), 12, 20), y); }),
      "MemorySpace::host");
  const std::int64_t too_many = std::int64_t{1} << 32;  // 16 GiB behind 240 floats
  EXPECT_MENTIONS(
      refusal("y takes ",
              [&] { trainer.set_data(x, on_device(static_cast<const float*>(y.data()), 12, 2, too_many)); }),
      "the memory at its pointer ends before that");
  Table wrong = of.x;
  wrong(11, 19) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_MENTIONS(refusal("x: row 11, column 19 is nan", [&] { trainer.set_data(OnDevice<float>(wrong), y); }),
                  "replace");
  wrong(4, 7) = 1e200;
  EXPECT_MENTIONS(refusal("x: row 4, column 7 is 1e+200, which fp32 cannot hold",
                          [&] { trainer.set_data(OnDevice<double>(wrong, 33), y); }),
                  "replace");
  Table weights(12, 1);
  weights(9, 0) = -0.5;
  if (!is_two_layer()) {  // which has none
    EXPECT_MENTIONS(refusal("sample_weights: row 9 is -0.5", [&] { trainer.set_data(x, y, OnDevice<float>(weights)); }),
                    "must not be negative");
  }
  trainer.set_data(x, y);  // nothing of all that is left
  Trainer plain = of.trainer(1, GetParam().kind);
  EXPECT_EQ(losses_of(trainer, 2), losses_of(plain, 2));
  trainer.set_data(Problem::view(of.x), Problem::view(of.y));
  EXPECT_MENTIONS(refusal("Trainer::data_changed is for arrays in a GPU's memory", [&] { trainer.data_changed(); }),
                  "call set_data again");
}

INSTANTIATE_TEST_SUITE_P(CudaExecutors, DeviceArrays,
                         ::testing::Values(Where{ExecutorKind::graph},
                                           Where{ExecutorKind::persistent, PersistentForm::two_layer},
                                           Where{ExecutorKind::persistent, PersistentForm::on_chip}),
                         [](const ::testing::TestParamInfo<Where>& where) {
                           std::string text = ::testing::PrintToString(where.param);
                           std::replace(text.begin(), text.end(), '-', '_');
                           return text;
                         });

class DeviceData : public testing::CudaTest {};

TEST_F(DeviceData, OfClassesAreLookedAt) {
  Problem of = Problem::random({20, 18, 4}, true, 6, Precision::fp32, Init::he, 1e-3);
  of.training.loss = Loss::cross_entropy;
  of.y = Table(6, 1);
  for (std::size_t row = 0; row < 6; ++row) of.y(row, 0) = static_cast<double>(row % 4);
  of.training.device.kind = DeviceKind::cuda;
  const OnDevice<float> x(of.x), y(of.y);
  Trainer on_host = of.trainer(1, ExecutorKind::graph);
  Trainer trainer(of.network, of.training, CudaOptions{}, ExecutorKind::graph);
  of.set_parameters(trainer, of.start);
  trainer.set_data(x, y);
  EXPECT_EQ(losses_of(trainer, 3), losses_of(on_host, 3));
  for (const double wrong : {4.0, -1.0, 1.5}) {
    Table classes = of.y;
    classes(5, 0) = wrong;
    EXPECT_MENTIONS(refusal("y: row 5 is ", [&] { trainer.set_data(x, OnDevice<float>(classes)); }), "from 0 to 3");
  }
}

// Adam's scalars and a batch's number differ from step to step: they are sent ahead of the steps.
TEST_F(DeviceData, InMinibatchesWithAdamNobodyWaits) {
  Problem of = Problem::random({20, 18, 2}, true, 37, Precision::fp32, Init::he, 1e-3);
  of.training.optimizer.kind = OptimizerKind::adam;
  of.training.batch_size = 8;
  of.training.device.kind = DeviceKind::cuda;
  const Table weights = [] {
    Table made(37, 1);
    for (std::size_t row = 0; row < 37; ++row) made(row, 0) = 0.25 * static_cast<double>(row % 5);
    return made;
  }();
  const OnDevice<float> x(of.x), y(of.y), sample_weights(weights);
  Trainer on_host(of.network, of.training, ExecutorKind::graph), trainer(of.network, of.training, ExecutorKind::graph);
  for (Trainer* const each : {&on_host, &trainer}) of.set_parameters(*each, of.start);
  on_host.set_data(Problem::view(of.x), Problem::view(of.y), Problem::view(weights));
  trainer.set_data(x, y, sample_weights);
  const std::int64_t steps = kHostFixture ? 70 : 5000;
  const std::vector<double> expected = losses_of(on_host, 2 * steps);
  TrainRun first = trainer.train_async(steps), second = trainer.train_async(steps);
  std::vector<double> losses = first.wait().losses;
  const std::vector<double> rest = second.wait().losses;
  losses.insert(losses.end(), rest.begin(), rest.end());
  EXPECT_EQ(losses, expected);
}

TEST_F(DeviceData, IsNotForThePlanOfTheHost) {
  const Problem of = Problem::random({20, 18, 2}, true, 6, Precision::fp32, Init::he, 1e-3);
  const OnDevice<float> x(of.x), y(of.y);
  Trainer trainer(of.network, of.training, ExecutorKind::cpu);
  EXPECT_MENTIONS(refusal("x lies in a GPU's memory, and the plan 'cpu'", [&] { trainer.set_data(x, y); }),
                  "DeviceKind::cuda");
  EXPECT_MENTIONS(refusal("x lies in a GPU's memory, and the plan 'cpu'", [&] { trainer.predict(x, y); }),
                  "DeviceKind::cuda");
}

TEST_F(DeviceData, TwoTrainersShareADeviceOnStreamsOfTheirOwn) {
  const Problem of = Problem::random({20, 18, 2}, true, 6, Precision::fp32, Init::he, 1e-3);
  Trainer plain = of.trainer(1, ExecutorKind::graph);
  const std::vector<double> expected = losses_of(plain, 6);
  const StreamOwner one, other;
  const OnDevice<float> x(of.x), y(of.y);
  std::vector<std::unique_ptr<Trainer>> trainers;
  for (const StreamOwner* stream : {&one, &other}) {
    trainers.push_back(
        std::make_unique<Trainer>(of.network, of.training, CudaOptions{.stream = stream->get()}, ExecutorKind::graph));
    of.set_parameters(*trainers.back(), of.start);
    trainers.back()->set_data(x, y);
  }
  std::vector<TrainRun> runs;
  for (int round = 0; round < 3; ++round)
    for (const auto& trainer : trainers) runs.push_back(trainer->train_async(2));
  for (std::size_t index = 0; index < runs.size(); ++index) {
    const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(2 * (index / 2));
    EXPECT_EQ(runs[index].wait().losses, std::vector<double>(begin, begin + 2));
  }
}

TEST_F(DeviceData, OfARunOutliveItsTrainer) {
  const Problem of = Problem::random({20, 18, 2}, true, 6, Precision::fp32, Init::he, 1e-3);
  auto trainer = std::make_unique<Trainer>(of.trainer(1, ExecutorKind::graph));
  TrainRun waited_for = trainer->train_async(2), lost = trainer->train_async(2), none;
  EXPECT_EQ(waited_for.wait().losses.size(), 2u);
  trainer.reset();
  EXPECT_EQ(waited_for.wait().losses.size(), 2u);
  EXPECT_MENTIONS(refusal("the trainer of this run does not exist any more", [&] { lost.wait(); }), "wait for a run");
  EXPECT_MENTIONS(refusal("this TrainRun is of no run", [&] { none.done(); }), "train_async");
}

TEST_F(DeviceData, ServesForValidation) {
  const Problem of = Problem::random({20, 18, 2}, true, 6, Precision::fp32, Init::he, 1e-3);
  const OnDevice<double> x(of.x, 21), y(of.y, 3);
  Trainer trainer = of.trainer(1, ExecutorKind::graph), on_host = of.trainer(1, ExecutorKind::graph);
  trainer.set_validation(x, y);
  on_host.set_validation(Problem::view(of.x), Problem::view(of.y));
  EXPECT_EQ(trainer.evaluate().loss, on_host.evaluate().loss);
}

}  // namespace
}  // namespace deviceloop
