#!/usr/bin/env python3
"""bench/compare with rivals that are written here: compare_test.py DEVICELOOP DEVICELOOP_BENCH. Needs no NumPy."""

import argparse
import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

BENCH = sys.argv.pop()
COMMAND = sys.argv.pop()
COMPARE = pathlib.Path(__file__).resolve().parent.parent / "bench" / "compare"
CASE = "train/16-16-16-1/n=1024/fp32"

# A rival that has its losses from the command itself, times FACTOR: bench/README.md has the contract.
RIVAL = """#!{python}
import json, subprocess, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
row = {{"name": "{name}", "includes": {{"precision": "true fp32", "bias": False, "loss_every_step": True, "update": True,
        "data_resident": True, "threads": 1, "device": "cpu", "note": ""}}}}
print(json.dumps({{"ready": "{name}", "version": "1.0", "rows": [row], "missing": {{"{name}/other": "not today"}}}}), flush=True)
for line in sys.stdin:
    history = options["--data"] + ".{name}.csv"
    subprocess.run(["{command}", "train", "--layers", "16,16,16,1", "--data", options["--data"], "--weights",
                    options["--weights"], "--steps", options["--steps"], "--lr", options["--rate"], "--quiet",
                    "--history", history], check=True)
    losses = [float(line.split(",")[1]) * {factor} for line in open(history).read().splitlines()[1:]]
    print(json.dumps({{"seconds": 0.5, "losses": losses}}), flush=True)
"""


def compare(*options):
    return subprocess.run([sys.executable, COMPARE, "--command", COMMAND, "--bench", BENCH, *map(str, options)],
                          capture_output=True, text=True)  # fmt: skip


class Compare(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def rival(self, name, factor):
        path = self.folder / name
        path.write_text(RIVAL.format(python=sys.executable, name=name, command=COMMAND, factor=factor))
        path.chmod(0o755)
        return f"{name}={path}"

    def run_case(self, *options):
        path = self.folder / "result.json"
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

    def test_a_wrong_rival_fails_and_has_no_time(self):
        process, _, rows = self.run_case("--peers", "", "--peer", self.rival("wrong", 1.001))
        self.assertEqual(process.returncode, 1)
        self.assertIsNone(rows["wrong"]["us_per_step"])
        self.assertIn("losses differ by 1.0e-03, allowed are 1e-04", rows["wrong"]["failed"])
        self.assertIn("FAILED: losses differ", process.stdout)

    def test_a_missing_peer_and_a_missing_floor_are_named(self):
        process, result, _ = self.run_case("--peers", "cupy", "--python", "cupy=/nowhere", "--bench", "/nowhere/bench")
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        self.assertIn("missing: cupy (/nowhere cannot import cupy and numpy)", process.stdout)
        self.assertIn("floor", result["missing"])

    def test_predictions_are_those_that_the_command_shows(self):
        loader = importlib.machinery.SourceFileLoader("compare", str(COMPARE))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
        loader.exec_module(module)
        options = argparse.Namespace(command=COMMAND, device="cpu", threads=1)
        predicted = module.Ours("primal", "auto", options, module.case("16-16-1", 32), self.folder, 1).predictions()
        self.assertEqual({name: predicted[name] for name in module.GPU_PLANS},
                         {name: "the CPU was asked for" for name in module.GPU_PLANS})  # fmt: skip
        self.assertGreater(predicted["cpu"], 0)

    def test_the_sweeps_are_listed_behind_the_default_cases(self):
        default, others = compare("--list").stdout.strip().split("\n\n")
        self.assertIn("train/1000-100-1/n=128/fp32", default)
        self.assertIn("train/512-512-512-1/n=1024/fp32", others)
        on_gpu = compare("--list", "--device", "cuda").stdout.split("\n\n")[0]
        for name in ("784-128-10/n=64", "64-64-64-1/n=1048576", "4096-4096-4096-4096-4096/n=8192"):
            self.assertIn(f"train/{name}/fp32", on_gpu)


if __name__ == "__main__":
    unittest.main()
