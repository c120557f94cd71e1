#!/usr/bin/env python3
"""The training loop as people write it in NumPy: the plain reference, and a rival in measurements.

Trains a multilayer perceptron with full-batch gradient descent on the sum of squared errors:

    Z_l = H_{l-1} W_l (+ b_l),   H_0 = X,   H_l = max(Z_l, 0) on hidden layers,   prediction = Z of the last layer
    loss = sum((prediction - Y)^2)
    W_l -= lr dW_l, b_l -= lr db_l, all gradients of a step taken before any of them changes

A gradient is blocked where Z < 0 and kept where Z is exactly 0. The loss of step i is taken before update i. Sums,
products and losses are NumPy's own, in the type of the data.

Weights are a .safetensors file with the names and shapes of PyTorch's nn.Sequential(Linear, ReLU, Linear, ...), as
`deviceloop data` and `deviceloop train --save` write it, or .npy files in the order of the layers: a 2-D array is a
weight [in, out], a 1-D array the bias of the layer before it. Whether there are biases follows from the files.

    deviceloop data --x x.npy --y y.npy --weights w.safetensors
    bench/numpy_loop.py --x x.npy --y y.npy --weights w.safetensors --steps 500 --lr 1e-6 --losses losses.csv

Needs numpy and nothing else. The BLAS behind it and its threads are NumPy's (OPENBLAS_NUM_THREADS).
"""

import argparse
import json
import struct
import time

import numpy as np

SAFETENSORS_TYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def read_safetensors(path):
    """The tensors of a file by name; F32 and F64."""
    with open(path, "rb") as file:
        content = file.read()
    (header_bytes,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + header_bytes])
    data = content[8 + header_bytes :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[begin:end], SAFETENSORS_TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """Writes named arrays of float32 or float64."""
    types = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}
    header, blobs, offset = {}, [], 0
    for name, array in tensors.items():
        dtype = array.dtype.newbyteorder("<")
        blob = np.ascontiguousarray(array, dtype).tobytes()
        header[name] = {
            "dtype": types[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def layers_of_tensors(tensors):
    """Weights [in, out] and biases [out] of nn.Sequential's tensors; biases is None where there are none."""
    numbers = sorted(int(name.split(".")[0]) for name in tensors if name.endswith(".weight"))
    weights = [tensors[f"{number}.weight"].T for number in numbers]
    if any(name.endswith(".bias") for name in tensors):
        return weights, [tensors[f"{number}.bias"] for number in numbers]
    return weights, None


def tensors_of_layers(weights, biases):
    """The reverse of layers_of_tensors."""
    tensors = {}
    for layer, weight in enumerate(weights):
        tensors[f"{2 * layer}.weight"] = weight.T
        if biases is not None:
            tensors[f"{2 * layer}.bias"] = biases[layer]
    return tensors


def read_weights(paths):
    """Weights and biases (or None) from one .safetensors file or from .npy files."""
    if len(paths) == 1 and not paths[0].endswith(".npy"):
        return layers_of_tensors(read_safetensors(paths[0]))
    arrays = [np.load(path) for path in paths]
    weights = [array for array in arrays if array.ndim == 2]
    biases = [array for array in arrays if array.ndim == 1]
    return weights, biases or None


def read_matrix(path):
    """A 2-D array; a 1-D array is one column."""
    array = np.load(path)
    return array[:, None] if array.ndim == 1 else array


def forward(x, weights, biases):
    """The inputs of each layer and the pre-activations of each layer; the last of these is the prediction."""
    inputs, pre_activations = [x], []
    for layer, weight in enumerate(weights):
        z = inputs[-1].dot(weight)
        if biases is not None:
            z = z + biases[layer]
        pre_activations.append(z)
        if layer + 1 < len(weights):
            inputs.append(np.maximum(z, 0))
    return inputs, pre_activations


def train(x, y, weights, biases, steps, lr):
    """Changes weights and biases in place; returns the losses."""
    losses = []
    for _ in range(steps):
        inputs, pre_activations = forward(x, weights, biases)
        difference = pre_activations[-1] - y
        losses.append(np.square(difference).sum())

        grad_z = 2.0 * difference
        grad_weights = [None] * len(weights)
        grad_biases = [None] * len(weights)
        for layer in reversed(range(len(weights))):
            grad_weights[layer] = inputs[layer].T.dot(grad_z)
            if biases is not None:
                grad_biases[layer] = grad_z.sum(axis=0)
            if layer > 0:
                grad_z = grad_z.dot(weights[layer].T)
                grad_z[pre_activations[layer - 1] < 0] = 0

        for layer, weight in enumerate(weights):
            weight -= lr * grad_weights[layer]
            if biases is not None:
                biases[layer] -= lr * grad_biases[layer]
    return losses


def write_losses(path, losses):
    """One line a step, with the digits that give each number back."""
    with open(path, "w", encoding="ascii") as file:
        file.write("step,loss\n")
        for step, loss in enumerate(losses):
            file.write(f"{step},{float(loss):.17g}\n")


def main():
    parser = argparse.ArgumentParser(description="The training loop in plain NumPy.")
    parser.add_argument("--x", required=True, help=".npy file, [samples, features]")
    parser.add_argument("--y", required=True, help=".npy file, [samples, outputs]")
    parser.add_argument("--weights", required=True, nargs="+", help="one .safetensors file, or .npy files")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--losses", metavar="FILE.csv", help="write the loss of every step")
    parser.add_argument("--save", metavar="FILE.safetensors", help="write the final weights")
    parser.add_argument("--time", action="store_true", help="print the microseconds a step of the loop took")
    arguments = parser.parse_args()

    x = np.ascontiguousarray(read_matrix(arguments.x), arguments.dtype)
    y = np.ascontiguousarray(read_matrix(arguments.y), arguments.dtype)
    weights, biases = read_weights(arguments.weights)
    # Own copies, which the updates change.
    weights = [np.array(weight, arguments.dtype, order="C") for weight in weights]
    if biases is not None:
        biases = [np.array(bias, arguments.dtype) for bias in biases]

    start = time.perf_counter()
    losses = train(x, y, weights, biases, arguments.steps, arguments.lr)
    seconds = time.perf_counter() - start

    if losses:
        print(f"loss {float(losses[0]):.9g} at step 0, {float(losses[-1]):.9g} at step {len(losses) - 1}")
    if arguments.time and losses:
        print(f"{seconds / len(losses) * 1e6:.1f} us per step")
    if arguments.losses:
        write_losses(arguments.losses, losses)
    if arguments.save:
        write_safetensors(arguments.save, tensors_of_layers(weights, biases))


if __name__ == "__main__":
    main()
