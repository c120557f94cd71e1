#!/usr/bin/env python3
"""tests/gpu_check without a GPU: gpu_check_test.py DEVICELOOP_BENCH. What it makes of measurements, on JSON that this
program writes here, where cases of a GPU are those of the CPU under other names; and its stages, on a build folder and
a GPU that are made up, whose programs are short scripts."""

import concurrent.futures
import contextlib
import copy
import functools
import importlib.machinery
import importlib.util
import io
import json
import math
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

sys.dont_write_bytecode = True
PATH = pathlib.Path(__file__).resolve().parent / "gpu_check"
loader = importlib.machinery.SourceFileLoader("gpu_check", str(PATH))
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
loader.exec_module(gpu_check)

import gpu_check_pack  # noqa: E402 (found beside gpu_check, as by it)
import gpu_check_sanitizer  # noqa: E402

BENCH = sys.argv.pop()
H100 = {"name": "made up", "compute_capability": "9.0", "memory_mib": "81559", "driver": "1.2", "cuda": "13.0",
        "clocks": {}, "state": {}, "pci": "0"}  # fmt: skip


@functools.lru_cache()
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
        for name in gpu_check.FIRST_RUNS:
            details = {"steps": 500, "first_by_second_run": 1.02}
            made.append({**training, "name": name, "device": "cuda", "median_us": 5, "details": details})
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

    def test_a_first_run_that_pays_for_what_happens_once(self):
        result = self.on_gpu()
        slow, absent = (next(case for case in result["cases"] if case["name"] == name) for name in gpu_check.FIRST_RUNS)
        slow["details"]["first_by_second_run"] = 2.3
        result["cases"].remove(absent)
        found, wrong = gpu_check.judge_bench(result, True)
        self.assertEqual(wrong, [f"{slow['name']}: 2.30 times a step of the second run, above the bar of 1.1",
                                 f"{absent['name']}: not measured: not among the cases"])  # fmt: skip
        self.assertEqual(found["first_runs"][slow["name"]]["by_second_run"], 2.3)

    def test_the_stages_before_the_first_step_are_read_from_the_commands_output(self):
        text = "499: 71.86\nprepared in 1.25 s: devices 97.1, plan 50.0, context 140.2\n500 steps in 12.3 ms\n"
        self.assertEqual(gpu_check.stages_of(text), {"devices": 97.1, "plan": 50.0, "context": 140.2})
        self.assertEqual(gpu_check.stages_of("499: 71.86\n"), {})

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


    def test_one_case_after_the_other_as_far_as_the_time_goes(self):
        begun = []

        def one(run, name, command):
            begun.append((name, command[-1]))
            row = {"case": command[-1], "peer": "deviceloop", "us_per_step": 2.0, "ratio": 1.0, "failed": None,
                   "curve": {"steps": list(range(100)), "losses": [1.0] * 100}}  # fmt: skip
            if len(begun) == 2:
                return None, "no end", None
            return 0, "", {"machine": {}, "rows": [row], "missing": {name: "why"}}

        run = types.SimpleNamespace(arguments=types.SimpleNamespace(device="cuda"), command=lambda: "deviceloop",
                                    left=lambda: 100 if len(begun) < 3 else gpu_check.COMPARE_CASE_S - 1)  # fmt: skip
        with mock.patch.object(gpu_check, "run_json_program", one), captured():
            result, wrong = gpu_check.compare(run, ["a", "b", "c/d", "e", "f"], "name")
        self.assertEqual(begun, [("name-0", "^a$"), ("name-1", "^b$"), ("name-2", "^c/d$")])
        self.assertEqual(wrong, ["b: exit status None, without JSON; no end"])
        self.assertEqual([row["case"] for row in result["rows"]], ["^a$", "^c/d$"])
        self.assertEqual(result["rows"][0]["curve"]["steps"], list(range(0, 100, 5)))
        self.assertEqual((result["missing"], result["not_begun"]), ({"name-0": "why", "name-2": "why"}, ["e", "f"]))

    def test_cases_are_those_that_the_programs_have(self):
        for name in (*gpu_check.KERNEL_BARS, *gpu_check.STEP_BARS_US, *gpu_check.FIRST_RUNS):
            self.assertRegex(name, gpu_check.KEY_CASES)
        self.assertNotRegex("train/graph/1000-100-1/n=128/fp32/tuned", gpu_check.KEY_CASES)
        command = [sys.executable, gpu_check.ROOT / "bench/compare", "--device", "cuda", "--list"]
        listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        self.assertLessEqual({gpu_check.COMPARED_FIRST, *gpu_check.COMPARED_NEXT}, set(listed))


