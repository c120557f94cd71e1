#!/usr/bin/env python3
"""Checks the program `deviceloop` from outside, against programs that share nothing with it:

    tests/cross_check.py --command build/bin/deviceloop

NumPy     `deviceloop train --x --y --weights` follows bench/numpy_loop.py in float64 at every step and to the same final
          weights, in several shapes, with biases and without, in both precisions.
PyTorch   The saved weights load into nn.Sequential(Linear, ReLU, ...) and predict what `deviceloop predict` does; and 50
          steps on shuffled minibatches with every optimizer, schedule, clipping, loss and activation, each with each,
          follow torch.optim in float64 at every step and to the same final weights. That takes some minutes. Left out,
          and said so, where the Python that runs this has no PyTorch.
reruns    Every flavour of OpenBLAS in Debian's folders, 1, 2 and 7 threads, 20 runs each: the same history and weights,
          bit for bit.

Needs NumPy. Ends with 1 at the first difference.
"""

import argparse
import filecmp
import glob
import itertools
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "bench"), str(TESTS / "reference")]
import numpy_loop  # noqa: E402, found through the line above

# layers, samples, bias, init, rate, steps
SHAPES = [
    ("1000,100,1", 128, False, "normal", 1e-6, 500),
    ("1000,100,1", 128, True, "he", 2e-6, 100),
    ("24,20,12,2", 70, True, "he", 5e-5, 200),
    ("24,20,12,2", 70, False, "xavier", 5e-5, 200),
    ("7,1", 33, True, "normal", 1e-3, 100),
    ("1,3,17,3,1", 65, True, "he", 1e-5, 50),
    ("10,16,8,2", 3001, True, "he", 1e-6, 60),
    ("64,64,64,1", 4096, False, "he", 1e-7, 20),
    ("257,33,3", 1, True, "he", 1e-4, 50),
]


def deviceloop(command, *arguments, **options):
    result = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, **options)
    if result.returncode != 0:
        sys.exit(f"deviceloop {' '.join(map(str, arguments))} ended with {result.returncode}: {result.stderr}")
    return result.stdout


def read_losses(path):
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)[:, 1]


def relative_error(value, expected):
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def relative_errors(values, expected):
    found = len(values or [])
    check(found == len(expected) > 0, f"{found} tensors instead of {len(expected)}")
    return [relative_error(one, other) for one, other in zip(values, expected)]


def check(condition, text):
    if not condition:
        sys.exit(f"FAILED: {text}")


def check_numpy(command, folder):
    for layers, samples, bias, init, rate, steps in SHAPES:
        for precision in ("fp32", "fp64"):
            # 1e-4 and 1e-5 in fp32, 1e-10 in fp64, as for every whole run; biases start at 0 and stay small against the
            # weights, so they get ten times that.
            loss_bound, weight_bound = (1e-4, 1e-5) if precision == "fp32" else (1e-10, 1e-10)
            shape = ["--layers", layers, "--samples", samples, "--precision", precision, "--init", init]
            shape += ["--bias"] if bias else []
            x, y, start, end, history = (
                folder / name for name in ("x.npy", "y.npy", "start.safetensors", "end.safetensors", "history.csv")
            )
            deviceloop(command, "data", *shape, "--seed", 3, "--x", x, "--y", y, "--weights", start)
            run = ["--layers", layers, "--precision", precision, "--x", x, "--y", y, "--weights", start]
            run += ["--bias"] if bias else []
            deviceloop(command, "train", *run, "--lr", rate, "--steps", steps, "--history", history, "--save", end, "--quiet")

            weights, biases = numpy_loop.read_weights([str(start)])
            weights = [np.array(weight, np.float64, order="C") for weight in weights]
            biases = None if biases is None else [np.array(values, np.float64) for values in biases]
            inputs = np.load(x).astype(np.float64), np.load(y).astype(np.float64)
            expected = np.array(numpy_loop.train(*inputs, weights, biases, steps, rate))
            losses = read_losses(history)
            check(len(losses) == steps, f"{layers}: {len(losses)} losses of {steps}")
            worst = float(np.max(np.abs(losses - expected) / np.maximum(expected, 1e-3 * expected[0])))
            end_weights, end_biases = numpy_loop.read_weights([str(end)])
            errors = relative_errors(end_weights, weights)
            bias_errors = relative_errors(end_biases, biases) if bias else []
            print(
                f"numpy    {layers:>14} n={samples:<5} {'bias' if bias else 'none'} {precision}: loss {worst:.1e}, "
                f"weights {np.max(errors):.1e}" + (f", biases {np.max(bias_errors):.1e}" if bias_errors else "")
            )
            # Of NumPy's maximum, which is NaN where one of them is.
            check(worst <= loss_bound, f"losses differ by {worst}")
            check(np.max(errors) <= weight_bound, f"weights differ by {errors}")
            check(not bias or np.max(bias_errors) <= 10 * weight_bound, f"biases differ by {bias_errors}")


