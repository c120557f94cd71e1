! The Fortran module of the C API: a training in Fortran gives the bits of the C++ API, and each struct has the layout of C.
module checks
  use deviceloop
  implicit none
  integer :: failures = 0
  integer(c_int64_t) :: losses_seen = 0

  interface
    subroutine losses_of_the_starting_case(losses, steps) bind(c)
      import
      real(c_double), intent(out) :: losses(*)
      integer(c_int64_t), value :: steps
    end subroutine
  end interface

contains

  subroutine check(holds, what)
    logical, intent(in) :: holds
    character(*), intent(in) :: what
    if (holds) return
    failures = failures + 1
    print '(4a)', 'failed: ', what, '; last error: ', deviceloop_text(deviceloop_last_error())
  end subroutine

  subroutine check_refused(status, words)
    integer(c_int32_t), intent(in) :: status
    character(*), intent(in) :: words
    character(:), allocatable :: text
    text = deviceloop_text(deviceloop_last_error())
    call check(status == DEVICELOOP_INVALID_ARGUMENT .and. index(text, words) > 0, words)
  end subroutine

  function count_losses(progress, user) bind(c) result(goes_on)
    type(deviceloop_progress), intent(in) :: progress
    type(c_ptr), value :: user
    integer(c_int32_t) :: goes_on
    integer(c_int64_t), pointer :: last
    call c_f_pointer(user, last)
    losses_seen = losses_seen + progress%loss_count
    goes_on = merge(1, 0, progress%steps_done < last)
    call check(progress%steps_total == 500 .and. progress%first_step == losses_seen - progress%loss_count, 'progress')
    call check(progress%evaluation_count == 0, 'no evaluations')
  end function
end module

program fortran_test
  use checks
  implicit none
  call test_structs()
  call test_plan()
  call test_starting_case()
  call test_kernels()
  if (failures > 0) error stop 'the Fortran module is wrong'
  print '(a)', 'the Fortran module is as it should be'

