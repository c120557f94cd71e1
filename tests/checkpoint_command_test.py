#!/usr/bin/env python3
"""Checkpoints of deviceloop train: checkpoint_command_test.py [--kills N] DEVICELOOP. Runs that are killed, interrupted, or
find no room on the disk leave a checkpoint from which a run goes on to the bits of one that was never interrupted. N is how
many times a run is killed by SIGKILL at random moments (6; 200 for a thorough check)."""

import argparse
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BATCHES = ["--layers", "10,8,1", "--bias", "--samples", "50", "--batch-size", "8", "--optimizer", "adam", "--lr", "1e-2",
           "--schedule", "cosine", "--warmup", "30", "--validate-fraction", "0.2", "--keep", "best", "--standardize"]
GRAM = ["--layers", "40,12,2", "--bias", "--samples", "16", "--formulation", "gram", "--optimizer", "sgd", "--momentum",
        "0.9", "--lr", "1e-5", "--init", "he"]
STEPS = 300


def command(*arguments, **options):
    return subprocess.run([COMMAND, "train", *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


class Checkpoints(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.file, self.previous = self.folder / "run.checkpoint", self.folder / "run.checkpoint.previous"

    def train(self, *arguments, code=0, **options):
        result = command(*arguments, "--quiet", **options)
        self.assertEqual(result.returncode, code, result.stderr)
        return result.stderr

    def whole(self, run, steps=STEPS):
        """The weights and the lines of the history of the run that is not interrupted."""
        history, weights = self.folder / "whole.csv", self.folder / "whole.safetensors"
        self.train(*run, "--steps", steps, "--history", history, "--save", weights)
        return weights.read_bytes(), history.read_text().splitlines()

    def expect_goes_on(self, checkpoint, whole):
        """Returns after how many steps the checkpoint was written."""
        history, weights, report = (self.folder / name for name in ("rest.csv", "rest.safetensors", "rest.json"))
        self.train("--resume", checkpoint, "--history", history, "--save", weights, "--json", report)
        found, rest = json.loads(report.read_text()), history.read_text().splitlines()
        self.assertEqual(weights.read_bytes(), whole[0])
        if found["steps"] > 0:
            self.assertEqual(rest[1:], whole[1][len(whole[1]) - found["steps"]:])
            self.assertEqual(rest[1].split(",")[0], str(found["first_step"]))
        return len(whole[1]) - 1 - found["steps"]

    def start(self, *arguments):
        return subprocess.Popen([COMMAND, "train", *map(str, arguments), "--quiet"], stderr=subprocess.PIPE, text=True)

    def test_goes_on_from_both_files(self):
        for run in (BATCHES, GRAM):
            whole = self.whole(run)
            self.train(*run, "--steps", STEPS, "--checkpoint", self.file, "--checkpoint-every", 70)
            self.assertEqual(self.expect_goes_on(self.file, whole), STEPS)
            self.assertEqual(self.expect_goes_on(self.previous, whole), 280)

    def test_goes_on_after_any_kill(self):
        """Each kill hits a run that goes on from the one before, so that checkpoints of checkpoints are tested, too."""
        chance = random.Random(KILLS)
        in_between = begun_anew = left_over = 0
        for run in (BATCHES, GRAM):
            whole = self.whole(run)
            for kill in range((KILLS + 1) // 2):
                sources = [file for file in (self.file, self.previous) if file.exists()]
                if sources and in_between % 7 == 6:  # now and then the older one, and the newer one is damaged
                    with open(sources[0], "r+b") as damaged:
                        damaged.seek(chance.randrange(sources[0].stat().st_size))
                        damaged.write(b"\x07")
                    sources.reverse()
                begin = ["--resume", sources[0]] if sources else [*run, "--steps", STEPS]
                process = self.start(*begin, "--checkpoint", self.file, "--checkpoint-every", 1)
                time.sleep(chance.uniform(0, 0.25))
                process.send_signal(signal.SIGKILL)
                process.communicate()
                candidates = [file for file in (self.file, self.previous) if file.exists()]
                if not candidates:
                    begun_anew += 1
                    continue
                at = None
                for candidate in candidates:
                    copy = self.folder / "copy.checkpoint"
                    shutil.copyfile(candidate, copy)
                    if command("--resume", copy, "--quiet", "--json", "/dev/null").returncode == 0:
                        at = self.expect_goes_on(copy, whole)
                        break
                self.assertIsNotNone(at, f"kill {kill}: neither of {[file.name for file in candidates]} can be loaded")
                in_between += at < STEPS
                if at == STEPS:
                    for file in candidates:
                        file.unlink()
            for file in (self.file, self.previous):
                file.unlink(missing_ok=True)
            # A file that is complete, but killed between its temporary name and its own.
            left = [file for file in self.folder.iterdir() if file.name.endswith(".tmp")]
            left_over += len(left)
            for file in left:
                file.unlink()
        print(f"{KILLS} kills: {in_between} in the middle of a run, {begun_anew} before its first checkpoint; "
              f"{left_over} left a temporary file")
        self.assertLessEqual(left_over, KILLS // 2)  # on a slow disk a run writes for much of its time
        self.assertGreater(in_between, 0)

    def test_a_signal_leaves_a_checkpoint(self):
        steps = 200000
        whole = self.whole(BATCHES, steps)
        for number in (signal.SIGINT, signal.SIGTERM):
            process = self.start(*BATCHES, "--steps", steps, "--checkpoint", self.file, "--checkpoint-every", 50)
            while not self.previous.exists():
                time.sleep(0.01)
            process.send_signal(number)
            errors = process.communicate(timeout=60)[1]
            self.assertEqual(process.returncode, 128 + number, errors)
            self.assertIn(f"; go on by --resume {self.file}", errors)
            self.assertLess(self.expect_goes_on(self.file, whole), steps)
            self.file.unlink()
            self.previous.unlink()

    def test_a_damaged_file_names_the_one_before(self):
        self.train(*GRAM, "--steps", 20, "--checkpoint", self.file, "--checkpoint-every", 5)
        good = self.file.read_bytes()
        for damaged in (good[:100], good[:-1], good[:9] + b"x" + good[10:], good[:-1] + b"\xff", b"x"):
            self.file.write_bytes(damaged)
            self.assertIn(f"; {self.previous} is the checkpoint before it: resume from that",
                          self.train("--resume", self.file, code=2))
        self.file.unlink()
        self.assertIn(f"; {self.previous} is the checkpoint before it", self.train("--resume", self.file, code=2))
        self.previous.unlink()
        self.assertNotIn("the checkpoint before it", self.train("--resume", self.file, code=2))

    def test_a_full_disk_leaves_the_file_as_it_was(self):
        self.train(*GRAM, "--steps", 20, "--checkpoint", self.file)
        old = self.file.read_bytes()

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

        errors = self.train(*GRAM, "--steps", 20, "--checkpoint", self.file, "--checkpoint-every", 10, code=1,
                            preexec_fn=limit)
        self.assertIn("writing failed: File too large; raise the limit", errors)
        self.assertIn("; training goes on", errors)
        self.assertEqual(self.file.read_bytes(), old)
        self.assertFalse(self.previous.exists())
        self.train("--resume", self.file)

    def test_a_folder_or_file_that_cannot_be_written_is_known_at_once(self):
        for name, problem in (("/proc/run.checkpoint", "cannot be created in its folder"),
                              ("/dev/full", "must be the name of a file, whose folder keeps the one before it"),
                              ("-", "must be the name of a file"),
                              (self.folder / "none" / "file", "its folder does not exist")):
            self.assertIn(problem, self.train(*GRAM, "--checkpoint", name, code=2))
        if os.geteuid() != 0:
            self.train(*GRAM, "--steps", 5, "--checkpoint", self.file)
            old = self.file.read_bytes()
            self.folder.chmod(0o500)
            self.addCleanup(self.folder.chmod, 0o700)
            self.assertIn("Permission denied", self.train(*GRAM, "--checkpoint", self.file, code=2))
            self.assertEqual(self.file.read_bytes(), old)

    def test_settings_are_those_of_the_run(self):
        self.train(*BATCHES, "--steps", 40, "--checkpoint", self.file)
        self.train(*BATCHES, "--steps", 40, "--resume", self.file)  # the same again
        self.train("--resume", self.file, "--lr", "0.01", "--threads", 2, "--checkpoint", self.file)
        for arguments, problem in ((["--lr", "0.1"], "--lr 0.1 contradicts"), (["--momentum", "0.9"], "--momentum 0.9"),
                                   (["--no-shuffle"], "--no-shuffle contradicts"), (["--layers", "10,9,1"], "--layers"),
                                   (["--precision", "fp64"], "--precision fp64"), (["--samples", 60], "--samples 60"),
                                   (["--steps", 80], "schedule.period 40, and the trainer has 80")):
            self.assertIn(problem, self.train("--resume", self.file, *arguments, code=2))
        self.train(*GRAM, "--steps", 20, "--checkpoint", self.file)
        self.assertIn("has 20 steps behind it", self.train("--resume", self.file, "--steps", 10, code=2))
        self.assertEqual(self.expect_goes_on_to(50), self.whole(GRAM, 50)[0])

    def expect_goes_on_to(self, steps):
        weights = self.folder / "more.safetensors"
        self.train("--resume", self.file, "--steps", steps, "--save", weights)
        return weights.read_bytes()

    def test_data_are_those_of_the_run(self):
        table, other = self.folder / "a.csv", self.folder / "b.csv"
        for seed, name in ((1, table), (2, other)):
            subprocess.run([COMMAND, "data", "--task", "friedman", "--samples", "40", "--seed", str(seed), "--data", name],
                           check=True, capture_output=True)
        run = ["--data", table, "--targets", "y", "--layers", "10,6,1", "--bias", "--standardize", "--standardize-targets",
               "--reduction", "mean", "--lr", "1e-2", "--init", "he"]
        whole = self.whole(run, 60)
        self.train(*run, "--steps", 60, "--checkpoint", self.file, "--checkpoint-every", 50)
        self.assertEqual(self.expect_goes_on(self.previous, whole), 50)
        moved = self.folder / "moved.csv"
        table.rename(moved)
        self.assertIn("a.csv", self.train("--resume", self.previous, code=2))
        self.train("--resume", self.previous, "--data", moved, "--targets", "y")
        self.assertIn("is of a run on other data than the training data of this one",
                      self.train("--resume", self.previous, "--data", other, "--targets", "y", code=2))

    def test_a_run_that_a_rule_has_ended_is_over(self):
        run = [*BATCHES, "--patience", 2, "--validate-every", 5]
        weights, report = self.folder / "w", self.folder / "r.json"
        self.train(*run, "--steps", 3000, "--checkpoint", self.file, "--save", weights, "--json", report)
        self.assertEqual(json.loads(report.read_text())["end"], "patience")
        old = weights.read_bytes()
        self.train("--resume", self.file, "--save", weights, "--json", report)
        self.assertEqual(json.loads(report.read_text())["steps"], 0)
        self.assertEqual(weights.read_bytes(), old)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("command", type=pathlib.Path)
    arguments, rest = parser.parse_known_args()
    COMMAND, KILLS = arguments.command.resolve(), arguments.kills
    unittest.main(argv=[sys.argv[0], *rest])
