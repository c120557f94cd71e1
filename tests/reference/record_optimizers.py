#!/usr/bin/env python3
"""Records runs by every optimizer, schedule and clipping, which the tests compare with. Run it after a change of what is
recorded, and commit its output:

    tests/reference/record_optimizers.py

Needs NumPy, which neither the build nor the tests do. Where PyTorch can be imported, its own optimizers and clipping
compute the runs, and the formulas below, plain NumPy, must give the same; else the formulas compute them. The first line
of the file says which of the two did. Everything is in float64 and shares nothing with the library.

optimizers.csv
    50 full-batch steps of each case in CASES, on the sum of squared errors: 9 samples, 7-20-3, biases, ReLU. A row a case;
    columns `loss S`, the loss before the update of step S, then `norm`, the Frobenius norm of all final parameters
    together, and `element I`, every ninth of them: W_1 row-major as [in, out], b_1, W_2, b_2.

    Data and first weights are deviceloop's random numbers (random_numbers.py), which the tests draw again: x, y and
    weights by seed 7, the weights times sqrt(2 / in), biases by seed 8 from the tensors 100 and 101.
"""

import math
import pathlib

import numpy as np

import random_numbers

try:
    import torch
except ImportError:
    torch = None

FOLDER = pathlib.Path(__file__).resolve().parent
SAMPLES, WIDTHS, STEPS, SEED = 9, (7, 20, 3), 50, 7
EVERY = 9  # element of the final parameters

# Each with the names of torch.optim; `rate` is the schedule, as a function of the steps before. These are the cases of
# tests/support/optimizer_cases.h.


def constant(rate):
    return lambda step: rate


def stepped(rate, period, factor):
    return lambda step: rate * factor ** (step // period)


def exponential(rate, factor):
    return lambda step: rate * factor**step


def cosine(rate, period, end=0.0):
    return lambda step: end + (rate - end) * (1 + math.cos(math.pi * min(step, period) / period)) / 2


def warmed_up(rate, steps):
    return lambda step: rate(step) * min(1.0, (step + 1) / steps)


CASES = {
    "sgd without momentum": dict(kind="SGD", rate=constant(1e-3)),
    "momentum": dict(kind="SGD", rate=constant(1e-3), momentum=0.9),
    "nesterov and decay": dict(kind="SGD", rate=constant(1e-3), momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": dict(kind="Adam", rate=constant(0.02)),
    "adam with decay": dict(kind="Adam", rate=constant(0.02), weight_decay=0.3, betas=(0.7, 0.9), eps=1e-3),
    "adamw": dict(kind="AdamW", rate=constant(0.02)),
    "adamw with decay": dict(kind="AdamW", rate=constant(0.02), weight_decay=0.5),
    "rmsprop": dict(kind="RMSprop", rate=constant(0.003)),
    "rmsprop with momentum and decay": dict(
        kind="RMSprop", rate=constant(0.003), momentum=0.5, weight_decay=0.2, alpha=0.9
    ),
    "clipped by norm": dict(kind="SGD", rate=constant(0.01), momentum=0.5, clip_norm=3.0),
    "a norm that is never reached": dict(kind="Adam", rate=constant(0.02), clip_norm=1e9),
    "clipped by value": dict(kind="SGD", rate=constant(0.01), momentum=0.5, clip_value=0.7),
    "step schedule": dict(kind="SGD", rate=stepped(1e-3, 7, 0.5)),
    "exponential schedule": dict(kind="SGD", rate=exponential(1e-3, 0.93)),
    "cosine schedule that ends before the run": dict(kind="Adam", rate=cosine(0.02, 33)),
    "cosine schedule to an end with warm-up": dict(kind="Adam", rate=warmed_up(cosine(0.02, 100, 0.01), 20)),
    "warm-up alone": dict(kind="SGD", rate=warmed_up(constant(1e-3), 9)),
}


def start():
    """x, y, [W_1, b_1, W_2, b_2]."""
    x = random_numbers.normal_matrix(SEED, random_numbers.TENSOR_X, SAMPLES, WIDTHS[0])
    y = random_numbers.normal_matrix(SEED, random_numbers.TENSOR_Y, SAMPLES, WIDTHS[-1])
    parameters = []
    for layer, (inputs, outputs) in enumerate(zip(WIDTHS, WIDTHS[1:])):
        weight = random_numbers.normal_matrix(SEED, random_numbers.tensor_of_weight(layer), inputs, outputs)
        parameters.append(weight * math.sqrt(2 / inputs))
        parameters.append(random_numbers.normal_matrix(SEED + 1, 100 + layer, 1, outputs)[0])
    return x, y, parameters


def by_pytorch(kind, rate, clip_norm=None, clip_value=None, **options):
    """The losses of all steps and the final parameters, by torch.optim and torch.nn.utils."""
    x, y, parameters = start()
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    parameters = [torch.from_numpy(parameter).requires_grad_() for parameter in parameters]
    weight_1, bias_1, weight_2, bias_2 = parameters
    optimizer = getattr(torch.optim, kind)(parameters, lr=rate(0), **options)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        prediction = torch.relu(x @ weight_1 + bias_1) @ weight_2 + bias_2
        loss = torch.square(prediction - y).sum()
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, clip_value)
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach().numpy() for parameter in parameters]


