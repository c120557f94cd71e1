#!/usr/bin/env python3
"""Records runs with every loss and every activation, made by PyTorch, which the tests compare with. Run it after a change
of what is recorded, and commit its output:

    tests/reference/record_losses.py

Needs NumPy and PyTorch, which neither the build nor the tests do. Everything is in float64 and shares nothing with the
library.

losses.csv
    50 full-batch steps of each case that cases() lists, by torch.optim.SGD with momentum: 9 samples, 7-20-3, biases. Each
    loss comes with each activation of the hidden layer and with each of the output layer, as a sum and as a mean, with
    weights of the samples and without. A row a case; columns `loss S`, the loss before the update of step S, then `norm`,
    the Frobenius norm of all final parameters together, and `element I`, every 27th of them: W_1 row-major as [in, out],
    b_1, W_2, b_2.

    Data and first weights are those of record_optimizers.py. Probabilities are the fractional parts of |y| / 4, classes
    and weights count rows, as in classes() and weights().
"""

import itertools
import math
import pathlib

import numpy as np
import torch
from torch.nn import functional

import random_numbers
from record_optimizers import SAMPLES, STEPS, WIDTHS, start

FOLDER = pathlib.Path(__file__).resolve().parent
EVERY = 27  # element of the final parameters
# From the hidden to the output activation, for each loss: no run has two slopes, of which a network has one.
OFFSETS = (0, 2, 5, 6, 7, 11, 8)

ACTIVATIONS = {
    "relu": torch.relu,
    "identity": lambda z: z,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda z: functional.softplus(z, threshold=700),  # by default it is z from 20 on
    "sine": torch.sin,
    "leaky_relu of slope 0.2": lambda z: functional.leaky_relu(z, 0.2),
    "leaky_relu of slope -0.5": lambda z: functional.leaky_relu(z, -0.5),
}


def probabilities(y):
    fraction = np.abs(y) / 4
    return torch.from_numpy(fraction - np.floor(fraction))


def classes(y):
    return torch.from_numpy(np.arange(SAMPLES) * 7 % WIDTHS[-1])


def weights():
    rows = np.arange(SAMPLES)
    return torch.from_numpy(np.where(rows % 4 == 1, 0.0, 0.25 * (1 + rows * 5 % 12)))


# For each the targets of y, the losses of a prediction without a reduction, and whether they are by row.
LOSSES = {
    "squared_error": (torch.from_numpy, lambda p, y: functional.mse_loss(p, y, reduction="none"), False),
    "absolute_error": (torch.from_numpy, lambda p, y: functional.l1_loss(p, y, reduction="none"), False),
    "huber of delta 0.7": (
        torch.from_numpy,
        lambda p, y: functional.huber_loss(p, y, reduction="none", delta=0.7),
        False,
    ),
    "huber of delta 2": (torch.from_numpy, lambda p, y: functional.huber_loss(p, y, reduction="none", delta=2.0), False),
    "binary_cross_entropy": (
        probabilities,
        lambda p, y: functional.binary_cross_entropy_with_logits(p, y, reduction="none"),
        False,
    ),
    "cross_entropy": (probabilities, lambda p, y: functional.cross_entropy(p, y, reduction="none"), True),
    "cross_entropy of classes": (classes, lambda p, y: functional.cross_entropy(p, y, reduction="none"), True),
}


def cases():
    """(loss, is a mean, is weighted, hidden activation, output activation): all pairs but those of two activations. The
    same loops are in tests/recorded_runs_test.cpp."""
    names = list(ACTIVATIONS)
    for (j, loss), (i, hidden) in itertools.product(enumerate(LOSSES), enumerate(names)):
        yield loss, (i + j) % 2 == 1, (i // 2 + j) % 2 == 1, hidden, names[(i + OFFSETS[j]) % len(names)]


def check_pairs():
    found = {pair for case in cases() for pair in itertools.combinations(enumerate(case), 2)}
    levels = [set(level) for level in zip(*cases())]
    for (a, first), (b, second) in itertools.combinations(enumerate(levels), 2):
        for one, other in itertools.product(first, second):
            assert (a, b) == (3, 4) or ((a, one), (b, other)) in found, (one, other)


def run(loss, is_mean, is_weighted, hidden, output):
    """The losses of all steps and the final parameters, one behind the other."""
    x, y, parameters = start()
    targets_of, losses_of, is_by_row = LOSSES[loss]
    x, target = torch.from_numpy(x), targets_of(y)
    parameters = [torch.from_numpy(parameter).requires_grad_() for parameter in parameters]
    weight_1, bias_1, weight_2, bias_2 = parameters
    terms = SAMPLES if is_by_row else SAMPLES * WIDTHS[-1]
    # Where absolute errors change their signs, rounding would grow too fast.
    rate = (5e-4 if loss == "absolute_error" else 2e-3) * (terms if is_mean else 1)
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.5)
    of_row = weights() if is_by_row else weights()[:, None]
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        prediction = ACTIVATIONS[output](ACTIVATIONS[hidden](x @ weight_1 + bias_1) @ weight_2 + bias_2)
        each = losses_of(prediction, target)
        if is_weighted:
            each = of_row * each
        total = each.mean() if is_mean else each.sum()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses, np.concatenate([parameter.detach().numpy().ravel() for parameter in parameters])


def main():
    random_numbers.check()
    check_pairs()
    rows = {}
    for case in cases():
        loss, is_mean, is_weighted, hidden, output = case
        losses, parameters = run(*case)
        assert losses[-1] < 0.99 * losses[0], (case, losses[0], losses[-1])
        name = f"{'mean' if is_mean else 'sum'} of {'weighted ' if is_weighted else ''}{loss}; {hidden}; {output}"
        numbers = [(f"loss {step}", value) for step, value in enumerate(losses)]
        numbers.append(("norm", float(np.linalg.norm(parameters))))
        numbers += [(f"element {index}", float(parameters[index])) for index in range(0, parameters.size, EVERY)]
        assert all(math.isfinite(value) for _, value in numbers), case
        rows[name] = numbers
    assert len({tuple(numbers) for numbers in rows.values()}) == len(rows), "two cases are the same run"
    with open(FOLDER / "losses.csv", "w", encoding="ascii") as file:
        file.write(f"# {STEPS} steps each by PyTorch {torch.__version__}; written by record_losses.py, which explains it\n")
        file.write("case," + ",".join(name for name, _ in next(iter(rows.values()))) + "\n")
        for case, numbers in rows.items():
            file.write(case + "," + ",".join(f"{value:.17g}" for _, value in numbers) + "\n")
    print(f"{len(rows)} cases")


if __name__ == "__main__":
    main()