class Reruns(unittest.TestCase):
    def test_a_differing_bit_and_a_wrong_weight(self):
        losses = [100.0 / (step + 1) for step in range(gpu_check.RERUN_STEPS)]
        with tempfile.TemporaryDirectory() as folder:

            def saved(name, *values, tensor="0.weight"):
                data = struct.pack(f"<{len(values)}f", *values)
                header = json.dumps({tensor: {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]}})
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
            # Ten times the CPU's error is no bound where that is no number.
            bias, wrong, of_cpu = (saved(str(number), 1.0, value, tensor="0.bias")
                                   for number, value in enumerate((2.0, 3.0, math.nan)))  # fmt: skip
            row = gpu_check.judge_reruns([(losses, wrong)], (losses, of_cpu), (losses, bias), "fp32", True)
            self.assertEqual(row["wrong"], ["0.bias is off by 0.45, on the CPU by inf"])


# ---- a build, a toolkit and a GPU that are made up

# A program of GoogleTest: --help, --gtest_list_tests, and as many tests as @tests@, of its shard, each with its own fate.
GTEST = f"#!{sys.executable}\n" + """import os, sys, time
options = dict((each.split("=", 1) + [""])[:2] for each in sys.argv[1:])
if "--gtest_list_tests" in options:
    print("Suite.\\n  IsExactOnSmallIntegers\\n  @listed@")
if "--gtest_list_tests" in options or "--help" in options:
    sys.exit(0)
total, index = (int(os.environ.get("GTEST_" + name, low)) for name, low in (("TOTAL_SHARDS", 1), ("SHARD_INDEX", 0)))
fates, cases = @fates@, ""
mine = [number for number in range(@tests@) if number % total == index]
for number in mine:
    fate = fates.get(number, "passes")
    print(f"[ RUN      ] Suite.Test{number}", flush=True)
    if fate == "hangs":
        time.sleep(60)
    if fate == "crashes":
        os.abort()
    skip = '<skipped message="/a/b/tests/x.cpp:3&#x0A;%s"/>'
    inside = {"fails": '<failure message="/a/b/tests/x.cpp:3&#x0A;wrong"/>', "skips": skip % "no GPU",
              "lacks": skip % "this GPU has no room for any problem of the test: one block needs more"}
    cases += f'<testcase name="Test{number}" status="run" classname="Suite">{inside.get(fate, "")}</testcase>'
if "--gtest_output" in options:
    with open(options["--gtest_output"][4:], "w") as file:
        file.write(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
print(f"[==========] {len(mine)} tests from 1 test suite ran. (1 ms total)\\n[  PASSED  ] {len(mine)} tests.")
sys.exit(1 if "fails" in fates.values() else 0)
"""
SAYS = "#!/bin/sh\necho '%s'\n"


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def gtest(tests, fates=None, listed="Another"):
    return GTEST.replace("@tests@", str(tests)).replace("@fates@", repr(fates or {})).replace("@listed@", listed)


class MadeUp(unittest.TestCase):
    """A folder with a build of sm_90 and a toolkit, which setUp packs."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.build, self.packed, self.out = self.folder / "build", self.folder / "packed", self.folder / "out.json"
        self.here = gpu_check.commit_here() or {"commit": "0123456789", "dirty": False, "commit_from": "git"}
        tools = self.folder / "tools"
        write_script(tools / "cmake", SAYS % "cmake version 3.25.1")
        write_script(tools / "nvcc", """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
