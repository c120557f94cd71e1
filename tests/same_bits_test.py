#!/usr/bin/env python3
"""tests/same_bits, on build folders that are made up: same_bits_test.py DEVICELOOP. Their command is the one given, or a
script around it in which something is wrong."""

import contextlib
import importlib.machinery
import importlib.util
import io
import pathlib
import shlex
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

sys.dont_write_bytecode = True
PATH = pathlib.Path(__file__).resolve().parent / "same_bits"
loader = importlib.machinery.SourceFileLoader("same_bits", str(PATH))
same_bits = importlib.util.module_from_spec(importlib.util.spec_from_loader("same_bits", loader))
sys.modules["same_bits"] = same_bits  # where dataclasses look for it
loader.exec_module(same_bits)

COMMAND = pathlib.Path(sys.argv.pop()).resolve()
CASE = "^cpu/5-3/n=11$"


def outcome(statuses=(0,), wrong=(), **files):
    return same_bits.Outcome(list(statuses), {name.replace("_", "."): data for name, data in files.items()}, list(wrong))


class Builds(unittest.TestCase):
    """The program as a whole."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.real = self.build("real", f'exec {shlex.quote(str(COMMAND))} "$@"')

    def build(self, name, script, program="deviceloop"):
        build = self.folder / name
        (build / "bin").mkdir(parents=True, exist_ok=True)
        path = build / "bin" / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return build

    def altered(self, name, old, new):
        """The command with one argument for another."""
        script = f'for word do shift; [ "$word" = {old} ] && word={new}; set -- "$@" "$word"; done\n'
        return self.build(name, script + f'exec {shlex.quote(str(COMMAND))} "$@"')

    def run_on(self, before, after, only=CASE):
        child = subprocess.run([sys.executable, str(PATH), str(before), str(after), "--only", only, "--jobs", "2"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)  # fmt: skip
        return child.returncode, child.stdout

    def test_a_build_equals_itself_and_refusals_are_named(self):
        status, text = self.run_on(self.real, self.real, "^(cpu/5-3/n=11$|refused/weights)")
        self.assertEqual(status, 0, text)
        self.assertRegex(text, r"equal +[\d.]+ s  cpu/5-3/n=11\n")
        self.assertIn("1 are meant to fail, and do so with the same text: refused/weights\n", text)
        self.assertIn("2 of 2 cases are equal;", text)

    def test_the_last_bit_of_the_learning_rate_is_seen(self):
        # In single precision the neighbour of 1e-3.
        status, text = self.run_on(self.real, self.altered("other", "1e-3", "0.0010000000475"))
        self.assertEqual(status, 0, "the same learning rate, in more digits: " + text)
        status, text = self.run_on(self.real, self.altered("other", "1e-3", "0.0010000001639"))
        self.assertEqual(status, 1, text)
        self.assertRegex(text, r"DIFFERS +[\d.]+ s  cpu/5-3/n=11\n")
        self.assertRegex(text, r"\n  losses.csv +\d+  step \d+: \d+,[\d.]+ -> \d+,[\d.]+\n")
        self.assertRegex(text, r"\n  weights.safetensors +\d+  byte \d+\n")
        self.assertRegex(text, r"\n  predictions.npy +\d+  byte \d+\n")
        self.assertIn("\n  $ deviceloop train --device cpu --layers 5,3 --samples 11 ", text)
        self.assertIn("0 of 1 cases are equal;", text)

    def test_a_text_alone_is_seen(self):
        other = self.build("other", f'{shlex.quote(str(COMMAND))} "$@" | sed s/loss/lose/')
        status, text = self.run_on(self.real, other)
        self.assertEqual(status, 1, text)
        self.assertIn("0 of 1 cases are equal, 1 differ in texts alone;", text)
        self.assertNotIn("weights.safetensors  ", text)

    def test_what_fails_in_both_is_equal_but_named(self):
        refusing = self.build("refusing", "echo deviceloop: not today >&2; exit 2")
        status, text = self.run_on(refusing, refusing)
        self.assertEqual(status, 0, text)
        self.assertRegex(text, r"FAILS ALIKE +[\d.]+ s  cpu/5-3/n=11\n")
        self.assertIn("cpu/5-3/n=11: exit status 2 instead of 0: deviceloop: not today\n", text)
        status, text = self.run_on(self.real, refusing)
        self.assertEqual(status, 1, text)
        self.assertIn("[0, 0, 0] -> [2]", text)

    def test_a_crash_is_never_equal(self):
        for name, script, told in (("crash", "kill -SEGV $$", "data ended with -11"), ("loader", "exit 127", "data ended with 127")):
            crashing = self.build(name, script)
            status, text = self.run_on(crashing, crashing)
            self.assertEqual(status, 1, text)
            self.assertIn(f"failed in BEFORE    {told}", text)

    def test_another_plan_than_the_case_is_about_is_never_equal(self):
        # It trains on the CPU what was to be trained by the host fixture's GPU.
        script = f"""for word do
  shift
  case $word in cuda) word=cpu ;; persistent:*) word=auto ;; esac
  set -- "$@" "$word"
