#!/usr/bin/env python3
"""bench/compare, deviceloop_bench serve and bench/tables, with rivals that are written here: compare_test.py DEVICELOOP
DEVICELOOP_BENCH. Needs no NumPy; with it, a peer in Python is tried too."""

import copy
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BENCH = sys.argv.pop()
COMMAND = sys.argv.pop()
ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPARE = ROOT / "bench" / "compare"
CASE = "train/16-16-16-1/n=1024/fp32"

# A rival that has its losses from the command itself, times FACTOR (None: the last is not finite), or ONCE_FACTOR in
# a process of its own, the first of which takes DELAY seconds longer: bench/README.md has the contract.
RIVAL = """#!{python}
import json, pathlib, subprocess, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def answer(factor):
    history = options["--data"] + ".{name}.csv"
    subprocess.run(["{command}", "train", "--layers", "16,16,16,1", "--data", options["--data"], "--weights",
                    options["--weights"], "--steps", options["--steps"], "--lr", options["--rate"], "--quiet",
                    "--history", history], check=True)
    losses = [float(line.split(",")[1]) * (factor or 1) for line in open(history).read().splitlines()[1:]]
    if factor is None:
        losses[-1] = None
    print(json.dumps({{"seconds": 0.5, "losses": losses}}), flush=True)
if "--once" in options:
    log = pathlib.Path("{log}")
    runs = log.read_text() if log.exists() else ""
    log.write_text(runs + options["--once"] + "\\n")
    if not runs:
        time.sleep({delay})
    if {once_factor} == 0:
        sys.exit("it cannot")
    answer({once_factor})
    sys.exit(0)
row = {{"name": "{name}", "includes": {{"precision": "true fp32", "bias": False, "loss_every_step": True, "update": True,
        "data_resident": True, "threads": 1, "device": "cpu", "note": ""}}}}
ready = {{"ready": "{name}", "version": "1.0", "rows": [row], "missing": {{"{name}/other": "not today"}}}}
if {once_factor} is not None:
    ready["once"] = True
print(json.dumps(ready), flush=True)
for line in sys.stdin:
    answer({factor})
    with open("{log}.warm", "a") as runs:
        runs.write(line)
"""

# deviceloop_bench, but that each call is written down and something is wrong.
PLANTED_BENCH = """#!{python}
import json, subprocess, sys
with open("{log}", "a") as log:
    log.write(sys.argv[1] + "\\n")
{plant}
"""
NO_LIMITS = """
if sys.argv[1] == "--limits":
    sys.exit("no limits today")
sys.exit(subprocess.run(["{bench}", *sys.argv[1:]]).returncode)
"""
WRONG_LOSSES = """
child = subprocess.Popen(["{bench}", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
for line in child.stdout:
    answer = json.loads(line) if sys.argv[1] == "serve" else {{}}
    if "losses" in answer:
        answer["losses"][-1] *= 1.001
        line = json.dumps(answer) + "\\n"
    print(line, end="", flush=True)
"""
NO_ROW = """
if sys.argv[1] == "--limits":
    sys.exit("no limits today")
print(json.dumps({{"ready": "x", "version": "1", "rows": [], "missing": {{"deviceloop": "no GPU: none"}}}}), flush=True)
sys.stdin.read()
"""
DEAD = "sys.exit('it does not start')"

# A rival that only writes down what it was started with: its arguments, and the order of the samples.
LISTENER = """#!{python}
import json, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
order = pathlib.Path(options["--order"]).read_bytes().hex() if "--order" in options else None
pathlib.Path("{log}").write_text(json.dumps([options, order]))
"""


