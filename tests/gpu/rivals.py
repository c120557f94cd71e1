#!/usr/bin/env python3
"""Times the starting case in deviceloop and in other frameworks on one GPU, in turn, on the same data:

    tests/gpu/rivals.py --command build/bin/deviceloop --ours build/bin/gpu_training [--device cuda|cpu] [--rounds N]
                        [--only NAME,...] [--json FILE]

deviceloop        its worker, tests/gpu/training.cpp
pytorch-eager     gradients by hand, an operation at a time
pytorch-graph     the same, 100 steps in one CUDA graph, replayed
jax-scan          all steps in one jitted lax.scan
cupy-loop         the plain loop on the GPU

Each has a process of its own, which trains once that does not count and then waits; a round asks one after the other
for 500 steps from the initial weights: A B C ... A B C .... A time is that of the steps alone, from when the weights
are in place until the GPU is done, by the wall clock; ours ends with all losses on the host. All are in fp32 without
TF32 and keep every loss on the device. The others read the files of `deviceloop data`, ours draws the same numbers: a
first or last loss that is not within 1e-3 of ours has no time. What is not installed is a line `missing: NAME (why)`,
and what fails or ends is recorded and left out of later rounds.

Exits with 0, and with 1 where deviceloop itself failed or another's loss was not ours. --device cpu tries the script.
"""

import argparse
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time

STEPS, RATE = 500, 1e-6
STEPS_OF_A_GRAPH = 100
START_LIMIT_S = 100
RIVALS = ("pytorch-eager", "pytorch-graph", "jax-scan", "cupy-loop")


class Missing(Exception):
    """A package, or what it needs, is not here."""


# ----------------------------------------------------------------------------------------------------------------------
# The other frameworks. Each function returns its version and a function that trains once from the initial weights and
# returns the seconds and all losses.


def read_problem(folder):
    """x, y, and the weights [in, out] of both layers, in float32."""
    import numpy as np

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))
    import numpy_loop

    weights, _ = numpy_loop.read_weights([str(folder / "weights.safetensors")])
    arrays = [np.load(folder / "x.npy"), np.load(folder / "y.npy"), *weights]
    if len(arrays) != 4 or any(array.dtype != np.float32 for array in arrays):
        raise ValueError("the files do not hold the starting case in fp32")
    return [np.ascontiguousarray(array) for array in arrays]