done
exec {shlex.quote(str(COMMAND))} "$@"
"""
        self.build("real", script, "simt_command")
        status, text = self.run_on(self.real, self.real, "^persistent:on-chip/7-5/")
        self.assertEqual(status, 1, text)
        self.assertIn("persistent:on-chip was asked for, what ran is cpu: the CPU was asked for", text)

    def test_what_cannot_begin(self):
        with_fixture = self.build("fixture", "exit 0")
        self.build("fixture", "exit 0", "simt_command")
        for before, only, told in ((self.real, "^no such case", "no case has a name that matches"),
                                   (self.real, "(", "is no regular expression"),
                                   (self.real, "^graph/", "neither build has a bin/simt_command"),
                                   (with_fixture, "", "has no bin/simt_command, the other build has"),
                                   (self.folder / "none", "", "has no bin/deviceloop")):  # fmt: skip
            errors = io.StringIO()
            arguments = ["same_bits", str(before), str(self.real), "--only", only]
            with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stderr(errors):
                with self.assertRaises(SystemExit) as ended:
                    same_bits.main()
            self.assertEqual(ended.exception.code, 2)
            self.assertIn(told, errors.getvalue())


class Comparison(unittest.TestCase):
    def test_there_are_cases_of_every_plan_and_form(self):
        plans = {}
        for case in same_bits.cases():
            plans[case.plan] = plans.get(case.plan, 0) + 1
        self.assertGreaterEqual(sum(plans.values()), 40)
        for plan in ("cpu", "graph", *("persistent:" + form for form in same_bits.FORMS)):
            self.assertGreaterEqual(plans[plan], 4, plan)

    def test_times_and_free_memory_are_left_out_and_nothing_else(self):
        text = (b"prepared in 140.0 ms: devices 1.4, plan 0.4\nnote: 1.5\n"
                b"10 steps in 25.8 ms, 2582.32 us a step (predicted 2.6, floor 0.37); loss 16.11 -> 13.79\n"
                b"take 7.3 TiB of memory, but only 22.1 GiB are free\n")  # fmt: skip
        self.assertEqual(same_bits.without_times(text),
                         b"prepared in #: devices #, plan #\nnote: 1.5\n"
                         b"10 steps in #, # us a step (predicted 2.6, floor 0.37); loss 16.11 -> 13.79\n"
                         b"take 7.3 TiB of memory, but only # are free\n")  # fmt: skip
        report = (b'{\n  "loss_last": 13.7,\n  "us_per_step": 2.5e-05,\n  "predicted_us_per_step": 2.6,\n'
                  b'  "total_ms": 25.8,\n  "preparation": {\n    "devices": 1.3,\n    "plan": 0.4\n  },\n  "steps": 3\n}')  # fmt: skip
        self.assertEqual(same_bits.report_without_times(report),
                         b'{\n  "loss_last": 13.7,\n  "us_per_step": "#",\n  "predicted_us_per_step": 2.6,\n'
                         b'  "total_ms": "#",\n  "preparation": {\n    "devices": "#",\n    "plan": "#"\n  },\n  "steps": 3\n}')  # fmt: skip

    def test_a_form_is_known_by_its_report(self):
        how = {"on-chip": "one cluster of 8 blocks that keeps all parameters on chip, 40.0 KiB of shared memory each",
               "two-layer": "9 blocks of 512 threads; a block has 40 inputs"}  # fmt: skip
        for asked in how:
            for ran, text in how.items():
                wrong = same_bits.wrong_plan("persistent:" + asked, {"plan": "persistent", "reason": "", "algorithms": [text]})
                self.assertEqual(wrong == [], asked == ran, (asked, ran))
        clusters = {"plan": "persistent", "algorithms": ["2 clusters of 4 blocks of 160 threads; a block has 257 inputs"]}
        self.assertEqual(same_bits.wrong_plan("persistent:two-layer", clusters), [])
        self.assertEqual(same_bits.wrong_plan("graph", {"plan": "graph"}), [])
        self.assertNotEqual(same_bits.wrong_plan("cpu", {"plan": "graph", "reason": ""}), [])

    def test_where_files_differ(self):
        before = outcome(losses_csv=b"step,loss\n0,5.5\n1,4.5\n", weights_safetensors=b"\0\1\2\3", only_npy=b"")
        after = outcome(losses_csv=b"step,loss\n0,5.5\n1,4.75\n2,4\n", weights_safetensors=b"\0\1\7\7\7")
        self.assertEqual(same_bits.compare(before, before), [])
        self.assertEqual(same_bits.compare(before, after),
                         [("losses.csv", "7", "step 1: 1,4.5 -> 1,4.75"),
                          ("only.npy", "", "written by one build alone: BEFORE"),
                          ("weights.safetensors", "3", "byte 2")])  # fmt: skip

    def test_a_case_that_should_fail_and_does_not_is_named(self):
        case = same_bits.Case("refused", ("data", "train"), 2)
        self.assertEqual(same_bits.failure(case, outcome((0, 2))), "")
        self.assertIn("exit status 0 instead of 2", same_bits.failure(case, outcome((0, 0))))
        self.assertIn("exit status 2 instead of 0", same_bits.failure(case, outcome((2,))))


if __name__ == "__main__":
    unittest.main()