[ -n "$out" ] || { echo "Cuda compilation tools, release 13.0, V13.0.88"; exit; }
[ -f "$1" ] || { echo "no $1"; exit 1; }
printf '#!/bin/sh\\nexit 2\\n' > "$out"; chmod +x "$out"
""")  # fmt: skip
        self.environ(PATH=f"{tools}:{os.environ['PATH']}", CUDACXX="", CUDA_HOME=str(self.folder), CUDA_PATH="")
        self.listed, self.tools = [], tools
        write_script(self.build / "bin/deviceloop", SAYS % "deviceloop 0.1.0")
        write_script(self.build / "bin/deviceloop_bench", SAYS % "deviceloop_bench 0.1.0")
        self.add_program("cuda_conformance_test", 60)
        self.add_program("two_layer_test", 3)
        self.add_program("cuda_entry_test", 2, label="host")
        self.add_program("trainer_test", 2, label="host", ENVIRONMENT=["CUDA_VISIBLE_DEVICES="])
        self.set_cache("90-real")
        (self.build / "bench/commit").mkdir(parents=True)
        self.set_commit(self.here["commit"][:7])

    def environ(self, **values):
        patch = mock.patch.dict(os.environ, values)
        patch.start()
        self.addCleanup(patch.stop)

    def add_program(self, name, tests, fates=None, label="gpu", **properties):
        write_script(self.build / "bin" / name, gtest(tests, fates))
        self.listed = [test for test in self.listed if test["command"][0] != f"/elsewhere/bin/{name}"]
        properties = [{"name": key, "value": value} for key, value in {"LABELS": [label], **properties}.items()]
        self.listed += [{"name": f"{name}{number}", "command": [f"/elsewhere/bin/{name}", f"--gtest_filter={number}"],
                         "properties": properties} for number in range(tests)]  # fmt: skip
        write_script(self.tools / "ctest", SAYS % json.dumps({"tests": self.listed}))

    def set_cache(self, archs):
        cache = f"CMAKE_CUDA_COMPILER:FILEPATH={self.tools}/nvcc\nCMAKE_CUDA_ARCHITECTURES:STRING={archs}\n"
        (self.build / "CMakeCache.txt").write_text(cache + "CMAKE_BUILD_TYPE:STRING=Release\n")

    def set_commit(self, commit):
        (self.build / "bench/commit/commit.h").write_text(f'#define DEVICELOOP_COMMIT "{commit}"\n')

    def pack(self):
        """Packs, without the libraries of the system; returns what is printed, the reason where it stops."""
        with mock.patch.object(gpu_check_pack, "find_packages", lambda: ({}, "1.0")), captured() as text:
            try:
                gpu_check_pack.pack(self.packed, self.build)
            except SystemExit:
                pass
        return text.getvalue()

    def check(self, *options, gpu=H100):
        """Runs gpu_check with what is packed; returns its status and its results."""
        arguments = ["gpu_check", "--packages", str(self.packed), "--build", str(self.folder / "gpu"),
                     "--out", str(self.out)]  # fmt: skip
        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        with mock.patch.object(sys, "argv", [*arguments, *options]), captured() as self.printed:
            with mock.patch.object(gpu_check, "find_gpu", lambda: gpu or "none in this test"):
                try:
                    status = gpu_check.main()
                except SystemExit as stopped:
                    status = stopped.code
        return status, json.loads(self.out.read_text()) if self.out.exists() else None


@contextlib.contextmanager
def captured():
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text


class Binaries(MadeUp):
    def test_what_runs_is_packed_with_what_is_known_of_it(self):
        printed = self.pack()
        self.assertIn("MiB", printed)
        self.assertIn(f"programs of commit {self.here['commit'][:7]} for sm_90, CUDA 13.0.88", printed)
        manifest = gpu_check_pack.read_manifest(self.packed)
        self.assertEqual(manifest["programs"], ["cuda_conformance_test", "cuda_entry_test", "deviceloop",
                                                "deviceloop_bench", "planted_bugs", "probe", "two_layer_test"])  # fmt: skip
        self.assertEqual(manifest["tests"], {"cuda_conformance_test": {"label": "gpu", "tests": 60},
                                             "two_layer_test": {"label": "gpu", "tests": 3},
                                             "cuda_entry_test": {"label": "host", "tests": 2}})  # fmt: skip
        self.assertEqual((manifest["archs"], manifest["libraries"]), (["90"], []))

    def test_a_library_that_not_every_machine_has_travels_and_is_used_where_it_is_missing(self):
        carried = self.folder / "libspecial.so.1"
        carried.write_text("a library")
        found = {"libspecial.so.1": str(carried), "libc.so.6": "/lib/libc.so.6", "linux-vdso.so.1": "linux-vdso.so.1"}
        with mock.patch.object(gpu_check_pack, "libraries_of", lambda *_: found):
            self.assertIn("with libspecial.so.1", self.pack())
            manifest = gpu_check_pack.read_manifest(self.packed)
            gpu_check_pack.unpack_binaries(self.packed, manifest, self.folder / "to")
        self.assertEqual(gpu_check_pack.library_environment(self.folder / "to"), {})

        def lacking(_, environment):
            path = pathlib.Path(environment.get("LD_LIBRARY_PATH", "none").split(":")[0]) / "libspecial.so.1"
            return {"libspecial.so.1": str(path) if path.exists() else None}

        with mock.patch.object(gpu_check_pack, "libraries_of", lacking):
            gpu_check_pack.unpack_binaries(self.packed, manifest, self.folder / "to")
        environment = gpu_check_pack.library_environment(self.folder / "to")
        self.assertEqual(environment["LD_LIBRARY_PATH"].split(":")[0], str(self.folder / "to/used"))
        with mock.patch.object(gpu_check_pack, "libraries_of", lambda *_: {"libspecial.so.1": None}):
            self.assertIn("libspecial.so.1 is not found here", self.pack())

    def test_libraries_are_read_from_ldd(self):
        text = ("\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/libz.so.1 (0x2)\n\tlibopenblas.so.0 => not found\n"
                "\t/lib64/ld-linux-x86-64.so.2 (0x3)\n")  # fmt: skip
        with mock.patch.object(subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout=text.encode())):
            found = gpu_check_pack.libraries_of("any", {})
        self.assertEqual(found["libz.so.1"], "/lib/libz.so.1")
        self.assertIsNone(found["libopenblas.so.0"])
        unusual = [name for name in found if not gpu_check_pack.re.fullmatch(gpu_check_pack.USUAL_LIBRARIES, name)]
        self.assertEqual(unusual, ["libz.so.1", "libopenblas.so.0"])

    def test_a_build_that_cannot_be_packed_is_refused_with_the_reason(self):
        (self.build / "bin/two_layer_test").unlink()
        self.assertIn("bin/ lacks two_layer_test", self.pack())
        self.add_program("two_layer_test", 3)
        self.set_cache("native")
        self.assertIn("no CMAKE_CUDA_ARCHITECTURES", self.pack())
        self.set_cache("90")
        write_script(self.tools / "ctest", SAYS % json.dumps({"tests": []}))
        self.assertIn("ctest knows no test of a GPU", self.pack())
        self.add_program("two_layer_test", 3)
        with mock.patch.object(gpu_check_pack, "LIMIT", 1000):
            self.assertIn("pack a build for one architecture", self.pack())
        self.assertFalse(self.packed.exists())
        self.packed.mkdir()
        (self.packed / "mine").write_text("")
        self.assertIn("holds other files", self.pack())

    def test_packed_programs_are_used_without_a_compiler_or_cmake(self):
        self.pack()
        for tool in ("cmake", "ctest", "nvcc"):
            write_script(self.tools / tool, "#!/bin/sh\nexit 1\n")
        status, results = self.check("--only", "build,tests")
        self.assertEqual(status, 0, self.printed.getvalue())
        self.assertTrue(results["ok"])
        self.assertTrue(results["stages"]["build"]["commit_is_the_checkouts"])
        self.assertEqual(results["stages"]["tests"]["counts"], "65 passed, 0 failed, 0 skipped")
        self.assertEqual(results["cuda_runtime"], "13.0.88")

    def test_what_does_not_fit_fails_the_build_and_all_that_needs_it(self):
        self.set_cache("80-real")
        self.pack()
        status, results = self.check("--only", "build,tests,probe")
        self.assertEqual(status, 1)
        self.assertIn("are for sm_80, this GPU is sm_90", results["stages"]["build"]["reason"])
        self.assertEqual([results["stages"][name]["reason"] for name in ("tests", "probe")], ["the build failed"] * 2)
        self.set_cache("80-real;90-real")
        write_script(self.build / "bin/deviceloop", "#!/bin/sh\necho no library; exit 127\n")
        self.pack()
        _, results = self.check("--only", "build")
        self.assertIn("deviceloop: exit status 127: no library", results["stages"]["build"]["reason"])
        with open(self.packed / gpu_check_pack.ARCHIVE, "ab") as archive:
            archive.write(b"more")
        _, results = self.check("--only", "build")
        self.assertIn("not the one that was packed", results["stages"]["build"]["reason"])

    def test_with_compile_the_programs_are_built_here(self):
        self.pack()
        write_script(self.tools / "cmake", f"""#!/bin/sh
