#!/usr/bin/env python3
"""./quickstart, with stand-ins for the tools that it calls, and what its targets build: quickstart_test.py GENERATOR."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GENERATOR = sys.argv.pop()
NINJA = shutil.which("ninja") if GENERATOR == "Ninja" else None

# Each notes how it was called. cmake keeps what it was configured with, as the real one does; packages are installed but
# those named in the file `missing`.
TOOLS = {
    "cmake": r"""
case $1 in
  --version) echo "cmake version 3.25.1" ;;
  --build) mkdir -p "$2/bin" && printf '#!/bin/sh\necho trained\n' >"$2/bin/deviceloop" && chmod +x "$2/bin/deviceloop" ;;
  *)
    mkdir -p "$4"
    tests=$(sed -n 's/^DEVICELOOP_TESTS:.*=//p' "$4/CMakeCache.txt" 2>/dev/null)
    for option in "$@"; do [[ $option != -DDEVICELOOP_TESTS=* ]] || tests=${option#*=}; done
    printf '%s\n' "CMAKE_HOME_DIRECTORY:INTERNAL=$2" "CMAKE_CACHEFILE_DIR:INTERNAL=$4" \
      CMAKE_GENERATOR:INTERNAL=Ninja "DEVICELOOP_TESTS:BOOL=${tests:-ON}" >"$4/CMakeCache.txt"
    [[ $tests == OFF ]] || touch "$4/CTestTestfile.cmake" ;;
esac""",
    "ctest": "",
    "g++": "",
    "ninja": "",
    "gnuplot": "",
    "dpkg-query": r"""grep -qx -- "${!#}" "$HERE/missing" 2>/dev/null || echo 'ii '""",
    "apt-get": "",
    "sudo": r"""[[ $1 == -* ]] || exec "$@" """,
    "pkg-config": "",
    "nvcc": "printf 'compute_%s\n' 75 80 90",
    "nvidia-smi": r"""cat "$HERE/gpus" 2>/dev/null""",
}


class Checkout:
    """A folder with quickstart alone, and the stand-ins."""

    def __init__(self, folder):
        self.root = pathlib.Path(folder) / "checkout"
        self.here = pathlib.Path(folder) / "tools"
        self.root.mkdir()
        self.here.mkdir()
        shutil.copy(ROOT / "quickstart", self.root)
        for name, script in TOOLS.items():
            path = self.here / name
            path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"$HERE/calls"\n{script}\n')
            path.chmod(0o755)
        self.environment = {"PATH": f"{self.here}:{os.environ['PATH']}", "HERE": str(self.here), "HOME": folder}

    def run(self, *arguments, **environment):
        """What quickstart printed, and the lines of its calls."""
        calls = self.here / "calls"
        calls.write_text("")
        done = subprocess.run([self.root / "quickstart", *arguments], env={**self.environment, **environment}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"quickstart {arguments} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout, calls.read_text().splitlines()

    def shell(self, commands, **environment):
        """What bash prints that has read quickstart's functions."""
        return subprocess.run(["bash", "-c", f"source ./quickstart\n{commands}"], cwd=self.root, text=True,
                              env={**self.environment, **environment}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)  # fmt: skip


def the_one(calls, start):
    found = [call for call in calls if call.startswith(start)]
    if len(found) != 1:
        raise AssertionError(f"one call '{start}' in {calls}")
    return found[0].split()


class Quickstart(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="deviceloop-test-")
        self.addCleanup(folder.cleanup)
        self.checkout = Checkout(folder.name)

    def test_a_fresh_checkout_builds_no_test_and_trains(self):
        out, calls = self.checkout.run()
        self.assertIn("-DDEVICELOOP_TESTS=OFF", the_one(calls, "cmake -S"))
        self.assertEqual(the_one(calls, "cmake --build")[-2:], ["--target", "deviceloop_product"])
        self.assertTrue(out.endswith("trained\n"), out)
        self.assertFalse([call for call in calls if call.startswith("ctest")])

    def test_tests_are_built_when_asked_for_and_kept(self):
        self.checkout.run()
        for again in range(2):
            _, calls = self.checkout.run("test")
            self.assertIn("-DDEVICELOOP_TESTS=ON", the_one(calls, "cmake -S"))
            self.assertEqual(the_one(calls, "cmake --build")[-2:], ["--target", "all"])
            the_one(calls, "ctest --test-dir")
            _, calls = self.checkout.run()
            self.assertNotIn("DEVICELOOP_TESTS", " ".join(the_one(calls, "cmake -S")))
            self.assertEqual(the_one(calls, "cmake --build")[-2:], ["--target", "deviceloop_product"])

    def test_a_folder_without_tests_gets_none_by_a_training(self):
        for again in range(2):
            _, calls = self.checkout.run()
            self.assertIn("-DDEVICELOOP_TESTS=OFF", the_one(calls, "cmake -S"))
        # One that was to have them, but for which CMake failed.
        cache = self.checkout.root / "build" / "CMakeCache.txt"
        cache.write_text(cache.read_text().replace("DEVICELOOP_TESTS:BOOL=OFF", "DEVICELOOP_TESTS:BOOL=ON"))
        _, calls = self.checkout.run()
        self.assertIn("-DDEVICELOOP_TESTS=OFF", the_one(calls, "cmake -S"))

    def test_only_the_tests_need_their_packages(self):
        missing = self.checkout.here / "missing"
        missing.write_text("libgtest-dev\nlibboost-context-dev\n")
        _, calls = self.checkout.run()
        self.assertFalse([call for call in calls if call.startswith("apt-get")])
        _, calls = self.checkout.run("test")
        self.assertEqual(the_one([call for call in calls if " install " in call and call.startswith("apt-get")], "apt-get")[-2:],
                         ["libgtest-dev", "libboost-context-dev"])  # fmt: skip
        missing.write_text("libcli11-dev\n")
        _, calls = self.checkout.run()
        self.assertIn("libcli11-dev", " ".join(calls))

    def test_code_is_for_the_gpus_of_the_machine_unless_the_folder_has_it(self):
        cache = self.checkout.root / "build" / "CMakeCache.txt"
        gpus = self.checkout.here / "gpus"

        def chosen(of_gpus, of_folder, **environment):
            gpus.write_text(of_gpus)
            shutil.rmtree(cache.parent, ignore_errors=True)
            if of_folder is not None:
                cache.parent.mkdir()
                cache.write_text(of_folder)
            return self.checkout.shell("chosen_architectures", **environment).stdout.strip()

        nvcc = "CMAKE_CUDA_COMPILER:FILEPATH=/nvcc\n"
        self.assertEqual(chosen("", None), "")
        self.assertEqual(chosen("9.0\n9.0\n8.0\n", None), "80-real;90-real")
        self.assertEqual(chosen("9.9\n", None), "")  # nvcc does not know it
        self.assertEqual(chosen("9.0\n", None, CUDAARCHS="75"), "75")
        self.assertEqual(chosen("9.0\n", "A:B=C\n"), "90-real")  # made without CUDA
        self.assertEqual(chosen("9.0\n", nvcc), "")  # all
        for kept in ("80-real;90", "90-real", "all-major", "native"):
            self.assertEqual(chosen("9.0\n", f"{nvcc}CMAKE_CUDA_ARCHITECTURES:STRING={kept}\n"), "", kept)
        self.assertEqual(chosen("9.0\n", f"{nvcc}CMAKE_CUDA_ARCHITECTURES:STRING=80-real;90-virtual\n"), "90-real")

    def test_progress_is_told_where_there_is_no_terminal(self):
        def said(commands, **environment):
            done = self.checkout.shell(f"quietly building bash -c '{commands}'", **environment)
            self.assertEqual(done.returncode, 0, done.stdout)
            return done.stdout

        every = {"DEVICELOOP_PROGRESS": "1"}
        self.assertRegex(said('echo "[7/97] Building a"; echo "[41/97] Building b"; sleep 2.5', **every),
                         r"^quickstart: building, 41 of 97 done, [12] s\n")  # fmt: skip
        self.assertRegex(said('echo "[  7%] Building a"; echo "[ 41%] Linking b"; sleep 2.5', **every),
                         r"^quickstart: building, 41 % done, [12] s\n")  # fmt: skip
        self.assertRegex(said("echo [x]; sleep 2.5", **every), r"^quickstart: building, [12] s\n")
        # A command that is quick, or progress that is not due: not a word.
        self.assertEqual(said('echo "[41/97] Building"', **every), "")
        self.assertEqual(said('echo "[41/97] Building"; sleep 2.5'), "")

    def test_a_failure_is_shown_at_once(self):
        start = time.monotonic()
        done = self.checkout.shell("quietly building bash -c 'echo what went wrong; exit 3'; echo not reached")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "what went wrong\nquickstart: building failed (exit code 3); its output is above\n")
        self.assertLess(time.monotonic() - start, 20)  # whoever tells of progress holds nothing open


