! The starting case in Fortran: 1000 inputs, one hidden layer of 100, one output; 128 samples, 500
! steps. Prints the losses as `deviceloop train` does.
program starting_case
  use deviceloop
  use, intrinsic :: iso_fortran_env, only: error_unit
  implicit none
  integer, parameter :: samples = 128, features = 1000
  integer(c_int64_t), parameter :: steps = 500
  integer(c_int64_t), target :: widths(3) = [features, 100, 1]
  real(c_float), allocatable, target :: x(:, :), y(:, :)
  type(deviceloop_network_spec) :: network
  type(deviceloop_training_spec), target :: training
  type(deviceloop_report_info) :: info
  type(c_ptr) :: trainer, report
  real(c_double), pointer :: losses(:)
  integer :: step

  allocate (x(features, samples), y(1, samples))  ! a sample in each column
  call check(deviceloop_network_spec_init(network, network%struct_size))
  network%widths = c_loc(widths)
  network%width_count = size(widths)
  call check(deviceloop_training_spec_init(training, training%struct_size))
  training%learning_rate = 1d-6
  call check(deviceloop_fill_normal(deviceloop_view(x), training%seed, DEVICELOOP_TENSOR_X, 1d0))
  call check(deviceloop_fill_normal(deviceloop_view(y), training%seed, DEVICELOOP_TENSOR_Y, 1d0))

  call check(deviceloop_trainer_create(network, c_loc(training), c_null_ptr, &
                                       DEVICELOOP_EXECUTOR_AUTOMATIC, trainer))
  call check(deviceloop_trainer_set_data(trainer, deviceloop_view(x), deviceloop_view(y), c_null_ptr))
  call check(deviceloop_trainer_train(trainer, steps, c_null_funptr, c_null_ptr, 0_c_int64_t, report))
  call check(deviceloop_report_get(report, info))
  call c_f_pointer(info%losses, losses, [info%steps])
  do step = 0, int(info%steps) - 1
    if (mod(step, merge(10, 100, step <= 100)) == 0 .or. step + 1 == info%steps) &
      print '(i0, ": ", f0.2)', step, losses(step + 1)
  end do

  call deviceloop_report_destroy(report)
  call deviceloop_trainer_destroy(trainer)

contains

  subroutine check(status)
    integer(c_int32_t), intent(in) :: status
    if (status == DEVICELOOP_OK) return
    write (error_unit, '(2a)') 'starting_case: ', deviceloop_text(deviceloop_last_error())
    stop 1
  end subroutine
end program