def compare(*options):
    return subprocess.run([sys.executable, COMPARE, "--command", COMMAND, "--bench", BENCH, *map(str, options)],
                          capture_output=True, text=True)  # fmt: skip


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def load(name):
    """A script of bench/ as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "bench" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module  # dataclasses look there
    loader.exec_module(module)
    return module


def has_module(name):
    return subprocess.run([sys.executable, "-c", f"import {name}, numpy"], capture_output=True).returncode == 0


class InAFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


class Compare(InAFolder):
    def rival(self, name, factor, once_factor=None, delay=0):
        text = RIVAL.format(python=sys.executable, name=name, command=COMMAND, factor=factor, once_factor=once_factor,
                            delay=delay, log=self.folder / "once.log")  # fmt: skip
        return f"{name}={executable(self.folder / name, text)}"

    def planted_bench(self, plant):
        text = PLANTED_BENCH.format(python=sys.executable, log=self.folder / "bench.log", plant=plant.format(bench=BENCH))
        return executable(self.folder / "bench", text)

    def run_case(self, *options):
        path = self.folder / "result.json"
        path.unlink(missing_ok=True)
        process = compare("--cases", f"^{CASE}$", "--rounds", 2, "--steps", 4, "--threads", 1, "--json", path, *options)
        result = json.loads(path.read_text()) if path.exists() else None
        return process, result, {row["peer"]: row for row in result["rows"]} if result else {}

    def test_a_right_rival_has_a_ratio_and_the_case_its_floor(self):
        process, result, rows = self.run_case("--peers", "", "--peer", self.rival("twin", 1))
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        self.assertEqual(list(rows), ["deviceloop", "twin"])
        self.assertEqual(rows["deviceloop"]["ratio"], 1)
        self.assertEqual(rows["twin"]["us_per_step"], 125000)
        self.assertGreater(rows["twin"]["ratio"], 1)
        self.assertTrue(rows["twin"]["sweep"])
        # 4 n d h of the first layer and 6 n h o of the others, at the rate that was measured.
        flops = 1024 * (4 * 16 * 16 + 6 * 16 * 16 + 6 * 16)
        floor = flops / result["machine"]["limits_gflops"]["fp32"] / 1e3
        self.assertAlmostEqual(rows["twin"]["floor_us"] / floor, 1, places=3)
        self.assertIn("missing: twin/other (not today)", process.stdout)
        self.assertEqual(result["cold"], [])
        self.assertEqual(result["machine"]["ours"], "resident")

    def test_a_wrong_rival_fails_and_has_no_time(self):
        process, _, rows = self.run_case("--peers", "", "--peer", self.rival("wrong", 1.001))
        self.assertEqual(process.returncode, 1)
        self.assertIsNone(rows["wrong"]["us_per_step"])
        self.assertIn("losses differ by 1.0e-03, allowed are 1e-04", rows["wrong"]["failed"])
        self.assertIn("FAILED: losses differ", process.stdout)

    def test_a_loss_that_is_not_finite_fails(self):
        process, _, rows = self.run_case("--peers", "", "--peer", self.rival("lost", None))
        self.assertEqual(process.returncode, 1)
        self.assertIn("losses differ by inf", rows["lost"]["failed"])

    def test_ours_is_one_process_a_case_which_measures_the_limits_too(self):
        process, result, rows = self.run_case("--peers", "cupy", "--python", "cupy=/nowhere", "--bench",
                                              self.planted_bench(NO_LIMITS))  # fmt: skip
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        self.assertIn("missing: cupy (/nowhere cannot import cupy and numpy)", process.stdout)
        self.assertIn("no limits today", result["missing"]["floor"])
        self.assertNotIn("floor_us", rows["deviceloop"])
        self.assertEqual((self.folder / "bench.log").read_text().split(), ["--limits", "serve"])
        included = rows["deviceloop"]["includes"]
        self.assertEqual((included["note"], included["threads"], included["formulation"], included["precision"]),
                         ("plan cpu", 1, "primal", "true fp32"))  # fmt: skip

    def test_wrong_losses_of_ours_leave_nobody_a_time(self):
        process, _, rows = self.run_case("--peers", "", "--peer", self.rival("twin", 1), "--bench",
                                         self.planted_bench(WRONG_LOSSES))  # fmt: skip
        self.assertEqual(process.returncode, 1)
        self.assertIn("losses differ by 1.0e-03", rows["deviceloop"]["failed"])
        self.assertIsNone(rows["twin"]["us_per_step"])
        self.assertIsNone(rows["twin"]["failed"])

    def test_a_case_without_ours_fails_with_the_reason(self):
        for plant, reason in ((DEAD, "it does not start"), (NO_ROW, "no GPU: none")):
            process, _, rows = self.run_case("--peers", "", "--bench", self.planted_bench(plant))
            self.assertEqual(process.returncode, 1)
            self.assertEqual(rows["deviceloop"]["failed"], reason)

    def test_cold_rounds_are_processes_of_their_own_of_which_the_first_does_not_count(self):
        process, result, _ = self.run_case("--peers", "", "--peer", self.rival("twin", 1, 1, 4), "--peer",
                                           self.rival("resident", 1), "--cold", CASE, "--cold-rounds", 1)  # fmt: skip
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        cold = {row["peer"]: row for row in result["cold"]}
        self.assertEqual(list(cold), ["deviceloop", "twin"])
        self.assertEqual((self.folder / "once.log").read_text().split(), 2 * ["twin"])
        # The command runs inside the rival's process; 0.5 s is what that says of its loop.
        self.assertGreater(cold["twin"]["ratio"], 1)
        self.assertLess(cold["twin"]["seconds"], 2)
        self.assertEqual(cold["deviceloop"]["ratio"], 1)
        self.assertLess(cold["deviceloop"]["loss_error"], 1e-4)
        self.assertEqual(result["machine"]["cold_rounds"], 1)
        self.assertIn("from the start of a process", process.stdout)

    def test_a_cold_rival_that_is_wrong_or_dies_fails(self):
        for once_factor, reason in ((1.001, "losses differ by 1.0e-03, allowed are 1e-04"), (0, "it cannot")):
            process, result, rows = self.run_case("--peers", "", "--peer", self.rival("twin", 1, once_factor), "--cold",
                                                  CASE, "--cold-rounds", 1)  # fmt: skip
            self.assertEqual(process.returncode, 1)
            self.assertEqual(rows["twin"]["us_per_step"], 125000)
            self.assertEqual([row["failed"] for row in result["cold"]], [None, reason])
            self.assertIsNone(result["cold"][1]["seconds"])

    def stopped(self, signal_number, ready, *options):
        """Sends the signal as soon as ready() says so; the process and its result."""
        path = self.folder / "result.json"
        process = subprocess.Popen([sys.executable, COMPARE, "--command", COMMAND, "--bench", BENCH, "--cases", f"^{CASE}$",
                                    "--steps", "4", "--threads", "1", "--json", path, "--peers", "",
                                    *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)  # fmt: skip
        while process.poll() is None and not ready(path):
            time.sleep(0.02)
        process.send_signal(signal_number)
        text, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (1, ""))
        self.assertIn("stopped: what was measured in whole rounds is above and in", text)
        return text, json.loads(path.read_text())

    def test_a_signal_keeps_the_whole_rounds(self):
        log = self.folder / "once.log.warm"
        _, result = self.stopped(signal.SIGTERM, lambda _: log.exists() and log.read_text().count("run") > 3,
                                 "--rounds", 100000, "--peer", self.rival("twin", 1))  # fmt: skip
        rows = {row["peer"]: row for row in result["rows"]}
        self.assertEqual(rows["twin"]["us_per_step"], 125000)
        self.assertGreater(rows["twin"]["ratio"], 1)
        self.assertEqual(result["cold"], [])

    def test_a_signal_in_the_cold_rounds_keeps_the_warm_ones(self):
        text, result = self.stopped(signal.SIGINT, lambda path: path.exists() and (self.folder / "once.log").exists(),
                                    "--rounds", 1, "--cold", CASE, "--cold-rounds", 100000, "--peer",
                                    self.rival("twin", 1, 1, 1000))  # fmt: skip
        self.assertEqual([row["us_per_step"] is None for row in result["rows"]], [False, False])
        self.assertEqual([row["failed"] for row in result["cold"]], 2 * ["stopped before a round was done"])
        self.assertIn("FAILED: stopped before a round was done", text)

    def test_the_sweeps_are_listed_behind_the_default_cases(self):
        default, others = compare("--list").stdout.strip().split("\n\n")
        self.assertIn("train/1000-100-1/n=128/fp32", default)
        self.assertIn("train/512-512-512-1/n=1024/fp32", others)
        on_gpu = compare("--list", "--device", "cuda").stdout.split("\n\n")[0]
        for name in ("784-128-10/n=64", "64-64-64-1/n=1048576", "4096-4096-4096-4096-4096/n=8192"):
            self.assertIn(f"train/{name}/fp32", on_gpu)

    def test_jobs_are_named_and_counted_by_what_a_step_takes(self):
        module = load("compare")
        for device in ("cpu", "cuda"):
            default = {one.name: one for one in module.all_cases(device)[0]}
            digits = default["train/784-128-10/n=60000/fp32/bias/cross-entropy/adam/batch=512"]
            self.assertEqual(digits.flops, 512 * (4 * 784 * 128 + 6 * 128 * 10))
            self.assertEqual((digits.bound, default["train/784-128-10/n=64/fp32/bias"].bound), (1e-2, 1e-4))
            for batch in (256, 1024, 4096):
                self.assertIn(f"train/64-64-64-1/n=65536/fp32/bias/mse/adam/batch={batch}", default)

    def test_rivals_of_a_job_are_told_all_of_it_and_the_order_of_the_samples(self):
        log = self.folder / "said.json"
        listener = executable(self.folder / "listener", LISTENER.format(python=sys.executable, log=log))
        case = "train/64-64-64-1/n=65536/fp64/bias/mse/adam/batch=256"
        result = self.folder / "result.json"
        peers = "numpy" if has_module("numpy") else ""
        process = compare("--cases", f"^{case}$", "--rounds", 1, "--steps", 257, "--threads", 1, "--json", result, "--peers",
                          peers, "--python", f"numpy={sys.executable}", "--peer", f"listener={listener}")  # fmt: skip
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        rows, missing = (json.loads(result.read_text())[key] for key in ("rows", "missing"))
        self.assertEqual([row["peer"] for row in rows], ["deviceloop"])
        self.assertLess(rows[0]["loss_error"], 1e-10)
        included = {key: rows[0]["includes"][key] for key in ("loss", "optimizer", "batch", "bias")}
        self.assertEqual(included, {"loss": "mse", "optimizer": "adam", "batch": 256, "bias": True})
        options, order = json.loads(log.read_text())
        for name, value in (("--loss", "mse"), ("--optimizer", "adam"), ("--batch-size", "256"), ("--rate", "0.001")):
            self.assertEqual(options[name], value)
        own = self.folder / "own.npy"
        subprocess.run([COMMAND, "data", "--samples", "65536", "--epochs", "2", "--order", own, "--quiet"], check=True)
        self.assertEqual(order, own.read_bytes().hex())
        if peers:
            self.assertIn("no case of minibatches and Adam", missing["numpy"])

    def test_a_peer_in_python_answers_both_ways(self):
        if not has_module("numpy"):
            self.skipTest("no NumPy here")
        process, result, rows = self.run_case("--peers", "numpy", "--python", f"numpy={sys.executable}", "--cold", CASE,
                                              "--cold-rounds", 1)  # fmt: skip
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        self.assertEqual(list(rows), ["deviceloop", "numpy"])
        self.assertEqual([row["peer"] for row in result["cold"]], ["deviceloop", "numpy"])


# Gradient descent on the mean of squared errors, from the files and by the words of the program around tiny-cuda-nn.
TINY_CUDA_NN = """#!PYTHON
import json, sys
import numpy as np