case $1 in
  --version) echo cmake version 3.25.1 ;;
  --build) cp {self.build}/bin/*_test {self.build}/bin/deviceloop* "$2/bin" ;;
  *) echo DEVICELOOP_CUDA:STRING=ON > "$4/CMakeCache.txt" ;;
esac
""")  # fmt: skip
        status, results = self.check("--only", "build,tests,probe", "--compile")
        stages = results["stages"]
        self.assertEqual((stages["build"]["status"], stages["build"]["limit_s"]), ("passed", 720), stages)
        self.assertEqual(stages["tests"]["counts"], "65 passed, 0 failed, 0 skipped")
        self.assertIn("exit status 2, without JSON", stages["probe"]["reason"])  # it was compiled, and ran
        write_script(self.tools / "nvcc", "#!/bin/sh\n[ $# = 1 ] && echo release 13.0, V13.0.88\n")
        (self.folder / "gpu/bin/probe").unlink()
        status, results = self.check("--only", "build,tests,probe", "--compile")
        self.assertEqual([row["status"] for row in results["stages"].values()], ["passed", "passed", "failed"])
        self.assertIn("compile-probe: exit status 1", results["stages"]["probe"]["reason"])

    def test_another_commit_is_said(self):
        self.set_commit("fffffff")
        self.pack()
        status, results = self.check("--only", "build")
        self.assertEqual(status, 0)
        self.assertFalse(results["stages"]["build"]["commit_is_the_checkouts"])
        self.assertIn("commit fffffff, NOT that of the checkout", self.printed.getvalue())

    def test_without_a_gpu_it_says_what_can_be_done(self):
        self.pack()
        self.assertEqual(self.check("--quick", gpu=None), (2, None))
        self.assertIn("--quick --device cpu", self.printed.getvalue())
        self.assertEqual(self.check("--only", "build,tests", gpu=None)[0], 0)


class Tests(MadeUp):
    def outcome(self, fates, gpu=H100):
        self.add_program("two_layer_test", 3, fates)
        self.pack()
        status, results = self.check("--only", "build,tests", gpu=gpu)
        return status, results["stages"]["tests"]

    def test_a_failure_names_the_test_and_the_place(self):
        status, stage = self.outcome({1: "fails"})
        self.assertEqual(status, 1)
        self.assertIn("two_layer_test: Suite.Test1 failed", stage["reason"])
        failures = stage["two_layer_test"]["failures"]
        self.assertEqual(failures, [{"name": "Suite.Test1", "output": "tests/x.cpp:3\nwrong"}])
        self.assertEqual(stage["counts"], "64 passed, 1 failed, 0 skipped")

    def test_a_skip_is_a_failure_where_there_is_a_gpu(self):
        self.assertIn("Suite.Test2 was skipped: tests/x.cpp:3\nno GPU", self.outcome({2: "skips"})[1]["reason"])
        self.assertEqual(self.outcome({2: "skips"}, gpu=None)[0], 0)
        with mock.patch.object(gpu_check, "EMPTY_TESTS", {"Suite.Test2"}):
            self.assertEqual(self.outcome({2: "skips"})[0], 0)

    def test_a_skip_for_want_of_what_another_gpu_has_is_recorded(self):
        status, stage = self.outcome({2: "lacks"})
        self.assertEqual((status, stage["counts"]), (0, "64 passed, 0 failed, 1 skipped"))
        self.assertIn("one block needs more", stage["two_layer_test"]["skips"][0])

    def test_a_crash_names_the_test_in_which_it_was(self):
        _, stage = self.outcome({1: "crashes"})
        self.assertIn("two_layer_test: exit status -6 in Suite.Test1", stage["reason"])
        self.assertIn("0 of 3 tests came to an end", stage["reason"])

    def test_a_program_that_hangs_costs_its_own_limit(self):
        with mock.patch.object(gpu_check, "TEST_LIMIT_S", 5):
            started = time.monotonic()
            _, stage = self.outcome({0: "hangs"})
        self.assertLess(time.monotonic() - started, 40)
        self.assertIn("two_layer_test: out of time in Suite.Test0", stage["reason"])
        self.assertEqual(stage["cuda_conformance_test"]["passed"], 60)

    def test_a_test_that_does_not_run_is_missed(self):
        self.pack()
        manifest = gpu_check_pack.read_manifest(self.packed)
        manifest["tests"]["cuda_conformance_test"]["tests"] = 61
        (self.packed / gpu_check_pack.MANIFEST).write_text(json.dumps(manifest))
        _, results = self.check("--only", "build,tests")
        self.assertIn("60 of 61 tests came to an end", results["stages"]["tests"]["reason"])


class Stages(MadeUp):
    def run_stages(self, *options, **functions):
        """Runs with stages of which each only records that it ran, or does what is given."""
        self.ran = []

        def fake(name):
            def function(run, details):
                self.ran.append(name)
                return functions.get(name, lambda *_: "done")(run, details)

            return function

        stages = [stage._replace(function=fake(stage.name)) for stage in gpu_check.STAGES]
        self.pack()
        with mock.patch.object(gpu_check, "STAGES", stages):
            return self.check(*options)

    def test_the_most_valuable_come_first(self):
        quick = ["build", "tests", "training", "bench", "compare"]
        rest = ["more-training", "more-bench", "more-compare", "probe", "sanitizer"]
        self.run_stages("--quick")
        self.assertEqual(self.ran, quick)
        self.run_stages()
        self.assertEqual(self.ran, quick + rest)
        self.run_stages("--only", "probe,tests")
        self.assertEqual(self.ran, ["tests", "probe"])

    def test_the_limits_of_quick_are_within_four_minutes(self):
        self.assertLessEqual(sum(stage.limit_s for stage in gpu_check.STAGES if stage.quick), 240)

    def test_the_limits_of_all_are_within_eight_minutes(self):
        self.assertLessEqual(sum(stage.limit_s for stage in gpu_check.STAGES), 480)

    def test_the_limits_are_those_of_the_documentation(self):
        text = (gpu_check.ROOT / "CONTRIBUTING.md").read_text()
        for stage in gpu_check.STAGES:
            self.assertIn(f"| `{stage.name}` | {stage.limit_s} |", text)

    def test_what_hangs_costs_the_limit_of_its_stage_alone(self):
        def hangs(run, details):
            run.expect("hangs", ["sleep", 60], 50)

        started = time.monotonic()
        status, results = self.run_stages("--quick", "--limit", "bench=1", bench=hangs)
        self.assertLess(time.monotonic() - started, 40)
        self.assertEqual(status, 1)
        self.assertIn("not done when its time was over", results["stages"]["bench"]["reason"])
        self.assertEqual(results["stages"]["bench"]["limit_s"], 1)
        self.assertEqual(results["stages"]["compare"]["status"], "passed")

    def test_the_limit_of_all_ends_what_runs(self):
        status, results = self.run_stages("--quick", "--time-limit", "8",
                                          training=lambda run, _: run.expect("hangs", ["sleep", 60], 50),
                                          bench=lambda run, _: run.expect("late", ["true"], 50))  # fmt: skip
        self.assertEqual(status, 1)
        self.assertIn("not done when its time was over", results["stages"]["training"]["reason"])
        self.assertIn("no time was left for late", results["stages"]["bench"]["reason"])

    def test_results_are_written_before_the_next_stage_begins(self):
        seen = {}

        def looks(run, details):
            seen.update(json.loads(self.out.read_text())["stages"])

        self.run_stages("--quick", training=looks)
        self.assertEqual({name: row["status"] for name, row in seen.items()},
                         {"build": "passed", "tests": "passed", "training": "failed"})  # fmt: skip
        self.assertEqual(seen["training"]["reason"], "interrupted")

    def test_an_interrupted_run_ends_what_it_started_and_has_what_it_had(self):
        def hangs(run, details):
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
                pool.submit(lambda: [run.call(name, ["sleep", 50], 50) for name in ("first", "second")]).result()

        started = time.monotonic()
        status, results = self.run_stages("--quick", training=hangs)
        self.assertLess(time.monotonic() - started, 40)
        self.assertEqual((status, results["ok"], self.ran), (1, False, ["build", "tests", "training"]))
        self.assertEqual([row["status"] for row in results["stages"].values()], ["passed", "passed", "failed"])
        self.assertEqual(results["stages"]["training"]["reason"], "interrupted")

    def test_a_stage_that_cannot_run_or_breaks_does_not_stop_the_others(self):
        def not_run(run, details):
            raise gpu_check.NotRun("not here")

        status, results = self.run_stages(bench=not_run)
        self.assertEqual((status, results["stages"]["bench"]["status"]), (0, "not run"))
        status, results = self.run_stages(bench=lambda *_: {}["missing"])
        self.assertEqual((status, results["stages"]["bench"]["reason"]), (1, "KeyError: 'missing'"))
        self.assertEqual(self.ran[-1], "sanitizer")

    def test_options_that_make_no_sense_are_refused(self):
        for options, message in {
            ("--only", "speed"): "the stages are build, tests",
            ("--limit", "bench"): "give STAGE=SECONDS",
            ("--quick", "--only", "bench"): "not allowed with",
            ("--binaries", "build"): "goes with --pack",
            ("--arch", "sm_90"): "--arch sm_90",
        }.items():
            self.assertEqual(self.check(*options)[0], 2, options)
            self.assertIn(message, self.printed.getvalue())


class Results(unittest.TestCase):
    def test_the_file_stays_small_and_keeps_what_is_small(self):
        stages = {name: {"status": "passed", "result": {"cases": [{"name": f"case {i}", "us": i / 7} for i in range(n)]}}
                  for name, n in (("bench", 2000), ("more-bench", 40000), ("probe", 9000))}  # fmt: skip
        stages["tests"] = {"reason": "x" * 3_000_000, "failures": [{"output": "y" * 3_000_000}] * 9}
        text = gpu_check.result_text({"commit": "abc", "stages": stages})
        self.assertLessEqual(len(text.encode()), 1 << 20)
        result = json.loads(text)
        self.assertEqual(result["stages"]["bench"], stages["bench"])
        self.assertEqual(result["stages"]["probe"], stages["probe"])
        self.assertIsNone(result["stages"]["more-bench"]["result"])
        self.assertIn("see gpu_check/more-bench*.json", result["stages"]["more-bench"]["result_left_out"])
        self.assertLess(len(result["stages"]["tests"]["reason"]), 5000)
        self.assertEqual(stages["tests"]["reason"], "x" * 3_000_000)  # what is written is a copy

    def test_what_is_written_is_what_was_recorded(self):
        results = {"a": None, "stages": {"bench": {"result": measured()}}, "b": [1, {"c": "d" * 200, "e": [{}, []]}]}
        self.assertEqual(json.loads(gpu_check.json_text(results)), results)


# ---- compute-sanitizer

RACE = """========= Error: Race reported between Write access at void a_kernel<float>(T1 *)+0x5800
=========     and Read access at void a_kernel<float>(T1 *)+0x4530 [8 hazards]
=========
"""


def summary(count):
    plural = "" if count == 1 else "s"
    return f"========= RACECHECK SUMMARY: {count} hazard{plural} displayed ({count} error{plural}, 0 warnings)\n"


class Sanitizer(unittest.TestCase):
    def test_reports_are_counted(self):
        self.assertEqual(gpu_check.reports_in(0, "========= ERROR SUMMARY: 0 errors"), 0)
        self.assertEqual(gpu_check.reports_in(99, "=== RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)"), 3)
        self.assertEqual(gpu_check.reports_in(gpu_check_sanitizer.REPORTED, "========= ERROR SUMMARY: 0 errors"), 1)
        self.assertIsNone(gpu_check.reports_in(None, "out of time"))
        self.assertIsNone(gpu_check.reports_in(gpu_check_sanitizer.REPORTED, "ended early"))

    def test_tests_of_tiny_integers_are_taken_where_there_are_some(self):
        self.assertEqual(gpu_check.filter_of("racecheck", "two_layer_test", "  IsExactOnSmallIntegers"),
                         "*IsExactOnSmallIntegers*")  # fmt: skip
        both = "  IsExactOnSmallIntegers/graph\n  IsExactOnTinyIntegers/graph"
        self.assertEqual(gpu_check.filter_of("racecheck", "cuda_conformance_test", both), "*IsExactOnTinyIntegers*")

    def test_tests_must_pass_also_where_the_exit_status_tells_of_reports(self):
        passed = "[==========] 9 tests from 1 test suite ran. (9 ms total)\n[  PASSED  ] 9 tests.\n"
        fewer = passed.replace("PASSED  ] 9", "PASSED  ] 8")
        raced = RACE + summary(1)
        skipped = fewer.replace("[  PASSED", "x.cu:1: Skipped\n{}\n[  PASSED") + "[  SKIPPED ] 1 test, listed below:\n"
        clean, errors = ("========= ERROR SUMMARY: 0 errors", "========= ERROR SUMMARY: 2 errors")
        for status, text, reason in (
            (0, passed + clean, ""),
            (0, passed + summary(0), ""),
            (99, passed + raced, "1 reports"),
            (99, passed + RACE * 2 + summary(2), "2 reports"),
            (99, fewer + raced, "1 reports"),
            (134, passed + summary(0), "exit status 134"),
            (99, passed + RACE, "not whole"),
            (0, passed.replace("9", "0") + clean, "0 of 0 tests passed"),
            (0, skipped.format("this machine has one GPU") + clean, ""),
            (0, skipped.format("no reason") + clean, "8 of 9 tests passed"),
            (1, passed + clean, "exit status 1"),
            (99, passed + errors, "2 reports"),
            (None, passed, "out of time"),
        ):
            found = gpu_check.judge_tool(status, text, {}) or ""
            (self.assertIn if reason else self.assertEqual)(reason, found, text)


class SanitizerStage(MadeUp):
    """compute-sanitizer as a script: it reports the planted bugs, and of the tests what is given."""

    TOOL = f"#!{sys.executable}\n" + """import subprocess, sys
words = {"memcheck": "Invalid __global__ write", "racecheck": "Race reported", "synccheck": "Barrier error",
         "initcheck": "Uninitialized __global__ memory read"}
if "--version" in sys.argv:
    sys.exit(print("Version 1.2"))
tool = sys.argv[sys.argv.index("--tool") + 1]
counted = "ERROR SUMMARY: %d errors"
if tool == "racecheck":
    counted = "RACECHECK SUMMARY: %d hazards displayed (0 errors, 0 warnings)"
if "planted_bugs" in sys.argv[-2]:
    found = sys.argv[-1] != "none" and tool != @blind@
    print(words[tool] if found else "", "\\n========= " + counted % found)
    sys.exit(99 if found else 0)
begin = next(i for i, each in enumerate(sys.argv) if each.endswith("_test"))
status = subprocess.run(sys.argv[begin:]).returncode
report = @reports@.get((tool, sys.argv[begin].split("/")[-1]), "")
print(report + "========= " + counted % report.count("Error: "))
sys.exit(99 if report else status)
"""

    def outcome(self, reports=None, blind=""):
        for name in ("cuda_kernels_test", "cuda_gpu_test", "cuda_optimizer_test", "cuda_device_arrays_test",
                     "cuda_watching_test", "cuda_precision_test", "on_chip_test", "small_product_test",
                     "tensor_test", "fused_test", "fused_executor_test"):
            self.add_program(name, 2)
        text = self.TOOL.replace("@reports@", repr(reports or {})).replace("@blind@", repr(blind))
        write_script(self.tools / "compute-sanitizer", text)
        self.pack()
        _, results = self.check("--only", "build,sanitizer")
        return results["stages"]["sanitizer"]

    def test_all_tools_pass_where_nothing_is_reported(self):
        stage = self.outcome()
        self.assertEqual(stage["status"], "passed", stage)
        self.assertEqual({tool: row["status"] for tool, row in stage["tools"].items()},
                         dict.fromkeys(gpu_check.PLANTED, "passed"))  # fmt: skip
        self.assertEqual(stage["tools"]["racecheck"]["programs"]["two_layer_test"]["tests"], 3)

    def test_a_report_fails_its_tool_alone(self):
        stage = self.outcome({("racecheck", "two_layer_test"): RACE,
                              ("memcheck", "cuda_kernels_test"): "========= Error: Invalid __global__ write\n"})  # fmt: skip
        self.assertEqual(stage["status"], "failed")
        status = {tool: row["status"] for tool, row in stage["tools"].items()}
        self.assertEqual(status["racecheck"], "failed: two_layer_test: 1 reports")
        self.assertEqual(status["memcheck"], "failed: cuda_kernels_test: 1 reports")
        self.assertEqual((status["initcheck"], status["synccheck"]), ("passed", "passed"))

    def test_a_tool_that_misses_the_planted_bug_is_broken(self):
        stage = self.outcome(blind="initcheck")
        self.assertEqual(stage["tools"]["initcheck"]["status"], "broken: it does not report the planted bug")
        self.assertEqual(stage["status"], "failed")


if __name__ == "__main__":
    unittest.main()
