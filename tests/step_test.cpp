// A step as plain data: what it holds for small networks, in the order in which it is taken, and what is counted by it.
#include "step/step.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace deviceloop {
namespace {

using Kind = StepOperation::Kind;

Step step_of(std::vector<std::int64_t> widths, std::int64_t samples, bool bias = false,
             Formulation formulation = Formulation::primal) {
  NetworkSpec network;
  network.widths = std::move(widths);
  network.bias = bias;
  TrainingSpec training;
  training.samples = samples;
  training.formulation = formulation;
  return make_step(network, training);
}

TEST(Step, SaysWhatAStepDoes) {
  EXPECT_EQ(to_string(step_of({1000, 100, 1}, 128)),
            "H0 [128, 100] = relu(X [128, 1000] W0 [1000, 100])\n"
            "P [128, 1] = H0 [128, 100] W1 [100, 1]\n"
            "dZ1 [128, 1] = gradient of squared_error(P [128, 1], Y [128, 1])\n"
            "dZ0 [128, 100] = dZ1 [128, 1] W1 [100, 1]^T through relu to H0 [128, 100]\n"
            "W1 [100, 1] -= rate H0 [128, 100]^T dZ1 [128, 1]\n"
            "W0 [1000, 100] -= rate X [128, 1000]^T dZ0 [128, 100]\n");
}

TEST(Step, UpdatesBiasesBehindTheirWeights) {
  EXPECT_EQ(to_string(step_of({3, 2}, 5, true)),
            "P [5, 2] = X [5, 3] W0 [3, 2] + b0 [1, 2]\n"
            "dZ0 [5, 2] = gradient of squared_error(P [5, 2], Y [5, 2])\n"
            "W0 [3, 2] -= rate X [5, 3]^T dZ0 [5, 2]\n"
            "b0 [1, 2] -= rate column sums of dZ0 [5, 2]\n");
}

TEST(Step, InTheGramFormulationTheFirstLayerIsTrainedInTheSpaceOfSamples) {
  EXPECT_EQ(to_string(step_of({30, 4, 1}, 5, true, Formulation::gram)),
            "H0 [5, 4] = relu(Z [5, 4])\n"
            "P [5, 1] = H0 [5, 4] W1 [4, 1] + b1 [1, 1]\n"
            "dZ1 [5, 1] = gradient of squared_error(P [5, 1], Y [5, 1])\n"
            "dZ0 [5, 4] = dZ1 [5, 1] W1 [4, 1]^T through relu to H0 [5, 4]\n"
            "W1 [4, 1] -= rate H0 [5, 4]^T dZ1 [5, 1]\n"
            "b1 [1, 1] -= rate column sums of dZ1 [5, 1]\n"
            "Z [5, 4] -= rate K [5, 5]^T dZ0 [5, 4]\n"
            "S [5, 4] -= rate dZ0 [5, 4]\n");
  // Without a hidden layer the pre-activations are the predictions.
  EXPECT_EQ(to_string(step_of({30, 4}, 5, false, Formulation::gram)),
            "dZ0 [5, 4] = gradient of squared_error(Z [5, 4], Y [5, 4])\n"
            "Z [5, 4] -= rate K [5, 5]^T dZ0 [5, 4]\n"
            "S [5, 4] -= rate dZ0 [5, 4]\n");
}

// What the optimizer keeps for W and b, it keeps for Z and S; the first layer is rebuilt with its momentum.
TEST(Step, InTheGramFormulationMomentumIsThatOfPreActivations) {
  NetworkSpec network;
  network.widths = {30, 4, 1};
  network.bias = true;
  TrainingSpec training;
  training.samples = 5;
  training.formulation = Formulation::gram;
  training.optimizer.kind = OptimizerKind::sgd;
  const Step step = make_step(network, training);
  const std::string text = to_string(step);
  EXPECT_EQ(text.substr(text.find("W1 [4, 1] by")),
            "W1 [4, 1] by sgd along H0 [5, 4]^T dZ1 [5, 1]\n"
            "b1 [1, 1] by sgd along column sums of dZ1 [5, 1]\n"
            "Z [5, 4] by sgd along K [5, 5]^T dZ0 [5, 4]\n"
            "S [5, 4] by sgd along dZ0 [5, 4]\n");
  const auto name = [&](TensorId id) { return step.tensor(id).name; };
  const Step::Gram& gram = step.gram.value();
  const std::size_t count = step.operations.size();
  EXPECT_EQ(name(step.operations[count - 2].state[0]), "Z.momentum");
  EXPECT_EQ(name(step.operations[count - 1].state[0]), "S.momentum");
  std::vector<std::string> projected, rebuilt;
  for (const StepOperation& op : gram.make_pre_activation)
    projected.push_back(name(op.out) + " = " + name(op.a) + " " + name(op.b) + " + " + name(op.bias));
  EXPECT_EQ(projected, (std::vector<std::string>{"Z = X W0 + b0", "Z.momentum = X W0.momentum + b0.momentum"}));
  for (const StepOperation& op : gram.rebuild) {
    rebuilt.push_back(name(op.out) + " from " + name(op.start) + ", " + name(op.start_state) + ", " +
                      name(op.kind == Kind::rebuild_weight ? op.b : op.a));
    EXPECT_EQ(op.rebuilt_state, op.out == step.layers[0].weight || op.out == step.layers[0].bias ? -1 : 0);
  }
  EXPECT_EQ(rebuilt, (std::vector<std::string>{"W0 from W0_start, W0_start.momentum, S",
                                               "b0 from b0_start, b0_start.momentum, S",
                                               "W0.momentum from W0_start, W0_start.momentum, S.momentum",
                                               "b0.momentum from b0_start, b0_start.momentum, S.momentum"}));
  for (const ParameterInfo& info : state_layout(network, training)) {
    if (info.layer == 0) {
      EXPECT_EQ(name(gram.start_of(info)),
                std::string(info.is_bias ? "b0" : "W0") + "_start" + (info.state < 0 ? "" : ".momentum"));
    }
  }
}

TEST(Step, OptimizersKeepTensorsBesideTheParameters) {
  NetworkSpec network;
  network.widths = {3, 2};
  network.bias = true;
  TrainingSpec training;
  training.samples = 5;
  training.optimizer.kind = OptimizerKind::adam;
  const Step step = make_step(network, training);
  EXPECT_EQ(to_string(step),
            "P [5, 2] = X [5, 3] W0 [3, 2] + b0 [1, 2]\n"
            "dZ0 [5, 2] = gradient of squared_error(P [5, 2], Y [5, 2])\n"
            "W0 [3, 2] by adam along X [5, 3]^T dZ0 [5, 2]\n"
            "b0 [1, 2] by adam along column sums of dZ0 [5, 2]\n");
  // In the order of state_layout(): the parameters, then each number of all of them.
  std::vector<std::string> names, tensors;
  for (const ParameterInfo& info : state_layout(network, training)) {
    const StepTensor& tensor = step.tensor(step.tensor_of(info));
    names.push_back(info.name);
    tensors.push_back(tensor.name);
    EXPECT_EQ(tensor.rows, info.rows);
    EXPECT_EQ(tensor.columns, info.columns);
    EXPECT_EQ(tensor.lifetime, info.state < 0 ? StepTensor::Lifetime::parameter : StepTensor::Lifetime::state);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"0.weight", "0.bias", "0.weight.first_moment", "0.bias.first_moment",
                                             "0.weight.second_moment", "0.bias.second_moment"}));
  EXPECT_EQ(tensors, (std::vector<std::string>{"W0", "b0", "W0.first_moment", "b0.first_moment", "W0.second_moment",
                                               "b0.second_moment"}));
}