folder, samples, inputs, outputs, units, hidden, steps = sys.argv[1], *map(int, sys.argv[2:8])
x = np.fromfile(folder + "/x", np.float32).astype(float).reshape(samples, inputs)
y = np.fromfile(folder + "/y", np.float32).astype(float).reshape(samples, outputs)
widths = [inputs] + hidden * [units] + [16]
for line in sys.stdin:
    if line.split() == ["jit", "graph"]:
        print(json.dumps({"error": "no graph of jit"}), flush=True)
        continue
    parameters = np.fromfile(folder + "/parameters", np.float32).astype(float)
    sizes = [a * b for a, b in zip(widths, widths[1:])]
    assert parameters.size == sum(sizes)
    weights = [part.reshape(b, a) for part, a, b in zip(np.split(parameters, np.cumsum(sizes)[:-1]), widths, widths[1:])]
    assert not weights[-1][outputs:].any()
    losses = []
    for _ in range(steps):
        h = [x]
        for weight in weights:
            h.append(np.maximum(h[-1] @ weight.T, 0) if weight is not weights[-1] else h[-1] @ weight.T)
        difference = h[-1][:, :outputs] - y
        losses.append((difference**2).mean())
        gradient = np.zeros_like(h[-1])
        gradient[:, :outputs] = 2 * difference / difference.size
        for layer in reversed(range(len(weights))):
            change = gradient.T @ h[layer]
            gradient = (gradient @ weights[layer]) * (h[layer] > 0)
            weights[layer] = weights[layer] - float(sys.argv[8]) * change
    print(json.dumps({"seconds": 0.25, "losses": losses}), flush=True)
