#!/usr/bin/env python3
"""Records the numbers that the tests compare with. Run it after a change of what is recorded, and commit its output:

    ./quickstart && tests/reference/record.py --command build/bin/deviceloop

Needs NumPy, which neither the build nor the tests do. Everything is computed by the plain NumPy loop
(bench/numpy_loop.py) in float64, which shares nothing with the library. What it writes, all in this folder:

normal_known_answers.txt
    Random numbers by random_numbers.py, one a line: seed, tensor, index, value in decimal and in hexadecimal, and
    whether it is `exact`, to be met to the last bit, or `log`, to be met to 1e-15 relative, because it takes a
    logarithm, which Python's library and ours may round differently.

starting_case_fp64.csv, starting_case_fp32.csv
    The losses of the starting case (128 samples, 1000-100-1, no biases, 500 steps, rate 1e-6) on the data of
    `deviceloop data --seed 0` in double, and on the same data rounded to float32. The data are not committed: the tests
    draw them again. With --command they are the program's own, after a check against random_numbers.py; without it they
    are those of random_numbers.py. The two are the same to 1e-15, which moves no loss by 1e-10.

starting_case_fp64_weights.csv, starting_case_fp32_weights.csv
    The final weights of both, pressed into a few numbers instead of 400 KB: the Frobenius norm, and the sums
    <W, S_j> = sum over i of S_j[i] W[i] with 64 arrays S_j of pseudo-random signs. For weights V of another run,
    sqrt(mean over j of (<V, S_j> - <W, S_j>)^2) / norm estimates the relative Frobenius error of V: each square has
    the mean |V - W|^2, so the estimate has a spread of about 9 % and no error can hide from it, wherever it sits. The
    signs: state = state * 6364136223846793005 + 1442695040888963407 modulo 2^64, from state 1 for each weight, S_0 in
    row-major order of [in, out], then S_1, ...; +1 where the top bit is 0, else -1.

small_x.npy, small_y.npy, small_weights.safetensors, small_losses.csv, small_final_weights.safetensors
    A network whose hidden units live: 37 samples, 23-11-5-2 with biases, he-like weights, 300 steps at rate 5e-4. Every
    input is a float32 number kept as float64, so that runs in either precision start from the same numbers.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import random_numbers

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent.parent / "bench"))
import numpy_loop  # noqa: E402, found through the line above

SAMPLES, WIDTHS, STEPS, RATE = 128, (1000, 100, 1), 500, 1e-6
PROJECTIONS = 64

SMALL_SAMPLES, SMALL_WIDTHS, SMALL_STEPS, SMALL_RATE, SMALL_SEED = 37, (23, 11, 5, 2), 300, 5e-4, 20240229


def record_known_answers():
    top = 2**64 - 1
    cases = [(seed, tensor, range(8)) for seed in (0, 1, 42, 2**32, top) for tensor in (0, 1, 2, 3, 4)]
    cases += [(seed, 2, range(2**33 - 2, 2**33 + 4)) for seed in (0, 7, top)]
    cases += [(seed, 0, range(2**40 + 12345, 2**40 + 12349)) for seed in (0, top)]
    cases += [(0, 2**32 - 1, range(4))]
    # The first numbers of seed 0 beyond 3.5 and -3.5, for the far ends of the distribution.
    many = random_numbers.normals(0, 0, np.arange(200_000, dtype=np.uint64))
    cases += [(0, 0, np.flatnonzero(np.abs(many) > 3.5)[:12].tolist())]
    with open(FOLDER / "normal_known_answers.txt", "w", encoding="ascii") as file:
        file.write("# seed tensor index value hexadecimal exact|log; written by record.py, which explains it\n")
        for seed, tensor, indices in cases:
            indices = np.array(list(indices), np.uint64)
            uniforms = random_numbers.uniforms(seed, tensor, indices)
            central = random_numbers.is_central(uniforms)
            for index, value, exact in zip(indices, random_numbers.inverse_normal(uniforms), central):
                kind = "exact" if exact else "log"
                file.write(f"{seed} {tensor} {index} {value:.17g} {float(value).hex()} {kind}\n")


def starting_data():
    """x, y and the weights of the starting case in float64, by random_numbers.py."""
    x = random_numbers.normal_matrix(0, random_numbers.TENSOR_X, SAMPLES, WIDTHS[0])
    y = random_numbers.normal_matrix(0, random_numbers.TENSOR_Y, SAMPLES, WIDTHS[-1])
    weights = [
        random_numbers.normal_matrix(0, random_numbers.tensor_of_weight(layer), WIDTHS[layer], WIDTHS[layer + 1])
        for layer in range(len(WIDTHS) - 1)
    ]
    return x, y, weights


def data_of_command(command, precision):
    """The same by the program."""
    with tempfile.TemporaryDirectory() as folder:
        x, y, weights = (str(pathlib.Path(folder) / name) for name in ("x.npy", "y.npy", "weights.safetensors"))
        widths = ",".join(map(str, WIDTHS))
        subprocess.run(
            [command, "data", "--samples", str(SAMPLES), "--layers", widths, "--seed", "0", "--precision", precision]
            + ["--x", x, "--y", y, "--weights", weights],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        matrices, biases = numpy_loop.read_weights([weights])
        assert biases is None
        return np.load(x), np.load(y), [np.ascontiguousarray(matrix) for matrix in matrices]


def check_same(data, expected, tolerance):
    for one, other in zip([data[0], data[1], *data[2]], [expected[0], expected[1], *expected[2]]):
        assert one.shape == other.shape
        error = np.max(np.abs(one - other) / np.abs(other))
        assert error <= tolerance, f"the program's data differ from the definition by {error}"


def projections(weight):
    """<weight, S_j> for all j; see the top."""
    factor, addend, mask = 6364136223846793005, 1442695040888963407, 2**64 - 1
    values = weight.ravel().tolist()
    state, sums = 1, []
    for _ in range(PROJECTIONS):
        terms = []
        for value in values:
            state = (state * factor + addend) & mask
            terms.append(-value if state >> 63 else value)
        sums.append(float(np.sum(terms)))
    return sums


def record_starting_case(data, precision):
    x, y, weights = (data[0].astype(np.float64), data[1].astype(np.float64), [w.astype(np.float64) for w in data[2]])
    losses = numpy_loop.train(x, y, weights, None, STEPS, RATE)
    numpy_loop.write_losses(FOLDER / f"starting_case_{precision}.csv", losses)
    columns = [projections(weight) for weight in weights]
    with open(FOLDER / f"starting_case_{precision}_weights.csv", "w", encoding="ascii") as file:
        file.write("projection,w1,w2\n")
        file.write("norm," + ",".join(f"{np.linalg.norm(weight):.17g}" for weight in weights) + "\n")
        for number, row in enumerate(zip(*columns)):
            file.write(f"{number}," + ",".join(f"{value:.17g}" for value in row) + "\n")
    check_estimate(weights[0], columns[0])
    return losses


def check_estimate(weight, reference):
    """Raises where the projections would not show an error: one spread evenly, one in a column, one in an element."""
    generator = np.random.default_rng(1)
    size = 1e-5 * np.linalg.norm(weight)
    spread = generator.standard_normal(weight.shape)
    column = np.zeros_like(weight)
    column[:, 3] = generator.standard_normal(weight.shape[0])
    element = np.zeros_like(weight)
    element[5, 7] = 1
    for error in (spread, column, element):
        changed = weight + error * (size / np.linalg.norm(error))
        estimate = np.sqrt(np.mean(np.square(np.subtract(projections(changed), reference)))) / size
        assert 0.7 < estimate < 1.3, estimate


def record_small_network():
    generator = np.random.default_rng(SMALL_SEED)

    def draw(*shape, deviation=1.0):
        return (deviation * generator.standard_normal(shape)).astype(np.float32).astype(np.float64)

    x = draw(SMALL_SAMPLES, SMALL_WIDTHS[0])
    y = draw(SMALL_SAMPLES, SMALL_WIDTHS[-1])
    weights = [draw(fan_in, out, deviation=(2 / fan_in) ** 0.5) for fan_in, out in zip(SMALL_WIDTHS, SMALL_WIDTHS[1:])]
    biases = [draw(out, deviation=0.1) for out in SMALL_WIDTHS[1:]]
    np.save(FOLDER / "small_x.npy", x)
    np.save(FOLDER / "small_y.npy", y)
    numpy_loop.write_safetensors(FOLDER / "small_weights.safetensors", numpy_loop.tensors_of_layers(weights, biases))

    losses = numpy_loop.train(x, y, weights, biases, SMALL_STEPS, SMALL_RATE)
    numpy_loop.write_losses(FOLDER / "small_losses.csv", losses)
    numpy_loop.write_safetensors(
        FOLDER / "small_final_weights.safetensors", numpy_loop.tensors_of_layers(weights, biases)
    )
    assert all(later < earlier for earlier, later in zip(losses, losses[1:])), "the loss must fall at every step"
    _, pre_activations = numpy_loop.forward(x, weights, biases)
    active = [float(np.mean(z >= 0)) for z in pre_activations[:-1]]
    assert all(0.2 <= share <= 0.8 for share in active), active
    return losses, active


def main():
    parser = argparse.ArgumentParser(description="Records the numbers that the tests compare with.")
    parser.add_argument("--command", help="the program deviceloop, whose data are checked and then taken")
    arguments = parser.parse_args()

    random_numbers.check()
    record_known_answers()
    doubles = starting_data()
    floats = (doubles[0].astype(np.float32), doubles[1].astype(np.float32), [w.astype(np.float32) for w in doubles[2]])
    for precision, data, tolerance in (("fp64", doubles, 1e-15), ("fp32", floats, 2.0**-23)):
        if arguments.command:
            drawn = data_of_command(arguments.command, precision)
            check_same(drawn, data, tolerance)
            data = drawn
        losses = record_starting_case(data, precision)
        print(f"starting case, {precision} data: loss {losses[0]:.9g} at step 0, {losses[-1]:.9g} at the last")
    losses, active = record_small_network()
    shares = ", ".join(f"{share:.0%}" for share in active)
    print(f"small network: loss {losses[0]:.9g} at step 0, {losses[-1]:.9g} at the last; active at the end: {shares}")


if __name__ == "__main__":
    main()
