! The C API of deviceloop for Fortran 2008, to be compiled with the program that uses it. Made from deviceloop_c.h, which
! says what each function does, by cmake/fortran_module: change that header, not this file.
!
! Structs are initialised: struct_size is right, all else is 0, and deviceloop_network_spec_init and
! deviceloop_training_spec_init set the defaults. A matrix is row-major, so that x(features, samples) has a sample in each
! column; deviceloop_view makes the deviceloop_matrix of such an array. Texts that are given end with c_null_char;
! deviceloop_text makes a character string of one that is returned. Layers, candidates and the like are counted from 0.
module deviceloop
  use, intrinsic :: iso_c_binding
  implicit none
  public

  integer(c_int32_t), parameter :: DEVICELOOP_OK = 0
  integer(c_int32_t), parameter :: DEVICELOOP_INVALID_ARGUMENT = 1
  integer(c_int32_t), parameter :: DEVICELOOP_UNSUPPORTED = 2
  integer(c_int32_t), parameter :: DEVICELOOP_DEVICE_ERROR = 3
  integer(c_int32_t), parameter :: DEVICELOOP_ERROR = 4
  integer(c_int32_t), parameter :: DEVICELOOP_OUT_OF_MEMORY = 5
  integer(c_int32_t), parameter :: DEVICELOOP_ELEMENT_FLOAT32 = 0
  integer(c_int32_t), parameter :: DEVICELOOP_ELEMENT_FLOAT64 = 1
  integer(c_int32_t), parameter :: DEVICELOOP_ELEMENT_BFLOAT16 = 2
  integer(c_int32_t), parameter :: DEVICELOOP_ELEMENT_FLOAT16 = 3
  integer(c_int32_t), parameter :: DEVICELOOP_MEMORY_HOST = 0
  integer(c_int32_t), parameter :: DEVICELOOP_MEMORY_DEVICE = 1
  integer(c_int32_t), parameter :: DEVICELOOP_TENSOR_X = 0
  integer(c_int32_t), parameter :: DEVICELOOP_TENSOR_Y = 1
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_RELU = 0
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_IDENTITY = 1
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_LEAKY_RELU = 2
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_ELU = 3
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_SILU = 4
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_GELU = 5
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_GELU_TANH = 6
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_TANH = 7
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_SIGMOID = 8
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_SOFTPLUS = 9
  integer(c_int32_t), parameter :: DEVICELOOP_ACTIVATION_SINE = 10
  integer(c_int32_t), parameter :: DEVICELOOP_LOSS_SQUARED_ERROR = 0
  integer(c_int32_t), parameter :: DEVICELOOP_LOSS_ABSOLUTE_ERROR = 1
  integer(c_int32_t), parameter :: DEVICELOOP_LOSS_HUBER = 2
  integer(c_int32_t), parameter :: DEVICELOOP_LOSS_BINARY_CROSS_ENTROPY = 3
  integer(c_int32_t), parameter :: DEVICELOOP_LOSS_CROSS_ENTROPY = 4
  integer(c_int32_t), parameter :: DEVICELOOP_REDUCTION_SUM = 0
  integer(c_int32_t), parameter :: DEVICELOOP_REDUCTION_MEAN = 1
  integer(c_int32_t), parameter :: DEVICELOOP_OPTIMIZER_GRADIENT_DESCENT = 0
  integer(c_int32_t), parameter :: DEVICELOOP_OPTIMIZER_SGD = 1
  integer(c_int32_t), parameter :: DEVICELOOP_OPTIMIZER_ADAM = 2
  integer(c_int32_t), parameter :: DEVICELOOP_OPTIMIZER_ADAMW = 3
  integer(c_int32_t), parameter :: DEVICELOOP_OPTIMIZER_RMSPROP = 4
  integer(c_int32_t), parameter :: DEVICELOOP_SCHEDULE_CONSTANT = 0
  integer(c_int32_t), parameter :: DEVICELOOP_SCHEDULE_STEP = 1
  integer(c_int32_t), parameter :: DEVICELOOP_SCHEDULE_EXPONENTIAL = 2
  integer(c_int32_t), parameter :: DEVICELOOP_SCHEDULE_COSINE = 3
  integer(c_int32_t), parameter :: DEVICELOOP_PRECISION_FP32 = 0
  integer(c_int32_t), parameter :: DEVICELOOP_PRECISION_FP64 = 1
  integer(c_int32_t), parameter :: DEVICELOOP_PRECISION_TF32 = 2
  integer(c_int32_t), parameter :: DEVICELOOP_PRECISION_TF32X3 = 3
  integer(c_int32_t), parameter :: DEVICELOOP_PRECISION_BF16 = 4
  integer(c_int32_t), parameter :: DEVICELOOP_PRECISION_FP16 = 5
  integer(c_int32_t), parameter :: DEVICELOOP_FORMULATION_PRIMAL = 0
  integer(c_int32_t), parameter :: DEVICELOOP_FORMULATION_GRAM = 1
  integer(c_int32_t), parameter :: DEVICELOOP_INIT_NORMAL = 0
  integer(c_int32_t), parameter :: DEVICELOOP_INIT_HE = 1
  integer(c_int32_t), parameter :: DEVICELOOP_INIT_XAVIER = 2
  integer(c_int32_t), parameter :: DEVICELOOP_DEVICE_AUTOMATIC = 0
  integer(c_int32_t), parameter :: DEVICELOOP_DEVICE_CPU = 1
  integer(c_int32_t), parameter :: DEVICELOOP_DEVICE_CUDA = 2
  integer(c_int32_t), parameter :: DEVICELOOP_FORM_AUTOMATIC = 0
  integer(c_int32_t), parameter :: DEVICELOOP_FORM_TWO_LAYER = 1
  integer(c_int32_t), parameter :: DEVICELOOP_FORM_ON_CHIP = 2
  integer(c_int32_t), parameter :: DEVICELOOP_EXECUTOR_AUTOMATIC = -1
  integer(c_int32_t), parameter :: DEVICELOOP_EXECUTOR_CPU = 0
  integer(c_int32_t), parameter :: DEVICELOOP_EXECUTOR_GRAPH = 1
  integer(c_int32_t), parameter :: DEVICELOOP_EXECUTOR_PERSISTENT = 2
  integer(c_int32_t), parameter :: DEVICELOOP_EXECUTOR_FUSED = 3
  integer(c_int32_t), parameter :: DEVICELOOP_IN_PLACE_X = 1
  integer(c_int32_t), parameter :: DEVICELOOP_IN_PLACE_Y = 2
  integer(c_int32_t), parameter :: DEVICELOOP_IN_PLACE_SAMPLE_WEIGHTS = 4
  integer(c_int32_t), parameter :: DEVICELOOP_MAX_WIDTH = 2147483647
  integer(c_int32_t), parameter :: DEVICELOOP_MAX_THREADS = 256
  integer(c_int32_t), parameter :: DEVICELOOP_END_ALL_STEPS = 0
  integer(c_int32_t), parameter :: DEVICELOOP_END_CALLBACK = 1
  integer(c_int32_t), parameter :: DEVICELOOP_END_PATIENCE = 2
  integer(c_int32_t), parameter :: DEVICELOOP_END_TARGET_LOSS = 3
  integer(c_int32_t), parameter :: DEVICELOOP_MAX_NARROW_OUTPUTS = 16

  type, bind(c) :: deviceloop_device_error_info
    integer(c_size_t) :: struct_size = 40
    type(c_ptr) :: api = c_null_ptr
    type(c_ptr) :: expression = c_null_ptr
    type(c_ptr) :: file = c_null_ptr
    integer(c_int32_t) :: line = 0
    integer(c_int32_t) :: code = 0
  end type

  type, bind(c) :: deviceloop_matrix
    type(c_ptr) :: data = c_null_ptr
    integer(c_int32_t) :: type = 0
    integer(c_int32_t) :: space = 0
    integer(c_int64_t) :: rows = 0
    integer(c_int64_t) :: columns = 0
    integer(c_int64_t) :: row_stride = 0
  end type

  type, bind(c) :: deviceloop_network_spec
    integer(c_size_t) :: struct_size = 48
    type(c_ptr) :: widths = c_null_ptr
    integer(c_int64_t) :: width_count = 0
    integer(c_int32_t) :: activation = 0
    integer(c_int32_t) :: output_activation = 0
    real(c_double) :: leaky_slope = 0
    integer(c_int32_t) :: bias = 0
    integer(c_int32_t) :: reserved = 0
  end type

  type, bind(c) :: deviceloop_training_spec
    integer(c_size_t) :: struct_size = 256
    integer(c_int32_t) :: loss = 0
    integer(c_int32_t) :: reduction = 0
    real(c_double) :: huber_delta = 0
    integer(c_int32_t) :: class_targets = 0
    integer(c_int32_t) :: sample_weights = 0
    integer(c_int32_t) :: optimizer = 0
    integer(c_int32_t) :: nesterov = 0
    real(c_double) :: learning_rate = 0
    real(c_double) :: momentum = 0
    integer(c_int32_t) :: has_weight_decay = 0
    integer(c_int32_t) :: has_beta2 = 0
    real(c_double) :: weight_decay = 0
    real(c_double) :: beta1 = 0
    real(c_double) :: beta2 = 0
    real(c_double) :: epsilon = 0
    real(c_double) :: clip_norm = 0
    real(c_double) :: clip_value = 0
    integer(c_int32_t) :: schedule = 0
    integer(c_int32_t) :: shuffle = 0
    integer(c_int64_t) :: schedule_period = 0
    real(c_double) :: schedule_factor = 0
    real(c_double) :: schedule_end_rate = 0
    integer(c_int64_t) :: warmup_steps = 0
    integer(c_int64_t) :: samples = 0
    integer(c_int64_t) :: batch_size = 0
    integer(c_int64_t) :: watch_every = 0
    integer(c_int64_t) :: watch_patience = 0
    integer(c_int32_t) :: has_target_loss = 0
    integer(c_int32_t) :: keep_best = 0
    real(c_double) :: target_loss = 0
    integer(c_int32_t) :: precision = 0
    integer(c_int32_t) :: formulation = 0
    integer(c_int64_t) :: reprojection_steps = 0
    integer(c_int32_t) :: deterministic = 0
    integer(c_int32_t) :: device = 0
    integer(c_int32_t) :: device_index = 0
    integer(c_int32_t) :: form = 0
    integer(c_int64_t) :: deadline_ms = 0
    integer(c_int32_t) :: threads = 0
    integer(c_int32_t) :: in_place = 0
    integer(c_int64_t) :: seed = 0
  end type

  type, bind(c) :: deviceloop_caps_info
    integer(c_size_t) :: struct_size = 48
    integer(c_int64_t) :: memory_bytes = 0
    real(c_double) :: gflops_fp32 = 0
    integer(c_int32_t) :: cores = 0
    integer(c_int32_t) :: gpus = 0
    type(c_ptr) :: no_gpu_reason = c_null_ptr
    type(c_ptr) :: no_cublaslt_reason = c_null_ptr
  end type

  type, bind(c) :: deviceloop_gpu_caps
    integer(c_size_t) :: struct_size = 80
    type(c_ptr) :: name = c_null_ptr
    integer(c_int32_t) :: index = 0
    integer(c_int32_t) :: compute_capability = 0
    integer(c_int32_t) :: multiprocessors = 0
    integer(c_int32_t) :: cooperative = 0
    integer(c_int64_t) :: memory_bytes = 0
    real(c_double) :: memory_gb_per_s = 0
    integer(c_int64_t) :: l2_bytes = 0
    integer(c_int64_t) :: shared_bytes = 0
    type(c_ptr) :: no_code_reason = c_null_ptr
    type(c_ptr) :: no_hopper_code_reason = c_null_ptr
  end type

  type, bind(c) :: deviceloop_plan_info
    integer(c_size_t) :: struct_size = 64
    integer(c_int32_t) :: executor = 0
    integer(c_int32_t) :: formulation = 0
    type(c_ptr) :: reason = c_null_ptr
    integer(c_int64_t) :: bytes = 0
    real(c_double) :: predicted_us_per_step = 0
    real(c_double) :: floor_us_per_step = 0
    integer(c_int32_t) :: threads = 0
    integer(c_int32_t) :: device = 0
    integer(c_int64_t) :: candidates = 0
  end type

  type, bind(c) :: deviceloop_candidate
    integer(c_size_t) :: struct_size = 48
    integer(c_int32_t) :: executor = 0
    integer(c_int32_t) :: accepted = 0
    type(c_ptr) :: reason = c_null_ptr
    integer(c_int64_t) :: bytes = 0
    real(c_double) :: predicted_us_per_step = 0
    real(c_double) :: floor_us_per_step = 0
  end type

  type, bind(c) :: deviceloop_evaluation
    integer(c_int64_t) :: steps = 0
    real(c_double) :: loss = 0
    real(c_double) :: accuracy = 0
    integer(c_int32_t) :: has_accuracy = 0
    integer(c_int32_t) :: reserved = 0
  end type

  type, bind(c) :: deviceloop_progress
    integer(c_size_t) :: struct_size = 64
    integer(c_int64_t) :: first_step = 0
    integer(c_int64_t) :: loss_count = 0
    type(c_ptr) :: losses = c_null_ptr
    integer(c_int64_t) :: evaluation_count = 0
    type(c_ptr) :: evaluations = c_null_ptr
    integer(c_int64_t) :: steps_done = 0
    integer(c_int64_t) :: steps_total = 0
  end type

  type, bind(c) :: deviceloop_report_info
    integer(c_size_t) :: struct_size = 80
    integer(c_int64_t) :: first_step = 0
    integer(c_int64_t) :: steps = 0
    type(c_ptr) :: losses = c_null_ptr
    real(c_double) :: total_ms = 0
    real(c_double) :: us_per_step = 0
    real(c_double) :: prepare_ms = 0
    integer(c_int64_t) :: first_non_finite_step = 0
    integer(c_int32_t) :: end = 0
    integer(c_int32_t) :: evaluations = 0
    integer(c_int32_t) :: stages = 0
    integer(c_int32_t) :: algorithms = 0
  end type

  type, bind(c) :: deviceloop_cuda_options
    integer(c_size_t) :: struct_size = 48
    type(c_ptr) :: stream = c_null_ptr
    type(c_funptr) :: allocate = c_null_funptr
    type(c_funptr) :: free = c_null_funptr
    type(c_ptr) :: user = c_null_ptr
    integer(c_int32_t) :: has_stream = 0
    integer(c_int32_t) :: reserved = 0
  end type

  interface
    function deviceloop_status_name(status) bind(c) result(returned)
      import
      integer(c_int32_t), value :: status
      type(c_ptr) :: returned
    end function
    function deviceloop_last_error() bind(c) result(returned)
      import
      type(c_ptr) :: returned
    end function
    function deviceloop_last_device_error(error) bind(c) result(returned)
      import
      type(deviceloop_device_error_info), intent(inout) :: error
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_version(major, minor, patch) bind(c)
      import
      integer(c_int32_t), intent(out) :: major
      integer(c_int32_t), intent(out) :: minor
      integer(c_int32_t), intent(out) :: patch
    end subroutine
    function deviceloop_version_text() bind(c) result(returned)
      import
      type(c_ptr) :: returned
    end function
    function deviceloop_tensor_of_weight(layer) bind(c) result(returned)
      import
      integer(c_int32_t), value :: layer
      integer(c_int32_t) :: returned
    end function
    function deviceloop_fill_normal(out, seed, tensor, deviation) bind(c) result(returned)
      import
      type(deviceloop_matrix), intent(in) :: out
      integer(c_int64_t), value :: seed
      integer(c_int32_t), value :: tensor
      real(c_double), value :: deviation
      integer(c_int32_t) :: returned
    end function
    function deviceloop_executor_name(executor) bind(c) result(returned)
      import
      integer(c_int32_t), value :: executor
      type(c_ptr) :: returned
    end function
    function deviceloop_precision_name(precision) bind(c) result(returned)
      import
      integer(c_int32_t), value :: precision
      type(c_ptr) :: returned
    end function
    function deviceloop_formulation_name(formulation) bind(c) result(returned)
      import
      integer(c_int32_t), value :: formulation
      type(c_ptr) :: returned
    end function
    function deviceloop_form_name(form) bind(c) result(returned)
      import
      integer(c_int32_t), value :: form
      type(c_ptr) :: returned
    end function
    function deviceloop_network_spec_init(spec, struct_size) bind(c) result(returned)
      import
      type(deviceloop_network_spec), intent(inout) :: spec
      integer(c_size_t), value :: struct_size
      integer(c_int32_t) :: returned
    end function
    function deviceloop_training_spec_init(spec, struct_size) bind(c) result(returned)
      import
      type(deviceloop_training_spec), intent(inout) :: spec
      integer(c_size_t), value :: struct_size
      integer(c_int32_t) :: returned
    end function
    function deviceloop_caps_query(caps) bind(c) result(returned)
      import
      type(c_ptr), intent(out) :: caps
      integer(c_int32_t) :: returned
    end function
    function deviceloop_caps_create(caps) bind(c) result(returned)
      import
      type(c_ptr), intent(out) :: caps
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_caps_destroy(caps) bind(c)
      import
      type(c_ptr), value :: caps
    end subroutine
    function deviceloop_caps_get(caps, info) bind(c) result(returned)
      import
      type(c_ptr), value :: caps
      type(deviceloop_caps_info), intent(inout) :: info
      integer(c_int32_t) :: returned
    end function
    function deviceloop_caps_set(caps, info) bind(c) result(returned)
      import
      type(c_ptr), value :: caps
      type(deviceloop_caps_info), intent(in) :: info
      integer(c_int32_t) :: returned
    end function
    function deviceloop_caps_gpu(caps, number, gpu) bind(c) result(returned)
      import
      type(c_ptr), value :: caps
      integer(c_int32_t), value :: number
      type(deviceloop_gpu_caps), intent(inout) :: gpu
      integer(c_int32_t) :: returned
    end function
    function deviceloop_caps_add_gpu(caps, gpu) bind(c) result(returned)
      import
      type(c_ptr), value :: caps
      type(deviceloop_gpu_caps), intent(in) :: gpu
      integer(c_int32_t) :: returned
    end function
    function deviceloop_plan_create(network, training, caps, forced, plan) bind(c) result(returned)
      import
      type(deviceloop_network_spec), intent(in) :: network
      type(c_ptr), value :: training
      type(c_ptr), value :: caps
      integer(c_int32_t), value :: forced
      type(c_ptr), intent(out) :: plan
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_plan_destroy(plan) bind(c)
      import
      type(c_ptr), value :: plan
    end subroutine
    function deviceloop_plan_get(plan, info) bind(c) result(returned)
      import
      type(c_ptr), value :: plan
      type(deviceloop_plan_info), intent(inout) :: info
      integer(c_int32_t) :: returned
    end function
    function deviceloop_plan_candidate(plan, number, candidate) bind(c) result(returned)
      import
      type(c_ptr), value :: plan
      integer(c_int64_t), value :: number
      type(deviceloop_candidate), intent(inout) :: candidate
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_report_destroy(report) bind(c)
      import
      type(c_ptr), value :: report
    end subroutine
    function deviceloop_report_get(report, info) bind(c) result(returned)
      import
      type(c_ptr), value :: report
      type(deviceloop_report_info), intent(inout) :: info
      integer(c_int32_t) :: returned
    end function
    function deviceloop_report_plan(report, plan) bind(c) result(returned)
      import
      type(c_ptr), value :: report
      type(c_ptr), intent(out) :: plan
      integer(c_int32_t) :: returned
    end function
    function deviceloop_report_evaluation(report, number, evaluation) bind(c) result(returned)
      import
      type(c_ptr), value :: report
      integer(c_int32_t), value :: number
      type(deviceloop_evaluation), intent(inout) :: evaluation
      integer(c_int32_t) :: returned
    end function
    function deviceloop_report_stage(report, number, name, ms) bind(c) result(returned)
      import
      type(c_ptr), value :: report
      integer(c_int32_t), value :: number
      type(c_ptr), intent(out) :: name
      real(c_double), intent(out) :: ms
      integer(c_int32_t) :: returned
    end function
    function deviceloop_report_algorithm(report, number, text) bind(c) result(returned)
      import
      type(c_ptr), value :: report
      integer(c_int32_t), value :: number
      type(c_ptr), intent(out) :: text
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_create(network, training, caps, forced, trainer) bind(c) result(returned)
      import
      type(deviceloop_network_spec), intent(in) :: network
      type(c_ptr), value :: training
      type(c_ptr), value :: caps
      integer(c_int32_t), value :: forced
      type(c_ptr), intent(out) :: trainer
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_trainer_destroy(trainer) bind(c)
      import
      type(c_ptr), value :: trainer
    end subroutine
    function deviceloop_trainer_create_with_cuda(network, training, options, forced, trainer) bind(c) result(returned)
      import
      type(deviceloop_network_spec), intent(in) :: network
      type(c_ptr), value :: training
      type(deviceloop_cuda_options), intent(in) :: options
      integer(c_int32_t), value :: forced
      type(c_ptr), intent(out) :: trainer
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_set_data(trainer, x, y, sample_weights) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(deviceloop_matrix), intent(in) :: x
      type(deviceloop_matrix), intent(in) :: y
      type(c_ptr), value :: sample_weights
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_data_changed(trainer) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_set_validation(trainer, x, y) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(c_ptr), value :: x
      type(c_ptr), value :: y
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_prepare(trainer) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_initialize(trainer, seed, init) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int64_t), value :: seed
      integer(c_int32_t), value :: init
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_read_weight(trainer, layer, out) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), value :: layer
      type(deviceloop_matrix), intent(in) :: out
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_read_bias(trainer, layer, out) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), value :: layer
      type(deviceloop_matrix), intent(in) :: out
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_write_weight(trainer, layer, in) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), value :: layer
      type(deviceloop_matrix), intent(in) :: in
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_write_bias(trainer, layer, in) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), value :: layer
      type(deviceloop_matrix), intent(in) :: in
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_load_weights(trainer, path) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      character(kind=c_char), intent(in) :: path(*)
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_save_weights(trainer, path) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      character(kind=c_char), intent(in) :: path(*)
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_load_state(trainer, path) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      character(kind=c_char), intent(in) :: path(*)
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_save_state(trainer, path) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      character(kind=c_char), intent(in) :: path(*)
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_train(trainer, steps, callback, user, steps_per_callback, &
        report) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int64_t), value :: steps
      type(c_funptr), value :: callback
      type(c_ptr), value :: user
      integer(c_int64_t), value :: steps_per_callback
      type(c_ptr), intent(out) :: report
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_train_async(trainer, steps, run) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int64_t), value :: steps
      type(c_ptr), intent(out) :: run
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_run_destroy(run) bind(c)
      import
      type(c_ptr), value :: run
    end subroutine
    function deviceloop_run_done(run, done) bind(c) result(returned)
      import
      type(c_ptr), value :: run
      integer(c_int32_t), intent(out) :: done
      integer(c_int32_t) :: returned
    end function
    function deviceloop_run_losses(run, losses, loss_count) bind(c) result(returned)
      import
      type(c_ptr), value :: run
      type(c_ptr), intent(out) :: losses
      integer(c_int64_t), intent(out) :: loss_count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_run_wait(run, report) bind(c) result(returned)
      import
      type(c_ptr), value :: run
      type(c_ptr), intent(out) :: report
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_enqueue_step(trainer, loss) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(c_ptr), value :: loss
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_loss(trainer, loss) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      real(c_double), intent(out) :: loss
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_evaluate(trainer, evaluation) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(deviceloop_evaluation), intent(inout) :: evaluation
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_best(trainer, found, evaluation) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), intent(out) :: found
      type(deviceloop_evaluation), intent(inout) :: evaluation
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_restore_best(trainer) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_predict(trainer, x, out) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(deviceloop_matrix), intent(in) :: x
      type(deviceloop_matrix), intent(in) :: out
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_network(trainer, network) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(deviceloop_network_spec), intent(inout) :: network
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_training(trainer, training) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(deviceloop_training_spec), intent(inout) :: training
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_plan(trainer, plan) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(c_ptr), intent(out) :: plan
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_steps_done(trainer, steps) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int64_t), intent(out) :: steps
      integer(c_int32_t) :: returned
    end function
    function deviceloop_view_of_dlpack(tensor, writable, view) bind(c) result(returned)
      import
      type(c_ptr), value :: tensor
      integer(c_int32_t), value :: writable
      type(deviceloop_matrix), intent(inout) :: view
      integer(c_int32_t) :: returned
    end function
    function deviceloop_view_of_legacy_dlpack(tensor, view) bind(c) result(returned)
      import
      type(c_ptr), value :: tensor
      type(deviceloop_matrix), intent(inout) :: view
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_weight_to_dlpack(trainer, layer, space, tensor) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), value :: layer
      integer(c_int32_t), value :: space
      type(c_ptr), intent(out) :: tensor
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_bias_to_dlpack(trainer, layer, space, tensor) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      integer(c_int32_t), value :: layer
      integer(c_int32_t), value :: space
      type(c_ptr), intent(out) :: tensor
      integer(c_int32_t) :: returned
    end function
    function deviceloop_trainer_predict_to_dlpack(trainer, x, tensor) bind(c) result(returned)
      import
      type(c_ptr), value :: trainer
      type(deviceloop_matrix), intent(in) :: x
      type(c_ptr), intent(out) :: tensor
      integer(c_int32_t) :: returned
    end function
    function deviceloop_legacy_dlpack(tensor, legacy) bind(c) result(returned)
      import
      type(c_ptr), value :: tensor
      type(c_ptr), intent(out) :: legacy
      integer(c_int32_t) :: returned
    end function
    subroutine deviceloop_dlpack_destroy(tensor) bind(c)
      import
      type(c_ptr), value :: tensor
    end subroutine
    function deviceloop_relu_f32(out, in, count) bind(c) result(returned)
      import
      real(c_float), intent(inout) :: out(*)
      real(c_float), intent(in) :: in(*)
      integer(c_int64_t), value :: count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_relu_f64(out, in, count) bind(c) result(returned)
      import
      real(c_double), intent(inout) :: out(*)
      real(c_double), intent(in) :: in(*)
      integer(c_int64_t), value :: count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_relu_gradient_f32(dz, z, dh, count) bind(c) result(returned)
      import
      real(c_float), intent(inout) :: dz(*)
      real(c_float), intent(in) :: z(*)
      real(c_float), intent(in) :: dh(*)
      integer(c_int64_t), value :: count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_relu_gradient_f64(dz, z, dh, count) bind(c) result(returned)
      import
      real(c_double), intent(inout) :: dz(*)
      real(c_double), intent(in) :: z(*)
      real(c_double), intent(in) :: dh(*)
      integer(c_int64_t), value :: count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_squared_error_f32(loss, gradient, prediction, target, count) bind(c) result(returned)
      import
      real(c_double), intent(out) :: loss
      type(c_ptr), value :: gradient
      real(c_float), intent(in) :: prediction(*)
      real(c_float), intent(in) :: target(*)
      integer(c_int64_t), value :: count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_squared_error_f64(loss, gradient, prediction, target, count) bind(c) result(returned)
      import
      real(c_double), intent(out) :: loss
      type(c_ptr), value :: gradient
      real(c_double), intent(in) :: prediction(*)
      real(c_double), intent(in) :: target(*)
      integer(c_int64_t), value :: count
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_relu_f32(out, in, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: out
      type(c_ptr), value :: in
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_relu_f64(out, in, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: out
      type(c_ptr), value :: in
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_relu_gradient_f32(dz, z, dh, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: dz
      type(c_ptr), value :: z
      type(c_ptr), value :: dh
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_relu_gradient_f64(dz, z, dh, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: dz
      type(c_ptr), value :: z
      type(c_ptr), value :: dh
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_bias_relu_f32(h, z, bias, batch, features, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: h
      type(c_ptr), value :: z
      type(c_ptr), value :: bias
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: features
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_bias_relu_f64(h, z, bias, batch, features, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: h
      type(c_ptr), value :: z
      type(c_ptr), value :: bias
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: features
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_mask_gradient_f32(dz, h, dh, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: dz
      type(c_ptr), value :: h
      type(c_ptr), value :: dh
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_mask_gradient_f64(dz, h, dh, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: dz
      type(c_ptr), value :: h
      type(c_ptr), value :: dh
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_squared_error_f32(loss, gradient, prediction, target, count, workspace, &
        workspace_bytes, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: loss
      type(c_ptr), value :: gradient
      type(c_ptr), value :: prediction
      type(c_ptr), value :: target
      integer(c_int64_t), value :: count
      type(c_ptr), value :: workspace
      integer(c_size_t), value :: workspace_bytes
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_squared_error_f64(loss, gradient, prediction, target, count, workspace, &
        workspace_bytes, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: loss
      type(c_ptr), value :: gradient
      type(c_ptr), value :: prediction
      type(c_ptr), value :: target
      integer(c_int64_t), value :: count
      type(c_ptr), value :: workspace
      integer(c_size_t), value :: workspace_bytes
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_squared_error_workspace(count, bytes) bind(c) result(returned)
      import
      integer(c_int64_t), value :: count
      integer(c_size_t), intent(out) :: bytes
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_column_sums_f32(sums, matrix, batch, features, workspace, workspace_bytes, &
        stream) bind(c) result(returned)
      import
      type(c_ptr), value :: sums
      type(c_ptr), value :: matrix
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: features
      type(c_ptr), value :: workspace
      integer(c_size_t), value :: workspace_bytes
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_column_sums_f64(sums, matrix, batch, features, workspace, workspace_bytes, &
        stream) bind(c) result(returned)
      import
      type(c_ptr), value :: sums
      type(c_ptr), value :: matrix
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: features
      type(c_ptr), value :: workspace
      integer(c_size_t), value :: workspace_bytes
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_column_sums_workspace(batch, features, bytes) bind(c) result(returned)
      import
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: features
      integer(c_size_t), intent(out) :: bytes
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_narrow_linear_f32(out, in, weights, bias, batch, in_features, out_features, &
        stream) bind(c) result(returned)
      import
      type(c_ptr), value :: out
      type(c_ptr), value :: in
      type(c_ptr), value :: weights
      type(c_ptr), value :: bias
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: in_features
      integer(c_int64_t), value :: out_features
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_narrow_linear_f64(out, in, weights, bias, batch, in_features, out_features, &
        stream) bind(c) result(returned)
      import
      type(c_ptr), value :: out
      type(c_ptr), value :: in
      type(c_ptr), value :: weights
      type(c_ptr), value :: bias
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: in_features
      integer(c_int64_t), value :: out_features
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_narrow_linear_gradient_f32(dz, dweights, h, dout, weights, batch, in_features, &
        out_features, workspace, workspace_bytes, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: dz
      type(c_ptr), value :: dweights
      type(c_ptr), value :: h
      type(c_ptr), value :: dout
      type(c_ptr), value :: weights
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: in_features
      integer(c_int64_t), value :: out_features
      type(c_ptr), value :: workspace
      integer(c_size_t), value :: workspace_bytes
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_narrow_linear_gradient_f64(dz, dweights, h, dout, weights, batch, in_features, &
        out_features, workspace, workspace_bytes, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: dz
      type(c_ptr), value :: dweights
      type(c_ptr), value :: h
      type(c_ptr), value :: dout
      type(c_ptr), value :: weights
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: in_features
      integer(c_int64_t), value :: out_features
      type(c_ptr), value :: workspace
      integer(c_size_t), value :: workspace_bytes
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_narrow_linear_gradient_workspace(batch, in_features, out_features, &
        bytes) bind(c) result(returned)
      import
      integer(c_int64_t), value :: batch
      integer(c_int64_t), value :: in_features
      integer(c_int64_t), value :: out_features
      integer(c_size_t), intent(out) :: bytes
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_sgd_update_f32(weights, dweights, learning_rate, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: weights
      type(c_ptr), value :: dweights
      real(c_float), value :: learning_rate
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
    function deviceloop_cuda_sgd_update_f64(weights, dweights, learning_rate, count, stream) bind(c) result(returned)
      import
      type(c_ptr), value :: weights
      type(c_ptr), value :: dweights
      real(c_double), value :: learning_rate
      integer(c_int64_t), value :: count
      type(c_ptr), value :: stream
      integer(c_int32_t) :: returned
    end function
  end interface

  !> A view of a contiguous array with the attribute target: a(columns, rows). One that is not contiguous has no view, and
  !> the function that gets it refuses null data.
  interface deviceloop_view
    module procedure deviceloop_view_float32, deviceloop_view_float64
  end interface
  private :: deviceloop_view_float32, deviceloop_view_float64

contains

  function deviceloop_view_float32(a) result(view)
    real(c_float), intent(in), target :: a(:, :)
    type(deviceloop_matrix) :: view
    view%type = DEVICELOOP_ELEMENT_FLOAT32
    view%rows = size(a, 2, c_int64_t)
    view%columns = size(a, 1, c_int64_t)
    if (size(a) > 0 .and. is_contiguous(a)) view%data = c_loc(a(lbound(a, 1), lbound(a, 2)))
  end function

  function deviceloop_view_float64(a) result(view)
    real(c_double), intent(in), target :: a(:, :)
    type(deviceloop_matrix) :: view
    view%type = DEVICELOOP_ELEMENT_FLOAT64
    view%rows = size(a, 2, c_int64_t)
    view%columns = size(a, 1, c_int64_t)
    if (size(a) > 0 .and. is_contiguous(a)) view%data = c_loc(a(lbound(a, 1), lbound(a, 2)))
  end function

  !> The text that a function has returned; empty for null.
  function deviceloop_text(text) result(string)
    type(c_ptr), intent(in) :: text
    character(:), allocatable :: string
    character(kind=c_char), pointer :: characters(:)
    integer :: length, i
    interface
      function strlen(text) bind(c) result(length)
        import
        type(c_ptr), value :: text
        integer(c_size_t) :: length
      end function
    end interface
    if (.not. c_associated(text)) then
      string = ''
      return
    end if
    length = int(strlen(text))
    call c_f_pointer(text, characters, [length])
    allocate (character(length) :: string)
    do i = 1, length
      string(i:i) = characters(i)
    end do
  end function
end module
