#!/usr/bin/env python3
"""Times the starting case in deviceloop and in the plain NumPy loop, in turn, from the same files:

    bench/against_numpy.py --command build/bin/deviceloop --json bench/results/FILE.json

Both run in processes of their own with the same precision and threads: A B A B ..., so that a machine that slows down
slows both. Each figure is the time of the loop alone, data at hand. The losses of every pair are compared first: a
wrong result has no time. Printed and written: microseconds a step (median) and the ratio NumPy / deviceloop pair by
pair (median, lowest, highest). OPENBLAS_CORETYPE, where set, holds for both.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import numpy as np

LOOP = pathlib.Path(__file__).resolve().parent / "numpy_loop.py"


def run(command, **environment):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment})
    if result.returncode != 0:
        sys.exit(f"{command} ended with {result.returncode}: {result.stderr}")
    return result.stdout


def read_losses(path):
    return np.loadtxt(path, delimiter=",", skiprows=1)[:, 1]


def measure(command, folder, precision, threads, pairs):
    dtype = {"fp32": "float32", "fp64": "float64"}[precision]
    x, y, weights, history = (folder / name for name in ("x.npy", "y.npy", "weights.safetensors", "history.csv"))
    run([command, "data", "--precision", precision, "--x", x, "--y", y, "--weights", weights, "--quiet"])
    files = ["--x", x, "--y", y, "--weights", weights, "--steps", 500, "--lr", 1e-6]
    ours, theirs = [], []
    for _ in range(pairs):
        report = run([command, "train", *files, "--precision", precision, "--threads", threads]
                     + ["--history", history, "--quiet", "--json", "-"])  # fmt: skip
        ours.append(json.loads(report)["us_per_step"])
        losses = read_losses(history)
        printed = run([sys.executable, LOOP, *files, "--dtype", dtype, "--losses", history, "--time"],
                      OPENBLAS_NUM_THREADS=str(threads))  # fmt: skip
        theirs.append(float(re.search(r"([0-9.]+) us per step", printed).group(1)))
        expected = read_losses(history)
        error = float(np.max(np.abs(losses - expected) / np.maximum(expected, 1e-3 * expected[0])))
        if not error <= (1e-4 if precision == "fp32" else 1e-10):
            sys.exit(f"{precision}: the losses differ by {error}")
    ratios = [other / own for own, other in zip(ours, theirs)]
    return {
        "case": "train/cpu/1000-100-1/n=128/" + precision,
        "threads": threads,
        "pairs": pairs,
        "deviceloop_us_per_step": round(statistics.median(ours), 1),
        "numpy_us_per_step": round(statistics.median(theirs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
        "loss_error": error,
    }


def main():
    parser = argparse.ArgumentParser(description="Times the starting case against the plain NumPy loop.")
    parser.add_argument("--command", required=True, help="the program deviceloop")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    command = os.path.abspath(arguments.command)

    info = {}
    for line in run([command, "info"]).splitlines():
        key, value = re.match(r"(\S+(?: \S+)*)\s{2,}(.*)", line).groups()
        info[key] = value
    processor = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "fp64"):
            for threads in (1, 2):
                row = measure(command, pathlib.Path(folder), precision, threads, arguments.pairs)
                rows.append(row)
                print("{case} threads={threads}: deviceloop {deviceloop_us_per_step} us, NumPy {numpy_us_per_step} us a "
                      "step, ratio {ratio} ({ratio_lowest} to {ratio_highest})".format(**row), flush=True)  # fmt: skip
    if arguments.json:
        result = {
            "deviceloop": info["deviceloop"],
            "gemm": info["GEMM"],
            "simd": info["SIMD"],
            "build": info["build"],
            "processor": processor.group(1) if processor else "unknown",
            "cores": len(os.sched_getaffinity(0)),
            "numpy": np.__version__,
            "rows": rows,
        }
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
