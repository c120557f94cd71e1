#!/usr/bin/env python3
"""What tests/gpu_check makes of its measurements, without a GPU: gpu_check_test.py DEVICELOOP_BENCH. The JSON is what that
program writes here; cases of a GPU are those of the CPU under other names."""

import copy
import importlib.machinery
import importlib.util
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
PATH = pathlib.Path(__file__).resolve().parent / "gpu_check"
loader = importlib.machinery.SourceFileLoader("gpu_check", str(PATH))
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
loader.exec_module(gpu_check)

BENCH = sys.argv.pop()


def measured():
    """A kernel and a run of training, as deviceloop_bench writes them."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "result.json"
        for options in (["--benchmark", "^kernel/relu/n=1024/fp32$"],
                        ["--benchmark", "^train/cpu/20-12-3/n=40/fp32$", "--axis", "layers=20-12-3", "--axis", "n=40"]):  # fmt: skip
            command = [BENCH, "--device", "cpu", "--timeout", "0.1", "--json", path, *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            result = json.loads(path.read_text())
            cases += result["cases"]
    return {**result, "cases": cases}


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.on_cpu = measured()

    def on_gpu(self):
        """All that has a bar, at 1000 GB/s, of a copy of 1050, and half of the time that a step may take."""
        result = copy.deepcopy(self.on_cpu)
        kernel, training = (next(case for case in result["cases"] if case["name"].startswith(kind))
                            for kind in ("kernel/", "train/"))  # fmt: skip
        made = []
        for name in gpu_check.KERNEL_BARS:
            made.append({**kernel, "name": name, "device": "cuda", "gb_per_s": 1000, "median_us": 10,
                         "limit": {"us": 9.6, "by": "copy in memory"}})  # fmt: skip
        for name, bar in gpu_check.STEP_BARS_US.items():
            made.append({**training, "name": name, "device": "cuda", "median_us": bar / 2})
        limit = {"device": "cuda", "what": "copy", "precision": None, "threads": None, "value": 1050, "unit": "GB/s"}
        return {**result, "cases": made, "limits": [*result["limits"], limit]}

    def test_the_cpu_has_no_bars_and_every_step_its_prediction(self):
        found, wrong = gpu_check.judge_bench(self.on_cpu, False)
        self.assertEqual(wrong, [])
        (row,) = found["steps"].values()
        self.assertGreater(row["us_per_step"], 0)
        self.assertGreater(row["predicted_us_per_step"], 0)
        self.assertIn("20-12-3", gpu_check.bench_line(found))

    def test_bars_that_are_reached(self):
        found, wrong = gpu_check.judge_bench(self.on_gpu(), True)
        self.assertEqual(wrong, [])
        self.assertEqual(found["copy_gb_per_s"], 1050)
        self.assertAlmostEqual(found["bandwidth"][gpu_check.KERNEL_BARS[0]]["percent_of_copy"], 100 * 1000 / 1050)
        self.assertIn("copy 1050 GB/s; relu/n=268435456/fp32 95.2 %", gpu_check.bench_line(found))

    def test_the_copy_is_the_fastest_of_the_run(self):
        result = self.on_gpu()
        result["cases"][0]["limit"]["us"] = 9.0
        found, wrong = gpu_check.judge_bench(result, True)
        self.assertAlmostEqual(found["copy_gb_per_s"], 10000 / 9)
        self.assertEqual(len(wrong), len(gpu_check.KERNEL_BARS))
        self.assertIn("90.0 % of a copy, below the bar of 92 %", wrong[0])

    def test_a_slow_step_a_wrong_case_and_one_that_is_not_there(self):
        result = self.on_gpu()
        slow, wrong_one = result["cases"][-1], result["cases"][0]
        slow["median_us"] = 2
        wrong_one.update(ok=False, error="element 3 is 7", median_us=None, gb_per_s=None, limit=None)
        absent = result["cases"].pop(1)["name"]
        result["not_run"] = [{"name": absent, "reason": "it takes more memory than the GPU has free"}]
        _, wrong = gpu_check.judge_bench(result, True)
        self.assertEqual(
            wrong,
            [
                f"{wrong_one['name']}: element 3 is 7",
                f"{wrong_one['name']}: not measured: it was wrong",
                f"{absent}: not measured: it takes more memory than the GPU has free",
                f"{slow['name']}: 2.00 us a step, above the bar of 1.3 us",
            ],
        )


class Compare(unittest.TestCase):
    def test_failed_rows_are_named_and_missing_peers_shown(self):
        rows = [{"case": "a", "peer": "deviceloop", "us_per_step": 2.0, "ratio": 1.0, "failed": None},
                {"case": "a", "peer": "torch/manual", "us_per_step": 5.0, "ratio": 2.5, "failed": None},
                {"case": "b", "peer": "jax/scan", "us_per_step": None, "ratio": None, "failed": "losses differ"}]  # fmt: skip
        shown, wrong = gpu_check.judge_compare({"rows": rows, "missing": {"cupy": "no Python here has it"}})
        self.assertEqual(shown, ["deviceloop 2.00 us (1.00)", "torch/manual 5.00 us (2.50)",
                                 "missing: cupy (no Python here has it)"])  # fmt: skip
        self.assertEqual(wrong, ["b, jax/scan: losses differ"])


class Reruns(unittest.TestCase):
    def test_a_differing_bit_and_a_wrong_weight(self):
        losses = [100.0 / (step + 1) for step in range(gpu_check.RERUN_STEPS)]
        with tempfile.TemporaryDirectory() as folder:

            def saved(name, *values):
                data = struct.pack(f"<{len(values)}f", *values)
                header = json.dumps({"0.weight": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]}})
                path = pathlib.Path(folder) / name
                path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
                return path

            right, off = saved("right", 1.0, 2.0), saved("off", 1.0, 2.001)
            same = gpu_check.judge_reruns([(losses, right)] * 3, (losses, right), (losses, right), "fp32", True)
            self.assertEqual((same["wrong"], same["differing_bits"], same["processes"]), ([], 0, 3))
            reruns = [(losses, off), (losses[:-1] + [losses[-1] * (1 + 2**-52)], off)]
            row = gpu_check.judge_reruns(reruns, (losses, right), (losses, right), "fp32", True)
            self.assertGreater(row["differing_bits"], 0)
            self.assertEqual(len(row["wrong"]), 2, row["wrong"])
            self.assertIn("0.weight is off by 0.00045", row["wrong"][1])


class Sanitizer(unittest.TestCase):
    def test_reports_are_counted(self):
        self.assertEqual(gpu_check.reports_in(0, "========= ERROR SUMMARY: 0 errors"), 0)
        self.assertEqual(gpu_check.reports_in(99, "========= RACECHECK SUMMARY: 3 hazards (2 errors, 1 warning)"), 2)
        self.assertEqual(gpu_check.reports_in(gpu_check.REPORTED, ""), 1)
        self.assertIsNone(gpu_check.reports_in(None, "out of time"))


if __name__ == "__main__":
    unittest.main()