"""


class Serve(InAFolder):
    """deviceloop_bench serve, against the contract."""

    def files(self, layers="40,8,1", samples=12, precision="fp32", *network):
        data, weights = self.folder / f"{layers}.npz", self.folder / f"{layers}.safetensors"
        subprocess.run([COMMAND, "data", "--layers", layers, "--samples", str(samples), "--precision", precision, "--data",
                        data, "--weights", weights, "--quiet", *network], check=True)  # fmt: skip
        return {"--data": data, "--weights": weights, "--precision": precision}

    def serve(self, lines, options):
        given = {"--steps": 40, "--rate": 1e-5, "--device": "cpu", "--threads": 1, **options}
        words = [str(word) for pair in given.items() for word in pair]
        process = subprocess.run([BENCH, "serve", *words], input=lines, capture_output=True, text=True)
        return process, [json.loads(line) for line in process.stdout.splitlines()]

    def history(self, files, layers, *options):
        text = subprocess.run([COMMAND, "train", "--layers", layers, "--data", files["--data"], "--weights",
                               files["--weights"], "--precision", files["--precision"], "--steps", "40", "--lr",
                               str(files.get("--rate", 1e-5)), "--device", "cpu", "--threads", "1", "--history", "-", "--quiet", *options], check=True,
                              capture_output=True, text=True).stdout  # fmt: skip
        return [float(line.split(",")[1]) for line in text.splitlines()[1:]]

    def test_every_row_gives_the_losses_of_the_command_each_time(self):
        for precision in ("fp32", "fp64"):
            files = self.files(precision=precision)
            process, answers = self.serve("run deviceloop\nrun deviceloop/gram\nrun deviceloop\nrun deviceloop/gram\n",
                                          options=files)  # fmt: skip
            self.assertEqual((process.returncode, process.stderr), (0, ""))
            ready, *runs = answers
            self.assertEqual([row["name"] for row in ready["rows"]], ["deviceloop", "deviceloop/gram"])
            self.assertEqual((ready["ready"], ready["missing"]), ("deviceloop", {}))
            self.assertEqual(ready["rows"][0]["includes"],
                             {"precision": {"fp32": "true fp32"}.get(precision, precision), "bias": False,
                              "loss": "squared", "optimizer": "gd", "batch": None, "loss_every_step": True,
                              "update": True, "data_resident": True, "device": "cpu", "threads": 1,
                              "formulation": "primal", "note": "plan cpu"})  # fmt: skip
            self.assertIn("less work", ready["rows"][1]["includes"]["note"])
            expected = [self.history(files, "40,8,1"), self.history(files, "40,8,1", "--formulation", "gram")]
            self.assertNotEqual(expected[0], expected[1])
            for number, run in enumerate(runs):
                self.assertGreater(run["seconds"], 0)
                self.assertEqual(struct.pack("<40d", *run["losses"]), struct.pack("<40d", *expected[number % 2]))

    def job_files(self, loss, precision="fp64"):
        """Of 50 rows; their layers, and the options of a job with batches that end in another epoch than they begin in."""
        if loss == "mse":
            layers, files = "40,8,2", self.files("40,8,2", 50, precision, "--bias", "--init", "he")
        else:
            layers, files = "784,8,10", self.files("784,8,10", 50, precision, "--bias", "--init", "he")
            subprocess.run([COMMAND, "data", "--task", "digits", "--samples", "50", "--precision", precision, "--data",
                            files["--data"], "--quiet"], check=True)  # fmt: skip
        return layers, {**files, "--loss": loss, "--optimizer": "adam", "--batch-size": 12, "--rate": 1e-3}

    def test_a_job_gives_the_losses_of_the_command(self):
        for loss, told in (("mse", []), ("cross-entropy", ["--loss", "cross-entropy"])):
            layers, options = self.job_files(loss, "fp32")
            process, answers = self.serve("run deviceloop\nrun deviceloop\n", options=options)
            self.assertEqual((process.returncode, process.stderr), (0, ""))
            self.assertEqual([row["name"] for row in answers[0]["rows"]], ["deviceloop"])  # gram is for full batches
            expected = self.history(options, layers, "--bias", *told, "--reduction", "mean", "--optimizer", "adam",
                                    "--batch-size", "12")
            for run in answers[1:]:
                self.assertEqual(struct.pack("<40d", *run["losses"]), struct.pack("<40d", *expected))

    def test_rivals_of_a_job_follow_ours_in_double_precision(self):
        rivals = [name for name in ("torch", "jax") if has_module(name)]
        if not rivals:
            self.skipTest(f"{sys.executable} has neither PyTorch nor JAX")
        for loss in ("mse", "cross-entropy"):
            _, options = self.job_files(loss)
            _, (_, ours) = self.serve("run deviceloop\n", options=options)
            order = self.folder / "order.npy"
            subprocess.run([COMMAND, "data", "--samples", "50", "--epochs", "10", "--order", order, "--quiet"], check=True)
            given = {"--steps": 40, "--device": "cpu", "--threads": 1, **options, "--order": order}
            words = [str(word) for pair in given.items() for word in pair]
            for name in rivals:
                rows = {"torch": ["torch/eager", "torch/compile"], "jax": ["jax/jit", "jax/scan"]}[name]
                process = subprocess.run([sys.executable, ROOT / "bench" / "peers" / f"{name}_peer.py", *words],
                                         input="".join(f"run {row}\n" for row in 2 * rows), capture_output=True,
                                         text=True)  # fmt: skip
                ready, *runs = [json.loads(line) for line in process.stdout.splitlines()]
                self.assertEqual([row["name"] for row in ready["rows"]], rows, process.stderr)
                self.assertEqual(len(runs), 4)
                for run in runs:
                    self.assertEqual(len(run["losses"]), 40)
                    for own, other in zip(ours["losses"], run["losses"]):
                        self.assertLess(abs(own - other), 1e-10 * own)

    def tiny_cuda_nn(self, lines, options, program=""):
        given = {"--steps": 40, "--rate": 1e-5, "--device": "cuda", "--threads": 1, **options, "--precision": "bf16"}
        words = [str(word) for pair in given.items() for word in pair]
        process = subprocess.run([sys.executable, ROOT / "bench" / "peers" / "tiny_cuda_nn" / "peer", *words], input=lines,
                                 capture_output=True, text=True, env={**os.environ, "DEVICELOOP_TINY_CUDA_NN": str(program)})
        self.assertEqual(process.returncode, 0, process.stderr)
        return [json.loads(line) for line in process.stdout.splitlines()]  # fmt: skip

    def test_tiny_cuda_nn_gets_the_case_as_its_program_wants_it(self):
        """By a program that trains as that around tiny-cuda-nn is told to."""
        if not has_module("numpy"):
            self.skipTest("no NumPy here")
        program = self.folder / "train"
        program.write_text(TINY_CUDA_NN.replace("PYTHON", sys.executable))
        program.chmod(0o755)
        options = self.files("32,16,16,3", 256)
        _, (_, ours) = self.serve("run deviceloop\n", options=options)
        rows = ["classic-loop", "classic-graph", "jit-loop"]
        ready, *runs = self.tiny_cuda_nn("".join(f"run tiny-cuda-nn/{row}\n" for row in rows), options, program)
        self.assertEqual([row["name"] for row in ready["rows"]], [f"tiny-cuda-nn/{row}" for row in rows])
        self.assertIn("no graph of jit", ready["missing"]["tiny-cuda-nn/jit-graph"])
        self.assertEqual(len(runs), 3)
        for run in runs:
            self.assertEqual(run["seconds"], 0.25)
            for own, other in zip(ours["losses"], run["losses"]):
                self.assertLess(abs(own - other), 1e-4 * own)

    def test_tiny_cuda_nn_says_what_it_has_not(self):
        if not has_module("numpy"):
            self.skipTest("no NumPy here")
        files = {layers: self.files(layers, 256, "fp32", *network)
                 for layers, *network in (("32,16,3",), ("30,16,3",), ("32,20,3",), ("32,16,17",), ("32,32,3", "--bias"))}  # fmt: skip
        for layers, words in (("32,16,3", "bench/README.md says how to build"), ("30,16,3", "30 inputs to a multiple of 16"),
                              ("32,20,3", "one of 16, 32, 64, 128 units"), ("32,16,17", "at most 16 outputs"),
                              ("32,32,3", "no biases")):  # fmt: skip
            (ready,) = self.tiny_cuda_nn("", files[layers])
            self.assertIn(words, ready["missing"]["tiny-cuda-nn"])
        (ready,) = self.tiny_cuda_nn("", self.files("32,16,1", 200))
        self.assertIn("multiple of 256 samples, not 200", ready["missing"]["tiny-cuda-nn"])
        (ready,) = self.tiny_cuda_nn("", {**files["32,16,3"], "--device": "cpu"})
        self.assertIn("runs on a GPU only", ready["missing"]["tiny-cuda-nn"])

    def test_gram_has_a_row_only_where_it_takes_less_arithmetic(self):
        _, answers = self.serve("", options=self.files("4,8,1"))
        self.assertEqual([row["name"] for row in answers[0]["rows"]], ["deviceloop"])

    def test_a_loss_that_is_not_finite_is_null(self):
        _, answers = self.serve("run deviceloop\n", options={**self.files(), "--rate": 1e9})
        self.assertIsNone(answers[1]["losses"][-1])

    def test_a_gpu_that_is_not_there_makes_the_rows_missing(self):
        process, answers = self.serve("", options={**self.files(), "--device": "cuda"})
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertEqual(answers[0]["rows"], [])
        for row in ("deviceloop", "deviceloop/graph", "deviceloop/persistent", "deviceloop/gram"):
            self.assertTrue(answers[0]["missing"][row])

    def test_what_is_no_row_and_what_is_no_file_end_it_with_a_message(self):
        files = self.files()
        for line, answers in (("run other", 1), ("deviceloop", 1), ("run deviceloop\nrun", 2)):
            process, said = self.serve(line + "\n", options=files)
            self.assertEqual((process.returncode, len(said)), (2, answers))
            self.assertIn("a line must be 'run ROW', ROW one of deviceloop, deviceloop/gram", process.stderr)
        other = self.files("30,8,1")
        for changes, message in (({"--data": self.folder / "none.npz"}, "none.npz"),
                                 ({"--weights": files["--data"]}, ".npz"),
                                 ({"--weights": other["--weights"]}, "30"),
                                 ({"--precision": "fp16"}, "--precision"),
                                 ({"--loss": "huber"}, "--loss"),
                                 ({"--optimizer": "sgd"}, "--optimizer"),
                                 ({"--batch-size": 0}, "--batch-size"),
                                 ({"--batch-size": 13}, "batch size is 13"),
                                 ({"--steps": 0}, "--steps")):  # fmt: skip
            process, said = self.serve("", options={**files, **changes})
            self.assertEqual((process.returncode, said), (2, []), changes)
            self.assertIn(message, process.stderr)


class Tables(InAFolder):
    """bench/tables, on results made up here."""

    MACHINE = {"date": "2027-01-02", "commit": "abcdef0", "processor": "P", "cores": 4, "gpu": "G", "device": "cuda",
               "threads": 2, "rounds": 5, "cold_rounds": 3, "ours": "resident", "openblas_coretype": ""}  # fmt: skip

    def row(self, case, peer, key, value, ratio):
        return {"case": f"train/{case}", "peer": peer, key: value, "ratio": ratio, "ratio_lowest": ratio / 2,
                "ratio_highest": ratio * 2, "version": "1.0"}  # fmt: skip

    def result(self, case, **machine):
        rows = [("deviceloop", 10, 1), ("deviceloop/gram", 2, 0.2), ("torch/graph-20", 8, 0.8), ("jax/scan", 12345, 1234.5)]
        cold = [("deviceloop", 0.25, 1), ("jax/scan", 12.5, 50)]
        return {"machine": {**self.MACHINE, **machine},
                "rows": [self.row(case, peer, "us_per_step", us, ratio) for peer, us, ratio in rows],
                "cold": [self.row(case, peer, "seconds", seconds, ratio) for peer, seconds, ratio in cold]}  # fmt: skip

    def tables(self, *results):
        paths = [self.folder / f"{number}.json" for number in range(len(results))]
        for path, result in zip(paths, results):
            path.write_text(json.dumps(result))
        return subprocess.run([sys.executable, ROOT / "bench" / "tables", "--show", *paths], capture_output=True, text=True)

    def test_both_tables_and_the_machine(self):
        self.assertEqual(
            self.tables(self.result("A")).stdout,
            "| us a step (time / ours) | deviceloop | deviceloop/gram | torch/graph-N | jax/scan |\n"
            "|---|---|---|---|---|\n"
            "| A | 10 | 2 (0.20; 0.10 to 0.40) | 8 (**0.80**; 0.40 to 1.60) | 12345 (1234.50; 617.25 to 2469.00) |\n"
            "\n"
            "| s from start to trained (time / ours) | deviceloop | jax/scan |\n"
            "|---|---|---|\n"
            "| A | 0.25 | 12.5 (50.00; 25.00 to 100.00) |\n"
            "\n"
            "2027-01-02, commit abcdef0, G; deviceloop 1.0, torch 1.0, jax 1.0; median of 5 rounds, from the start of a "
            "process of 3; N is 20 steps in a CUDA graph.\n",
        )

    def test_a_gpu_result_from_before_ours_was_resident_says_so(self):
        old = self.result("A")
        del old["machine"]["ours"], old["machine"]["cold_rounds"], old["cold"]
        text = self.tables(old).stdout
        self.assertIn("Ours was a fresh process each round", text)
        self.assertNotIn("from start to trained", text)
        self.assertIn("**0.80**", text)
        old["machine"]["gpu"] = ""
        text = self.tables(old).stdout
        self.assertNotIn("fresh process", text)
        self.assertIn("8 (0.80; ", text)

    def test_files_of_one_measurement_make_one_table(self):
        other = self.result("B")
        other["rows"][2]["peer"] = "torch/graph-100"
        text = self.tables(self.result("A"), other).stdout
        self.assertEqual(text.count("| A |") + text.count("| B |"), 4)
        self.assertIn("| torch/graph-N | jax/scan |", text)
        self.assertIn("N is 20 to 100 steps", text)

    def test_files_of_different_measurements_do_not(self):
        for key, value in (("gpu", "H"), ("commit", "1234567"), ("rounds", 3)):
            process = self.tables(self.result("A"), self.result("B", **{key: value}))
            self.assertEqual((process.returncode, process.stdout), (1, ""))
            self.assertIn(f"make no table together: {key} is", process.stderr)
        process = self.tables(self.result("A"), copy.deepcopy(self.result("A")))
        self.assertIn("both have train/A", process.stderr)

    def test_what_failed_and_what_is_missing_have_no_time(self):
        result = self.result("A")
        result["rows"][3].update(us_per_step=None, ratio=None)
        result["cold"][1].update(seconds=None, ratio=None)
        result["rows"].append(self.row("B", "deviceloop", "us_per_step", 3, 1))
        text = self.tables(result).stdout
        self.assertEqual(text.count("| failed |"), 2)
        self.assertIn("| B | 3 | - | - | - |", text)

    def test_the_comment_in_readme_may_name_several_files(self):
        module = load("tables")
        module.ROOT = self.folder
        for name in ("A", "B"):
            (self.folder / f"{name}.json").write_text(json.dumps(self.result(name)))
        made = module.generated("x\n<!-- table A.json B.json -->\nold\n<!-- end of table -->\ny\n")
        self.assertTrue(made.startswith("x\n<!-- table A.json B.json -->\n| us a step"))
        self.assertIn("\n| B |", made)
        self.assertTrue(made.endswith("steps in a CUDA graph.\n<!-- end of table -->\ny\n"))


if __name__ == "__main__":
    unittest.main()
