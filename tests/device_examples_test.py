#!/usr/bin/env python3
"""The examples that bring their own device arrays, on the host fixture: device_examples_test.py PARTICLES DEVICE_ARRAYS
COMMAND. Particles learns, and its frames copy nothing but their losses to the host and wait for nothing: what more frames
ask of CUDA is counted. The starting case on device arrays begins with the losses of the command's, and goes on to fall."""

import os
import re
import subprocess
import sys
import unittest

PARTICLES, DEVICE_ARRAYS, COMMAND = sys.argv[1:4]
TRAINING_STEPS = 10


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "DEVICELOOP_SIMT_COUNTS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def run_particles(frames):
    done = run(PARTICLES, frames, 32)
    counts = re.search(r"copies (\d+), synchronisations (\d+), allocations (\d+)", done.stderr)
    return done.stdout, [int(number) for number in counts.groups()]


class Particles(unittest.TestCase):
    def test_frames_copy_nothing_and_nobody_waits(self):
        _, few = run_particles(2)
        text, more = run_particles(12)
        copies, synchronisations, _ = (b - a for a, b in zip(few, more))
        self.assertEqual(synchronisations, 0)
        # The plan `graph` sends the losses of each launch; ten steps are single launches.
        self.assertLessEqual(copies, 10 * TRAINING_STEPS)
        self.assertEqual(copies % 10, 0)
        error, standing_still = map(float, re.search(r"last frame: ([0-9.]+), of standing still ([0-9.]+)", text).groups())
        self.assertLess(error, standing_still)


class DeviceArrays(unittest.TestCase):
    def test_the_losses_are_those_of_the_command(self):
        told = run(COMMAND, "train", "--plan", "graph", "--steps", 11).stdout  # each takes the host a second
        expected = re.findall(r"^\d+: [\d.]+$", told, re.MULTILINE)
        self.assertEqual(len(expected), 2)
        lines = run(DEVICE_ARRAYS, 2, "graph").stdout.splitlines()
        self.assertEqual(lines[:2], expected)
        losses = [float(line.split()[1]) for line in lines]
        self.assertEqual(len(losses), 5)
        self.assertEqual(losses, sorted(losses, reverse=True))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