def check_pytorch(command, folder):
    try:
        import torch
    except ImportError as error:
        print(f"pytorch  left out: {error}")
        return
    for layers, bias, precision in (("40,30,20,3", True, "fp32"), ("40,30,20,3", True, "fp64"), ("40,30,1", False, "fp64")):
        x, y, saved, out = (folder / name for name in ("x.npy", "y.npy", "saved.safetensors", "out.npy"))
        shape = ["--layers", layers, "--precision", precision] + (["--bias"] if bias else [])
        deviceloop(command, "data", *shape, "--samples", 50, "--x", x, "--y", y)
        deviceloop(command, "train", *shape, "--x", x, "--y", y, "--init", "he", "--lr", 1e-5, "--save", saved, "--quiet")
        deviceloop(command, "predict", "--weights", saved, "--precision", precision, "--x", x, "--out", out)

        widths, dtype = [int(width) for width in layers.split(",")], torch.float32 if precision == "fp32" else torch.float64
        modules = []
        for fan_in, fan_out in zip(widths, widths[1:]):
            modules += [torch.nn.Linear(fan_in, fan_out, bias=bias, dtype=dtype), torch.nn.ReLU()]
        network = torch.nn.Sequential(*modules[:-1])
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in numpy_loop.read_safetensors(saved).items()}
        network.load_state_dict(tensors, strict=True)
        with torch.no_grad():
            expected = network(torch.from_numpy(np.load(x))).numpy()
        error = relative_error(np.load(out), expected)
        print(f"pytorch  {layers:>14} {'bias' if bias else 'none'} {precision}: predictions {error:.1e}")
        check(error <= (1e-6 if precision == "fp32" else 1e-14), f"predictions differ by {error}")