TEST(Step, TheScaleOfTheLossIsTheLastState) {
  NetworkSpec network;
  network.widths = {3, 2};
  TrainingSpec training;
  training.samples = 5;
  training.optimizer.kind = OptimizerKind::sgd;
  EXPECT_EQ(make_step(network, training).loss_scaling, kNoTensor);
  training.precision = Precision::fp16;
  const Step step = make_step(network, training);
  const std::vector<ParameterInfo> layout = state_layout(network, training);
  ASSERT_EQ(layout.size(), 3u);
  EXPECT_EQ(layout.back().name, "loss_scaling");
  ASSERT_EQ(step.tensor_of(layout.back()), step.loss_scaling);
  EXPECT_EQ(step.tensor(step.loss_scaling).columns, layout.back().columns);
  EXPECT_EQ(step.tensor(step.loss_scaling).lifetime, StepTensor::Lifetime::state);
}

TEST(Step, MinibatchesAreRowsOfTheData) {
  NetworkSpec network;
  network.widths = {3, 4};
  network.output_activation = Activation::sigmoid;
  TrainingSpec training;
  training.samples = 100;
  training.batch_size = 8;
  training.loss = Loss::cross_entropy;
  training.class_targets = true;
  const Step step = make_step(network, training);
  EXPECT_EQ(to_string(step),
            "X_batch [8, 3] = rows of X [100, 3]\n"
            "Y_batch [8, 1] = rows of Y [100, 1]\n"
            "P [8, 4] = sigmoid(X_batch [8, 3] W0 [3, 4])\n"
            "dZ0 [8, 4] = gradient of cross_entropy(P [8, 4], Y_batch [8, 1]) through sigmoid to P [8, 4]\n"
            "W0 [3, 4] -= rate X_batch [8, 3]^T dZ0 [8, 4]\n");
  // All samples in one batch are the data themselves.
  training.batch_size = 100;
  EXPECT_EQ(make_step(network, training).x, make_step(network, training).data_x);
}

