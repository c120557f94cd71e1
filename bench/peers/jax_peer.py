"""JAX: one jitted step, and lax.scan over all steps; gradients by jax.value_and_grad."""

import os

import common


def restrict(threads: int) -> None:
    """XLA sizes its thread pool by the cores that the process may use, and reads no other setting for it."""
    cores = sorted(os.sched_getaffinity(0))
    if threads < len(cores):
        os.sched_setaffinity(0, cores[:threads])


def make_step(jax, jnp, case):
    def loss_of(parameters, x, y):
        h = x
        for layer, (weight, bias) in enumerate(parameters):
            h = h @ weight
            h = h if bias is None else h + bias
            h = jax.nn.relu(h) if layer + 1 < len(parameters) else h
        return jnp.sum(jnp.square(h - y))

    def step(parameters, x, y):
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
        return jax.tree_util.tree_map(lambda value, slope: value - case.rate * slope, parameters, gradients), loss

    return step


def main() -> None:
    case = common.read_case()
    os.environ["JAX_PLATFORMS"] = case.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # others use the GPU in turn
    if case.device == "cpu":
        restrict(case.threads)
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
    jax.config.update("jax_enable_x64", case.precision == "fp64")
    try:
        jax.devices()
    except RuntimeError as error:
        common.cannot(case, "jax", f"no {case.device} device: {str(error).splitlines()[0]}")
    x, y = jnp.asarray(case.x), jnp.asarray(case.y)
    step = make_step(jax, jnp, case)
    jitted = jax.jit(step, donate_argnums=0)
    scanned = jax.jit(
        lambda parameters, x, y: jax.lax.scan(lambda p, _: step(p, x, y), parameters, length=case.steps), donate_argnums=0
    )

    def start():
        weights, biases = case.copies(jnp.array)
        return jax.block_until_ready(list(zip(weights, biases or [None] * len(weights))))

    def prepare_steps():
        parameters = start()

        def run():
            current, losses = parameters, []
            for _ in range(case.steps):
                current, loss = jitted(current, x, y)
                losses.append(loss)
            jax.block_until_ready(current)
            return [float(loss) for loss in jax.device_get(losses)]

        return run

    def prepare_scan():
        parameters = start()

        def run():
            last, losses = scanned(parameters, x, y)
            jax.block_until_ready(last)
            return np.asarray(losses)

        return run

    threads = case.threads if case.device == "cuda" else len(os.sched_getaffinity(0))
    said = common.includes(case, threads=threads)
    rows = [common.Row("jax/jit", prepare_steps, said), common.Row("jax/scan", prepare_scan, said)]
    common.serve(case, "jax", jax.__version__, rows, {})


if __name__ == "__main__":
    main()