def by_formulas(kind, rate, clip_norm=None, clip_value=None, **options):
    """The same by the formulas in PyTorch's documentation of torch.optim.SGD, Adam, AdamW and RMSprop."""
    x, y, parameters = start()
    decay = options.get("weight_decay", 0.01 if kind == "AdamW" else 0.0)
    momentum = options.get("momentum", 0.0)
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    alpha, eps = options.get("alpha", 0.99), options.get("eps", 1e-8)
    first = [np.zeros_like(parameter) for parameter in parameters]
    second = [np.zeros_like(parameter) for parameter in parameters]
    losses = []
    for step in range(STEPS):
        loss, gradients = loss_and_gradients(x, y, *parameters)
        losses.append(loss)
        if clip_norm is not None:  # clip_grad_norm_: the norm of all gradients as one vector
            norm = math.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
            gradients = [gradient * min(1.0, clip_norm / (norm + 1e-6)) for gradient in gradients]
        if clip_value is not None:  # clip_grad_value_
            gradients = [np.clip(gradient, -clip_value, clip_value) for gradient in gradients]
        t, lr = step + 1, rate(step)
        for p, g, m, v in zip(parameters, gradients, first, second):
            if kind == "AdamW":
                p -= lr * decay * p
            else:
                g = g + decay * p
            if kind == "SGD":
                m[:] = momentum * m + g  # b_t = mu b_(t-1) + g_t, b_1 = g_1
                p -= lr * (g + momentum * m if options.get("nesterov") else m)
            elif kind == "RMSprop":
                v[:] = alpha * v + (1 - alpha) * g**2
                m[:] = momentum * m + g / (np.sqrt(v) + eps)
                p -= lr * m
            else:
                m[:] = beta1 * m + (1 - beta1) * g
                v[:] = beta2 * v + (1 - beta2) * g**2
                p -= lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return losses, parameters


def loss_and_gradients(x, y, weight_1, bias_1, weight_2, bias_2):
    z = x @ weight_1 + bias_1
    hidden = np.maximum(z, 0)
    difference = hidden @ weight_2 + bias_2 - y
    d_prediction = 2 * difference
    d_z = d_prediction @ weight_2.T * (z > 0)
    gradients = [x.T @ d_z, d_z.sum(axis=0), hidden.T @ d_prediction, d_prediction.sum(axis=0)]
    return float(np.sum(difference**2)), gradients


def numbers_of(losses, parameters):
    """What is recorded of a run: names and values."""
    flat = np.concatenate([parameter.ravel() for parameter in parameters])
    numbers = [(f"loss {step}", loss) for step, loss in enumerate(losses)]
    numbers.append(("norm", float(np.linalg.norm(flat))))
    numbers += [(f"element {index}", float(flat[index])) for index in range(0, flat.size, EVERY)]
    return numbers


def main():
    random_numbers.check()
    formulas = {case: numbers_of(*by_formulas(**options)) for case, options in CASES.items()}
    if torch is None:
        recorded, maker = formulas, f"NumPy {np.__version__}, by the formulas of PyTorch's documentation"
    else:
        recorded = {case: numbers_of(*by_pytorch(**options)) for case, options in CASES.items()}
        maker = f"PyTorch {torch.__version__}"
        for case, numbers in recorded.items():
            for (name, value), (_, expected) in zip(numbers, formulas[case]):
                assert math.isclose(value, expected, rel_tol=1e-11, abs_tol=1e-12), (case, name, value, expected)
    for case, numbers in recorded.items():
        same = [other for other in recorded if other < case and recorded[other] == numbers]
        # A norm that is never reached changes nothing.
        assert same == (["a norm that is never reached"] if case == "adam" else []), (case, same)
        assert numbers[STEPS - 1][1] < 0.7 * numbers[0][1], f"{case}: the loss must fall"
    with open(FOLDER / "optimizers.csv", "w", encoding="ascii") as file:
        file.write(f"# {STEPS} steps each by {maker}; written by record_optimizers.py, which explains it\n")
        file.write("case," + ",".join(name for name, _ in next(iter(recorded.values()))) + "\n")
        for case, numbers in recorded.items():
            file.write(case + "," + ",".join(f"{value:.17g}" for _, value in numbers) + "\n")
    for case, numbers in recorded.items():
        print(f"{case}: loss {numbers[0][1]:.9g} at step 0, {numbers[STEPS - 1][1]:.9g} at the last")


if __name__ == "__main__":
    main()
