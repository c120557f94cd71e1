/* The starting case in C: 1000 inputs, one hidden layer of 100, one output; 128
   samples, 500 steps. Prints the losses as `deviceloop train` does. */
#include <deviceloop/deviceloop_c.h>
#include <stdio.h>
#include <stdlib.h>

enum { SAMPLES = 128, FEATURES = 1000, STEPS = 500 };

static float x[SAMPLES][FEATURES], y[SAMPLES][1]; /* row-major, one row a sample */

static void check(deviceloop_status status) {
  if (status == DEVICELOOP_OK) return;
  fprintf(stderr, "starting_case: %s\n", deviceloop_last_error());
  exit(EXIT_FAILURE);
}

static deviceloop_matrix view(void* data, int64_t rows, int64_t columns) {
  deviceloop_matrix matrix = {0}; /* of float, on the host, without gaps */
  matrix.data = data;
  matrix.rows = rows;
  matrix.columns = columns;
  return matrix;
}

int main(void) {
  const int64_t widths[] = {FEATURES, 100, 1};
  const deviceloop_matrix inputs = view(x, SAMPLES, FEATURES);
  const deviceloop_matrix targets = view(y, SAMPLES, 1);
  deviceloop_network_spec network;
  deviceloop_training_spec training;
  deviceloop_trainer* trainer;
  deviceloop_report* report;
  deviceloop_report_info info = {sizeof info};
  int64_t step;

  check(deviceloop_network_spec_init(&network, sizeof network));
  network.widths = widths;
  network.width_count = 3;
  check(deviceloop_training_spec_init(&training, sizeof training));
  training.learning_rate = 1e-6;
  check(deviceloop_fill_normal(&inputs, training.seed, DEVICELOOP_TENSOR_X, 1));
  check(deviceloop_fill_normal(&targets, training.seed, DEVICELOOP_TENSOR_Y, 1));

  check(deviceloop_trainer_create(&network, &training, NULL,
                                  DEVICELOOP_EXECUTOR_AUTOMATIC, &trainer));
  check(deviceloop_trainer_set_data(trainer, &inputs, &targets, NULL));
  check(deviceloop_trainer_train(trainer, STEPS, NULL, NULL, 0, &report));
  check(deviceloop_report_get(report, &info));
  for (step = 0; step < info.steps; ++step)
    if (step % (step <= 100 ? 10 : 100) == 0 || step + 1 == info.steps)
      printf("%d: %.2f\n", (int)step, info.losses[step]);

  deviceloop_report_destroy(report);
  deviceloop_trainer_destroy(trainer);
  return 0;
}
