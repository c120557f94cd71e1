"""JAX: one jitted step, and lax.scan over all steps; gradients by jax.value_and_grad. Adam is written out. In bf16 the
operands of each product are converted, and parameters stay float32."""

import math
import os

import common


def restrict(threads: int) -> None:
    """XLA sizes its thread pool by the cores that the process may use, and reads no other setting for it."""
    cores = sorted(os.sched_getaffinity(0))
    if threads < len(cores):
        os.sched_setaffinity(0, cores[:threads])


def make_loss(jax, jnp, case):
    def loss_of(parameters, x, y):
        h = x
        low = jnp.bfloat16 if case.precision == "bf16" else x.dtype
        for layer, (weight, bias) in enumerate(parameters):
            h = (h.astype(low) @ weight.astype(low)).astype(x.dtype)
            h = h if bias is None else h + bias
            h = jax.nn.relu(h) if layer + 1 < len(parameters) else h
        if case.loss == "cross-entropy":
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None], axis=1))
        return (jnp.mean if case.loss == "mse" else jnp.sum)(jnp.square(h - y))

    return loss_of


def make_step(jax, jnp, case):
    """A step (state, data) -> (state, loss), and the state of given parameters."""
    loss_of, each = make_loss(jax, jnp, case), jax.tree_util.tree_map

    def descend(parameters, data):
        x, y = data
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
        return each(lambda value, slope: value - case.rate * slope, parameters, gradients), loss

    def adam(state, data):
        parameters, first, second, number = state
        x, y, batches = data
        rows = batches[number]
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x[rows], y[rows])
        number = number + 1
        first = each(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = each(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        # 1 - beta^t; in fp32, a power that is taken from 1 has lost half of its digits in the first steps.
        one, two = (-jnp.expm1(number.astype(x.dtype) * math.log(beta)) for beta in (0.9, 0.999))
        parameters = each(lambda p, m, v: p - case.rate * (m / one) / (jnp.sqrt(v / two) + 1e-8), parameters, first, second)
        return (parameters, first, second, number), loss

    if case.is_plain:
        return descend, lambda parameters: parameters
    return adam, lambda parameters: (parameters, each(jnp.zeros_like, parameters), each(jnp.zeros_like, parameters),
                                     jnp.int32(0))  # fmt: skip


def main() -> None:
    case = common.read_case()
    os.environ["JAX_PLATFORMS"] = case.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others use the GPU in turn
    if case.device == "cpu":
        restrict(case.threads)
    import jax
    import jax.numpy as jnp
    import numpy as np

    common.only_in(case, "jax", "fp32", "fp64", *(["tf32", "bf16"] if case.device == "cuda" else []))
    # "highest" is no TF32.
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if case.precision == "tf32" else "highest")
    jax.config.update("jax_enable_x64", case.precision == "fp64")
    try:
        jax.devices()
    except RuntimeError as error:
        common.cannot(case, "jax", f"no {case.device} device: {str(error).splitlines()[0]}")
    data = [jnp.asarray(array) for array in (case.x, case.y, case.batches) if array is not None]
    step, state_of = make_step(jax, jnp, case)
    jitted = jax.jit(step, donate_argnums=0)
    scanned = jax.jit(
        lambda state, data: jax.lax.scan(lambda state, _: step(state, data), state, length=case.steps), donate_argnums=0
    )

    def start():
        weights, biases = case.copies(jnp.array)
        return jax.block_until_ready(state_of(list(zip(weights, biases or [None] * len(weights)))))

    def prepare_steps():
        state = start()

        def run():
            current, losses = state, []
            for _ in range(case.steps):
                current, loss = jitted(current, data)
                losses.append(loss)
            jax.block_until_ready(current)
            return [float(loss) for loss in jax.device_get(losses)]

        return run

    def prepare_scan():
        state = start()

        def run():
            last, losses = scanned(state, data)
            jax.block_until_ready(last)
            return np.asarray(losses)

        return run

    threads = case.threads if case.device == "cuda" else len(os.sched_getaffinity(0))
    said = common.includes(case, threads=threads)
    rows = [common.Row("jax/jit", prepare_steps, said), common.Row("jax/scan", prepare_scan, said)]
    common.serve(case, "jax", jax.__version__, rows, {})


if __name__ == "__main__":
    main()