def import_torch(device):
    try:
        import torch
    except ImportError as error:
        raise Missing(str(error)) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise Missing("PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch


def torch_step(torch, x, x_transposed, y, w1, w2, loss):
    """One step in place; products and updates in as few operations as there are."""
    z = x @ w1
    h = torch.relu(z)
    difference = h @ w2 - y
    torch.sum(difference * difference, dim=(0, 1), out=loss)
    grad = 2 * difference
    grad_z = (grad @ w2.t()).masked_fill_(z < 0, 0)
    w2.addmm_(h.t(), grad, alpha=-RATE)
    w1.addmm_(x_transposed, grad_z, alpha=-RATE)


def pytorch(folder, device, in_graph):
    torch = import_torch(device)
    if in_graph and device != "cuda":
        raise Missing("CUDA graphs need a GPU")
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad():
        x, y, first1, first2 = (torch.from_numpy(array).to(device) for array in read_problem(folder))
        w1, w2 = first1.clone(), first2.clone()
        count = STEPS_OF_A_GRAPH if in_graph else STEPS
        losses = torch.zeros(STEPS, dtype=torch.float32, device=device)
        slots = [losses[step] for step in range(STEPS)]
        if in_graph:
            recorded = torch.zeros(count, dtype=torch.float32, device=device)
            slots = [recorded[step] for step in range(count)]

        def steps():
            for slot in slots:
                torch_step(torch, x, x.t(), y, w1, w2, slot)

        if in_graph:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                steps()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                steps()

    def train():
        with torch.no_grad():
            w1.copy_(first1)
            w2.copy_(first2)
            synchronize()
            start = time.perf_counter()
            if in_graph:
                for first in range(0, STEPS, count):
                    graph.replay()
                    losses[first : first + count].copy_(recorded)
            else:
                steps()
            synchronize()
            return time.perf_counter() - start, losses.tolist()

    return f"PyTorch {torch.__version__}", train


def jax_scan(folder, device):
    # Otherwise it takes most of the GPU's memory, which others here need too.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise Missing(str(error)) from error
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    platform = jax.devices()[0].platform
    if platform not in {"cuda": ("gpu", "cuda"), "cpu": ("cpu",)}[device]:
        raise Missing(f"JAX runs on {platform}")
    x, y, first1, first2 = (jnp.asarray(array) for array in read_problem(folder))

    @jax.jit
    def run(x, y, w1, w2):
        def step(weights, _):
            w1, w2 = weights
            z = x @ w1
            h = jnp.maximum(z, 0)
            difference = h @ w2 - y
            grad = 2 * difference
            grad_z = jnp.where(z < 0, 0, grad @ w2.T)
            return (w1 - RATE * (x.T @ grad_z), w2 - RATE * (h.T @ grad)), jnp.sum(difference * difference)

        return jax.lax.scan(step, (w1, w2), None, length=STEPS)

    def train():
        jax.block_until_ready((x, y, first1, first2))
        start = time.perf_counter()
        result = jax.block_until_ready(run(x, y, first1, first2))
        return time.perf_counter() - start, jax.device_get(result[1]).tolist()

    return f"JAX {jax.__version__}", train


def cupy_loop(folder, device):
    if device != "cuda":
        raise Missing("CuPy needs a GPU")
    os.environ["CUPY_TF32"] = "0"
    try:
        import cupy
    except ImportError as error:
        raise Missing(str(error)) from error
    x, y, first1, first2 = (cupy.asarray(array) for array in read_problem(folder))
    losses = cupy.zeros(STEPS, cupy.float32)

    def train():
        w1, w2 = first1.copy(), first2.copy()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for i in range(STEPS):
            z = x.dot(w1)
            h = cupy.maximum(z, 0)
            difference = h.dot(w2) - y
            losses[i] = cupy.square(difference).sum()
            grad = 2 * difference
            grad_z = cupy.where(z < 0, cupy.float32(0), grad.dot(w2.T))
            w2 -= RATE * h.T.dot(grad)
            w1 -= RATE * x.T.dot(grad_z)
        cupy.cuda.Device().synchronize()
        return time.perf_counter() - start, losses.tolist()

    return f"CuPy {cupy.__version__}", train


def work(name, folder, device):
    """A rival's process: one line when ready, then one for each line that it reads."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a package prints is not an answer
    makers = {"pytorch-eager": lambda: pytorch(folder, device, False),
              "pytorch-graph": lambda: pytorch(folder, device, True),
              "jax-scan": lambda: jax_scan(folder, device), "cupy-loop": lambda: cupy_loop(folder, device)}  # fmt: skip
    try:
        version, train = makers[name]()
    except (Missing, ImportError) as error:
        print(json.dumps({"missing": str(error).splitlines()[0]}), file=out)
        return
    train()
    print(json.dumps({"ready": version}), file=out)
    for _ in sys.stdin:
        seconds, losses = train()
        print(json.dumps({"us_per_step": 1e6 * seconds / STEPS, "loss_first": losses[0], "loss_last": losses[-1]}),
              file=out)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# The side that asks


class Worker:
    """A process that answers a line with a line."""

    def __init__(self, name, command):
        self.name, self.version, self.gone, self.answers = name, None, None, []
        self.log = tempfile.TemporaryFile("w+")
        self.lines = queue.Queue()
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, bufsize=1)  # fmt: skip
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def receive(self, timeout):
        """The next line's object; None, with the reason in `gone`, where there is none."""
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.gone = f"no answer within {timeout:.0f} s"
            return None
        if line is None:
            self.process.wait()
            self.log.seek(0)
            words = [each.strip() for each in self.log.read().splitlines() if each.strip()]
            self.gone = f"ended with {self.process.returncode}: " + " | ".join(words[-3:])
            return None
        try:
            answer = json.loads(line)
        except ValueError:
            self.gone = f"said {line.strip()!r}"
            return None
        if "missing" in answer:
            self.gone = "missing: " + answer["missing"]
            return None
        return answer

    def start(self, timeout):
        answer = self.receive(timeout)
        self.version = answer and answer["ready"]

    def ask(self):
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except OSError:
            pass  # receive() says why
        answer = self.receive(20)
        if answer is not None:
            self.answers.append(answer)

    def end(self):
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def summed_up(worker, ours):
    row = {"name": worker.name, "version": worker.version, "rounds": len(worker.answers)}
    if worker.gone is not None:
        row["missing" if worker.gone.startswith("missing: ") else "failed"] = worker.gone.replace("missing: ", "", 1)
    if worker.answers:
        times = [answer["us_per_step"] for answer in worker.answers]
        row["loss_first"], row["loss_last"] = worker.answers[-1]["loss_first"], worker.answers[-1]["loss_last"]
        if ours is not None and ours.answers:
            expected = ours.answers[0]
            errors = [abs(answer[key] - expected[key]) / abs(expected[key])
                      for answer in worker.answers for key in ("loss_first", "loss_last")]  # fmt: skip
            row["loss_error"] = max(errors)
            row["loss_right"] = all(error <= 1e-3 for error in errors)  # false for NaN
            pairs = [theirs["us_per_step"] / own["us_per_step"] for theirs, own in zip(worker.answers, ours.answers)]
            row["times_ours"] = round(statistics.median(pairs), 3)
        if row.get("loss_right", False):
            row["us_per_step"] = round(statistics.median(times), 3)
            row["us_per_step_minimum"] = round(min(times), 3)
    return row


def shown(row):
    if "missing" in row:
        return f"missing: {row['name']} ({row['missing']})"
    text = f"{row['name']:<14} "
    if "us_per_step" in row:
        text += (f"{row['us_per_step']:9.2f} us a step, least {row['us_per_step_minimum']:9.2f}, "
                 f"{row['times_ours']:7.2f} times ours, loss within {row['loss_error']:.1e}, {row['version']}")  # fmt: skip
    elif row["rounds"] > 0:
        text += f"WRONG: its losses are {row['loss_first']} and {row['loss_last']}"
    return text + (f"  failed: {row['failed']}" if "failed" in row else "")


def main():
    parser = argparse.ArgumentParser(description="Times the starting case against other frameworks.")
    parser.add_argument("--command", help="the program deviceloop")
    parser.add_argument("--ours", help="the program of tests/gpu/training.cpp")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(RIVALS), metavar="NAME,...", help="of " + ", ".join(RIVALS))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.folder, arguments.device)
        return 0
    names = [name for name in arguments.only.split(",") if name]
    if not arguments.command or not arguments.ours or not set(names) <= set(RIVALS) or arguments.rounds < 1:
        parser.error("give --command and --ours, --rounds above 0, and of --only " + ", ".join(RIVALS))

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = ["--x", folder / "x.npy", "--y", folder / "y.npy", "--weights", folder / "weights.safetensors"]
        subprocess.run([os.path.abspath(arguments.command), "data", *map(str, files), "--quiet"], check=True)
        ours = Worker("deviceloop", [os.path.abspath(arguments.ours), "--worker", "--device", arguments.device])
        itself = [sys.executable, __file__, "--device", arguments.device, "--folder", folder]
        workers = [ours] + [Worker(rival, [*itself, "--worker", rival]) for rival in names]
        try:
            # They start side by side.
            deadline = time.monotonic() + START_LIMIT_S
            for worker in workers:
                worker.start(max(1, deadline - time.monotonic()))
            for _ in range(arguments.rounds):
                for worker in workers:
                    if worker.gone is None:
                        worker.ask()
        finally:
            for worker in workers:
                worker.end()
    rows = [summed_up(worker, ours) for worker in workers]
    for row in rows:
        print(shown(row), flush=True)
    ok = ours.gone is None and all(row.get("loss_right", True) for row in rows)
    if arguments.json:
        result = {"ok": ok, "steps": STEPS, "rounds": arguments.rounds, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