TEST(Step, SamplesHaveTheirWeightsInEachBatch) {
  NetworkSpec network;
  network.widths = {3, 2};
  TrainingSpec training;
  training.samples = 100;
  training.sample_weights = true;
  EXPECT_EQ(to_string(make_step(network, training)),
            "P [100, 2] = X [100, 3] W0 [3, 2]\n"
            "dZ0 [100, 2] = gradient of squared_error(P [100, 2], Y [100, 2]) times sample_weights [100, 1]\n"
            "W0 [3, 2] -= rate X [100, 3]^T dZ0 [100, 2]\n");
  training.batch_size = 8;
  EXPECT_EQ(to_string(make_step(network, training)),
            "X_batch [8, 3] = rows of X [100, 3]\n"
            "Y_batch [8, 2] = rows of Y [100, 2]\n"
            "sample_weights_batch [8, 1] = rows of sample_weights [100, 1]\n"
            "P [8, 2] = X_batch [8, 3] W0 [3, 2]\n"
            "dZ0 [8, 2] = gradient of squared_error(P [8, 2], Y_batch [8, 2]) times sample_weights_batch [8, 1]\n"
            "W0 [3, 2] -= rate X_batch [8, 3]^T dZ0 [8, 2]\n");
}

// From the value it cannot be told on which side of 0 the pre-activation was.
TEST(Step, KeepsPreActivationsOfALeakyReluWhoseSlopeIsBelow0) {
  NetworkSpec network;
  network.widths = {3, 4, 2};
  network.activation = network.output_activation = Activation::leaky_relu;
  TrainingSpec training;
  training.samples = 8;
  for (const double slope : {0.01, 3.0, 0.0, -0.0, -0.01, -3.0}) {
    network.leaky_slope = slope;
    const Step step = make_step(network, training);
    for (const Step::Layer& layer : step.layers) EXPECT_EQ(layer.kept != layer.output, slope < 0) << slope;
    for (const StepOperation& op : step.operations)
      if (op.activation) {
        EXPECT_EQ(op.activation->leaky_slope, slope);
      }
  }
}

TEST(Step, WithoutSamplesThereIsInferenceAlone) {
  for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
    const Step step = step_of({7, 5, 2}, 0, true, formulation);
    EXPECT_TRUE(step.operations.empty());
    EXPECT_FALSE(step.gram.has_value());
    ASSERT_EQ(step.inference.size(), 2u);
    EXPECT_TRUE(step.inference[0].activation.has_value());
    EXPECT_FALSE(step.inference[1].activation.has_value());
  }
}

// A row of the data: 2 floating-point operations for each weight forward, and 4 backward but for the first layer's
// input.
TEST(Step, CountsMultiplyAdds) {
  EXPECT_EQ(multiply_adds(step_of({1000, 100, 1}, 128, true).operations), 128.0 * (2 * 1000 * 100 + 3 * 100));
  EXPECT_EQ(multiply_adds(step_of({1000, 100, 1}, 128, true, Formulation::gram).operations),
            128.0 * (128 * 100 + 3 * 100));
  EXPECT_EQ(multiply_adds(step_of({1000, 100, 1}, 0).operations), 0);
}

// Nothing is read before it was written, and nothing that changes is read afterwards by what needs the old value.
TEST(Step, EachOperationFindsWhatItNeeds) {
  for (const auto& widths : std::vector<std::vector<std::int64_t>>{{5, 1}, {5, 4, 2}, {9, 8, 7, 6}})
    for (const bool bias : {false, true})
      for (const Formulation formulation : {Formulation::primal, Formulation::gram}) {
        const Step step = step_of(widths, 6, bias, formulation);
        std::set<TensorId> written, updated;
        for (const StepOperation& op : step.operations) {
          for (const TensorId read : {op.a, op.b, op.bias, op.kept, op.weights}) {
            if (read == kNoTensor) continue;
            EXPECT_EQ(updated.count(read), 0u) << step.tensor(read).name << " is read after its update";
            const StepTensor::Lifetime lifetime = step.tensor(read).lifetime;
            if (lifetime == StepTensor::Lifetime::activation || lifetime == StepTensor::Lifetime::gradient) {
              EXPECT_EQ(written.count(read), 1u) << step.tensor(read).name << " is read before it is written";
            }
          }
          const bool is_update =
              op.kind == Kind::weight_update || op.kind == Kind::bias_update || op.kind == Kind::sum_update;
          (is_update ? updated : written).insert(op.out);
        }
        // All that is trained.
        const std::size_t parameters = step.layers.size() * (bias ? 2 : 1);
        EXPECT_EQ(updated.size(), step.gram ? parameters - (bias ? 2 : 1) + 2 : parameters);
      }
}

}  // namespace
}  // namespace deviceloop