# What training by PyTorch is compared for, each with each: options of train, then what says the same to PyTorch.
STEPS, BATCH = 50, 4
OPTIMIZERS = [
    ("--optimizer sgd --lr 0.02", "SGD", dict(lr=0.02)),
    (
        "--optimizer sgd --lr 0.01 --momentum 0.8 --nesterov --weight-decay 0.1",
        "SGD",
        dict(lr=0.01, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    ("--optimizer adam --lr 0.01", "Adam", dict(lr=0.01)),
    (
        "--optimizer adam --lr 0.01 --weight-decay 0.3 --beta1 0.7 --beta2 0.9 --epsilon 1e-3",
        "Adam",
        dict(lr=0.01, weight_decay=0.3, betas=(0.7, 0.9), eps=1e-3),
    ),
    ("--optimizer adamw --lr 0.01 --weight-decay 0.5", "AdamW", dict(lr=0.01, weight_decay=0.5)),
    (
        "--optimizer rmsprop --lr 0.003 --momentum 0.5 --weight-decay 0.2 --beta2 0.9",
        "RMSprop",
        dict(lr=0.003, momentum=0.5, weight_decay=0.2, alpha=0.9),
    ),
]
SCHEDULES = [  # the second is the rate of a step, by that of the optimizer
    ("", lambda rate, step: rate),
    ("--schedule step:7:0.5", lambda rate, step: rate * 0.5 ** (step // 7)),
    ("--schedule exponential:0.93", lambda rate, step: rate * 0.93**step),
    (
        "--schedule cosine:0.001 --warmup 20",
        lambda rate, step: (0.001 + (rate - 0.001) * (1 + math.cos(math.pi * step / STEPS)) / 2) * min(1, (step + 1) / 20),
    ),
]
CLIPPINGS = [("", None), ("--clip-norm 0.5", "clip_grad_norm_"), ("--clip-value 0.1", "clip_grad_value_")]
LOSS_OPTIONS = {
    "squared_error": "squared",
    "absolute_error": "absolute",
    "huber of delta 0.7": "huber:0.7",
    "huber of delta 2": "huber:2",
    "binary_cross_entropy": "bce",
    "cross_entropy": "cross-entropy",
    "cross_entropy of classes": "cross-entropy",
}


def train_by_pytorch(torch, parameters, x, target, batches, optimizer, schedule, clipping, loss_of, activation):
    """The losses of all steps and the final parameters."""
    _, kind, options = optimizer
    parameters = [parameter.clone().requires_grad_() for parameter in parameters]
    weight_1, bias_1, weight_2, bias_2 = parameters
    made = getattr(torch.optim, kind)(parameters, **options)
    losses = []
    for step, rows in enumerate(batches):
        made.param_groups[0]["lr"] = schedule[1](options["lr"], step)
        made.zero_grad()
        loss = loss_of(activation(x[rows] @ weight_1.t() + bias_1) @ weight_2.t() + bias_2, target[rows]).mean()
        loss.backward()
        if clipping[1]:
            getattr(torch.nn.utils, clipping[1])(parameters, float(clipping[0].split()[1]))
        made.step()
        losses.append(loss.item())
    return losses, [parameter.detach().numpy() for parameter in parameters]


def check_pytorch_training(command, folder):
    try:
        import torch
    except ImportError:
        return  # check_pytorch has said so
    import record_losses

    torch.set_num_threads(1)
    samples, layers = record_losses.SAMPLES, ",".join(map(str, record_losses.WIDTHS))
    x_file, y_file, order = (folder / name for name in ("x.npy", "y.npy", "order.npy"))
    shape = ["--layers", layers, "--bias", "--precision", "fp64"]
    deviceloop(command, "data", *shape, "--samples", samples, "--x", x_file, "--y", y_file, "--quiet")
    epochs = math.ceil(STEPS * BATCH / samples)
    deviceloop(command, "data", "--samples", samples, "--epochs", epochs, "--order", order, "--quiet")
    batches = np.load(order).ravel()[: STEPS * BATCH].reshape(STEPS, BATCH)
    x, y = torch.from_numpy(np.load(x_file)), np.load(y_file)
    worst_loss = worst_weight = count = 0
    for (loss, (targets_of, loss_of, _)), (name, activation) in itertools.product(
        record_losses.LOSSES.items(), record_losses.ACTIVATIONS.items()
    ):
        option = name.replace(" of slope ", ":").replace("_", "-")
        weights, target_file, history, saved = (
            folder / file for file in ("w.safetensors", "target.npy", "h.csv", "saved.safetensors")
        )
        of_network = [*shape, "--activation", option]
        deviceloop(command, "data", *of_network, "--init", "he", "--weights", weights, "--quiet")
        target = targets_of(y)
        np.save(target_file, target.numpy().reshape(samples, -1))
        start = numpy_loop.read_safetensors(weights)
        start = [torch.from_numpy(np.array(start[key])) for key in ("0.weight", "0.bias", "2.weight", "2.bias")]
        for optimizer, schedule, clipping in itertools.product(OPTIMIZERS, SCHEDULES, CLIPPINGS):
            options = f"{optimizer[0]} {schedule[0]} {clipping[0]}".split()
            what = f"{loss}, {name}: {' '.join(options)}"
            deviceloop(
                command, "train", *of_network, "--x", x_file, "--y", target_file, "--weights", weights,
                "--loss", LOSS_OPTIONS[loss], "--reduction", "mean", "--batch-size", BATCH, "--steps", STEPS, *options,
                "--history", history, "--save", saved, "--threads", 1, "--quiet",
            )  # fmt: skip
            losses, parameters = train_by_pytorch(
                torch, start, x, target, batches, optimizer, schedule, clipping, loss_of, activation
            )
            found = numpy_loop.read_safetensors(saved)
            error = np.max(np.abs(read_losses(history) - losses) / np.maximum(np.abs(losses), 1e-3 * abs(losses[0])))
            ours = np.concatenate([np.ravel(found[key]) for key in ("0.weight", "0.bias", "2.weight", "2.bias")])
            weight_error = relative_error(ours, np.concatenate([parameter.ravel() for parameter in parameters]))
            check(error <= 1e-10, f"{what}: losses differ by {error:.1e}")
            check(weight_error <= 1e-10, f"{what}: weights differ by {weight_error:.1e}")
            worst_loss, worst_weight, count = max(worst_loss, error), max(worst_weight, weight_error), count + 1
    print(f"pytorch  {count} trainings of {STEPS} steps: losses {worst_loss:.1e}, weights {worst_weight:.1e}")


def check_reruns(command, folder):
    flavours = sorted(glob.glob("/usr/lib/*/openblas-*/libopenblas.so.0"))
    first = {}
    for flavour in flavours or [None]:
        environment = dict(os.environ)
        if flavour:
            environment["LD_LIBRARY_PATH"] = os.path.dirname(flavour)
        gemm = [line for line in deviceloop(command, "info", env=environment).splitlines() if line.startswith("GEMM")][0]
        print("reruns  ", gemm.split(None, 1)[1])
        for threads in (1, 2, 7):
            for rerun in range(20):
                for number, shape in enumerate(
                    (["--layers", "300,40,1"], ["--layers", "20,16,8,2", "--samples", "1500", "--bias", "--lr", "1e-7"])
                ):
                    history, weights = folder / "rerun.csv", folder / "rerun.safetensors"
                    run = [*shape, "--steps", 25, "--threads", threads, "--history", history, "--save", weights, "--quiet"]
                    deviceloop(command, "train", *run, env=environment)
                    if number not in first:
                        first[number] = (folder / f"first{number}.csv", folder / f"first{number}.safetensors")
                        history.rename(first[number][0])
                        weights.rename(first[number][1])
                        continue
                    for file, expected in zip((history, weights), first[number]):
                        check(
                            filecmp.cmp(file, expected, shallow=False),
                            f"{flavour}, {threads} threads, rerun {rerun}: {file.name} differs from the first run's",
                        )
    print(f"reruns   {len(flavours) or 1} flavours x 3 numbers of threads x 20 runs x 2 shapes: 0 differing bits")


def main():
    parser = argparse.ArgumentParser(description="Checks deviceloop against NumPy, PyTorch and itself.")
    parser.add_argument("--command", required=True, help="the program deviceloop")
    parser.add_argument("--flavours", type=int, default=0, help="fail where fewer flavours of OpenBLAS are installed")
    command = os.path.abspath(parser.parse_args().command)
    found = len(glob.glob("/usr/lib/*/openblas-*/libopenblas.so.0"))
    check(found >= parser.parse_args().flavours, f"{found} flavours of OpenBLAS are installed")
    with tempfile.TemporaryDirectory() as name:
        check_numpy(command, pathlib.Path(name))
        check_pytorch(command, pathlib.Path(name))
        check_pytorch_training(command, pathlib.Path(name))
        check_reruns(command, pathlib.Path(name))
    print("all agree")


if __name__ == "__main__":
    main()