@unittest.skipUnless(NINJA, "only Ninja says what a target needs")
class Targets(unittest.TestCase):
    def test_tests_change_no_command_of_what_is_trained_with(self):
        with tempfile.TemporaryDirectory(prefix="deviceloop-test-") as folder:

            def commands(configure, target):
                subprocess.run(["bash", "-c", f"source '{ROOT}/quickstart'; build='{folder}/build'; {configure}"], check=True,
                               env={**os.environ, "DEVICELOOP_CUDA": "OFF"}, stdout=subprocess.DEVNULL)  # fmt: skip
                text = subprocess.run([NINJA, "-C", f"{folder}/build", "-t", "commands", target], check=True,
                                      stdout=subprocess.PIPE, text=True).stdout  # fmt: skip
                return text.splitlines()[1:]

            without = commands("configure", "deviceloop_product")
            text = "\n".join(without)
            for program in (r"-o bin/deviceloop ", r"-o bin/deviceloop_bench ", r"-o libdeviceloop\.so\.\S+ ", r" libdeviceloop\.a "):
                self.assertRegex(text, program)
            self.assertFalse(re.search(r"_test\.cpp|gtest", text), "a test is built")
            self.assertEqual(commands("configure tests", "deviceloop_product"), without)
            self.assertTrue([line for line in commands("configure", "all") if "_test.cpp" in line], "the tests are gone")


if __name__ == "__main__":
    unittest.main()