contains

  subroutine test_structs()
    type(deviceloop_network_spec) :: network, network_back
    type(deviceloop_training_spec) :: training, back
    type(deviceloop_evaluation) :: evaluation
    type(deviceloop_matrix) :: matrix
    type(deviceloop_device_error_info) :: error
    type(c_ptr) :: trainer
    integer(c_int64_t), target :: widths(2) = [3, 1]
    integer(c_int64_t), pointer :: widths_back(:)
    integer(c_int32_t) :: status, major, minor, patch
    call check(c_sizeof(network) == network%struct_size, 'size of the network')
    call check(c_sizeof(training) == training%struct_size, 'size of the training')
    call check(c_sizeof(evaluation) == 32, 'size of an evaluation')
    call check(c_sizeof(matrix) == 40, 'size of a matrix')
    call check(deviceloop_last_device_error(error) == DEVICELOOP_OK, 'device error')
    call check(deviceloop_text(error%api) == '' .and. error%line == 0, 'no device error')
    call deviceloop_version(major, minor, patch)
    call check(major >= 0 .and. minor >= 0 .and. patch >= 0, 'version')
    call check(index(deviceloop_text(deviceloop_version_text()), '.') > 0, 'text of the version')
    call check(deviceloop_network_spec_init(network, network%struct_size) == DEVICELOOP_OK, 'defaults')
    call check(network%leaky_slope == 0.01d0 .and. network%bias == 0, 'defaults of a network')
    call check(deviceloop_training_spec_init(training, training%struct_size) == DEVICELOOP_OK, 'defaults')
    call check(training%learning_rate == 1d-6 .and. training%beta1 == 0.9d0 .and. training%epsilon == 1d-8, 'doubles')
    call check(training%deterministic == 1 .and. training%shuffle == 1 .and. training%deadline_ms == 10000, 'integers')
    network%widths = c_loc(widths)
    network%width_count = 2
    network%bias = 1
    training%loss = DEVICELOOP_LOSS_HUBER
    training%huber_delta = 0.5d0
    training%device = DEVICELOOP_DEVICE_CPU
    training%watch_every = 17
    training%has_target_loss = 1
    training%target_loss = 0.25d0
    training%precision = DEVICELOOP_PRECISION_BF16
    training%threads = 1
    training%seed = 12345678901234_c_int64_t
    status = deviceloop_trainer_create(network, c_loc_of(training), c_null_ptr, DEVICELOOP_EXECUTOR_AUTOMATIC, trainer)
    call check(status == DEVICELOOP_OK, 'trainer')
    call check(deviceloop_trainer_training(trainer, back) == DEVICELOOP_OK, 'training')
    call check(back%loss == DEVICELOOP_LOSS_HUBER .and. back%huber_delta == 0.5d0, 'loss')
    call check(back%watch_every == 17 .and. back%has_target_loss == 1 .and. back%target_loss == 0.25d0, 'watch')
    call check(back%precision == DEVICELOOP_PRECISION_BF16 .and. back%threads == 1 .and. back%seed == training%seed, 'last')
    call check(deviceloop_trainer_network(trainer, network_back) == DEVICELOOP_OK, 'network')
    call c_f_pointer(network_back%widths, widths_back, [network_back%width_count])
    call check(all(widths_back == widths) .and. network_back%bias == 1, 'widths')
    call check_refused(deviceloop_trainer_load_weights(trainer, 'no such file'//c_null_char), 'no such file')
    call check_refused(deviceloop_trainer_prepare(c_null_ptr), 'deviceloop_trainer_prepare: the argument ''trainer'' is null')
    call deviceloop_trainer_destroy(trainer)
    training%struct_size = training%struct_size + 8
    status = deviceloop_trainer_create(network, c_loc_of(training), c_null_ptr, DEVICELOOP_EXECUTOR_AUTOMATIC, trainer)
    call check_refused(status, 'struct_size is')
    call check(.not. c_associated(trainer), 'no trainer')
  end subroutine

  function c_loc_of(training) result(location)
    type(deviceloop_training_spec), intent(in), target :: training
    type(c_ptr) :: location
    location = c_loc(training)
  end function

  subroutine test_plan()
    type(deviceloop_network_spec) :: network
    type(deviceloop_training_spec), target :: training
    type(deviceloop_caps_info) :: info, info_back
    type(deviceloop_gpu_caps) :: gpu, gpu_back
    type(deviceloop_plan_info) :: plan_info
    type(deviceloop_candidate) :: candidate
    type(c_ptr) :: caps, plan
    integer(c_int64_t), target :: widths(3) = [1000, 100, 1]
    character(kind=c_char), target :: gpu_name(9) = ['T', 'e', 's', 't', ' ', 'G', 'P', 'U', c_null_char]
    call check(deviceloop_caps_create(caps) == DEVICELOOP_OK, 'caps')
    info%memory_bytes = 2_c_int64_t**34
    info%gflops_fp32 = 20
    info%cores = 3
    gpu%name = c_loc(gpu_name)
    gpu%compute_capability = 90
    gpu%multiprocessors = 132
    gpu%cooperative = 1
    gpu%memory_bytes = 2_c_int64_t**36
    gpu%memory_gb_per_s = 3000
    gpu%l2_bytes = 50000000
    gpu%shared_bytes = 232448
    call check(deviceloop_caps_set(caps, info) == DEVICELOOP_OK, 'caps are set')
    call check(deviceloop_caps_add_gpu(caps, gpu) == DEVICELOOP_OK, 'a GPU is added')
    call check(deviceloop_caps_get(caps, info_back) == DEVICELOOP_OK, 'caps come back')
    call check(info_back%cores == 3 .and. info_back%gpus == 1 .and. info_back%gflops_fp32 == 20, 'the same caps')
    call check(deviceloop_text(info_back%no_cublaslt_reason) == '', 'an empty text')
    call check(deviceloop_caps_gpu(caps, 0, gpu_back) == DEVICELOOP_OK, 'the GPU comes back')
    call check(deviceloop_text(gpu_back%name) == 'Test GPU' .and. gpu_back%shared_bytes == 232448, 'the same GPU')
    call check(gpu_back%multiprocessors == 132 .and. gpu_back%memory_gb_per_s == 3000, 'the same GPU')
    call check(deviceloop_network_spec_init(network, network%struct_size) == DEVICELOOP_OK, 'defaults')
    call check(deviceloop_training_spec_init(training, training%struct_size) == DEVICELOOP_OK, 'defaults')
    network%widths = c_loc(widths)
    network%width_count = 3
    training%samples = 128
    call check(deviceloop_plan_create(network, c_loc(training), caps, DEVICELOOP_EXECUTOR_AUTOMATIC, plan) == &
               DEVICELOOP_OK, 'plan')
    call check(deviceloop_plan_get(plan, plan_info) == DEVICELOOP_OK, 'plan')
    call check(plan_info%executor == DEVICELOOP_EXECUTOR_PERSISTENT .and. plan_info%candidates == 4, 'plan')
    call check(plan_info%bytes > 0 .and. plan_info%predicted_us_per_step > plan_info%floor_us_per_step, 'plan')
    call check(deviceloop_plan_candidate(plan, 3_c_int64_t, candidate) == DEVICELOOP_OK, 'candidate')
    call check(candidate%executor == DEVICELOOP_EXECUTOR_CPU .and. candidate%accepted == 1, 'candidate')
    call check(candidate%bytes > 0 .and. candidate%predicted_us_per_step > 0, 'candidate')
    call check(deviceloop_text(candidate%reason) == '', 'no reason')
    call deviceloop_plan_destroy(plan)
    call deviceloop_caps_destroy(caps)
  end subroutine

  subroutine test_starting_case()
    integer, parameter :: samples = 128, features = 1000
    integer(c_int64_t), parameter :: steps = 500
    real(c_float), allocatable, target :: x(:, :), y(:, :), weight(:, :), predicted(:, :)
    real(c_double), target :: every_other(2, 3)
    integer(c_int64_t), target :: widths(3) = [features, 100, 1], last = 100
    real(c_double) :: expected(steps), loss
    real(c_double), pointer :: losses(:)
    type(deviceloop_network_spec) :: network
    type(deviceloop_training_spec), target :: training
    type(deviceloop_report_info) :: info
    type(c_ptr) :: trainer, report, name
    real(c_double) :: ms
    allocate (x(features, samples), y(1, samples), weight(100, features), predicted(1, samples))
    call check(deviceloop_fill_normal(deviceloop_view(x), 0_c_int64_t, DEVICELOOP_TENSOR_X, 1d0) == DEVICELOOP_OK, 'x')
    call check(deviceloop_fill_normal(deviceloop_view(y), 0_c_int64_t, DEVICELOOP_TENSOR_Y, 1d0) == DEVICELOOP_OK, 'y')
    call check(deviceloop_network_spec_init(network, network%struct_size) == DEVICELOOP_OK, 'defaults')
    call check(deviceloop_training_spec_init(training, training%struct_size) == DEVICELOOP_OK, 'defaults')
    network%widths = c_loc(widths)
    network%width_count = 3
    training%device = DEVICELOOP_DEVICE_CPU
    call check(deviceloop_trainer_create(network, c_loc(training), c_null_ptr, DEVICELOOP_EXECUTOR_AUTOMATIC, trainer) &
               == DEVICELOOP_OK, 'trainer')
    call check(deviceloop_trainer_set_data(trainer, deviceloop_view(x), deviceloop_view(y), c_null_ptr) == &
               DEVICELOOP_OK, 'data')
    call check(deviceloop_trainer_train(trainer, steps, c_funloc(count_losses), c_loc(last), 50_c_int64_t, report) == &
               DEVICELOOP_OK, 'train')
    call check(deviceloop_report_get(report, info) == DEVICELOOP_OK, 'report')
    call check(info%steps == 100 .and. losses_seen == 100 .and. info%end == DEVICELOOP_END_CALLBACK, 'stopped')
    call check(info%first_non_finite_step == -1 .and. info%total_ms > 0 .and. info%stages >= 3, 'report')
    call check(deviceloop_report_stage(report, 0, name, ms) == DEVICELOOP_OK, 'stage')
    call check(deviceloop_text(name) == 'devices' .and. ms >= 0, 'stage')
    call losses_of_the_starting_case(expected, steps)
    call c_f_pointer(info%losses, losses, [info%steps])
    call check(all(losses == expected(:100)), 'losses')
    call deviceloop_report_destroy(report)
    call check(deviceloop_trainer_train(trainer, 400_c_int64_t, c_null_funptr, c_null_ptr, 0_c_int64_t, report) == &
               DEVICELOOP_OK, 'train')
    call check(deviceloop_report_get(report, info) == DEVICELOOP_OK, 'report')
    call c_f_pointer(info%losses, losses, [info%steps])
    call check(all(losses == expected(101:)) .and. info%first_step == 100, 'losses after it was stopped')
    call deviceloop_report_destroy(report)
    call check(deviceloop_trainer_read_weight(trainer, 0, deviceloop_view(weight)) == DEVICELOOP_OK, 'weight')
    call check(deviceloop_trainer_predict(trainer, deviceloop_view(x), deviceloop_view(predicted)) == DEVICELOOP_OK, &
               'predict')
    call check(deviceloop_trainer_loss(trainer, loss) == DEVICELOOP_OK, 'loss')
    call check(abs(sum((real(predicted, c_double) - y)**2) - loss) < 1d-5 * loss, 'predictions have that loss')
    call check_refused(deviceloop_trainer_read_weight(trainer, 1, deviceloop_view(weight)), '[1000, 100]')
    every_other = 0
    call check_refused(deviceloop_fill_normal(deviceloop_view(every_other(:1, :)), 0_c_int64_t, 0, 1d0), 'null')
    call deviceloop_trainer_destroy(trainer)
  end subroutine

  subroutine test_kernels()
    real(c_float) :: z(3) = [-1., 0., 2.], out(3)
    real(c_double) :: prediction(2) = [1d0, 2d0], target_values(2) = [0d0, 4d0], loss
    call check(deviceloop_relu_f32(out, z, 3_c_int64_t) == DEVICELOOP_OK, 'relu')
    call check(all(out == [0., 0., 2.]), 'relu')
    call check(deviceloop_squared_error_f64(loss, c_null_ptr, prediction, target_values, 2_c_int64_t) == DEVICELOOP_OK, &
               'squared error')
    call check(loss == 5, 'squared error')
    call check_refused(deviceloop_relu_f32(out, z, -1_c_int64_t), 'count is -1')
  end subroutine
end program
