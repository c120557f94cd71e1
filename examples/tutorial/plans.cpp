// What would run a training, and why: planning is a function of plain data, so that any
// machine can plan for any GPU.
#include <cstdio>
#include <vector>

#include <deviceloop/deviceloop.h>

int main() {
  deviceloop::DeviceCaps machine;
  machine.cpu = {.cores = 16, .memory_bytes = 128ull << 30, .gflops_fp32 = 100};
  machine.gpus = {{.name = "NVIDIA H100 80GB HBM3",
                   .compute_capability = 90,
                   .multiprocessors = 132,
                   .memory_bytes = 80ull << 30,
                   .memory_gb_per_s = 3352,
                   .l2_bytes = 50 << 20,
                   .shared_bytes = 232448,
                   .cooperative = true}};

  struct Case {
    const char* what;
    std::vector<std::int64_t> widths;
    std::int64_t samples, batch;
  };
  const Case cases[] = {
      {"1000-100-1, all of 128 samples", {1000, 100, 1}, 128, 0},
      {"64-64-64-1, all of 65536 samples", {64, 64, 64, 1}, 65536, 0},
      {"64-64-64-1, batches of 256 of them", {64, 64, 64, 1}, 65536, 256},
      {"1024-1024-1024-10, all of 1024 samples", {1024, 1024, 1024, 10}, 1024, 0},
  };
  for (const auto& [what, widths, samples, batch] : cases) {
    const deviceloop::NetworkSpec network{.widths = widths};
    deviceloop::TrainingSpec training;
    training.samples = samples;
    training.batch_size = batch;
    const deviceloop::Plan plan = deviceloop::make_plan(network, training, machine);
    std::printf("%s: plan %s\n", what, deviceloop::name(plan.executor));
    for (const deviceloop::Candidate& candidate : plan.candidates) {
      std::printf("  %-10s  ", deviceloop::name(candidate.executor));
      if (candidate.accepted)
        std::printf("possible: about %.0f us a step\n",
                    candidate.predicted_us_per_step);
      else
        std::printf("not taken: %s\n", candidate.reason.c_str());
    }
  }
}
