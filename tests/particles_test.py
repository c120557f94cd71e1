#!/usr/bin/env python3
"""The example particles on the host fixture: particles_test.py PARTICLES_ON_FIXTURE. It learns, and its frames copy nothing
but their losses to the host and wait for nothing: what more frames ask of CUDA is counted."""

import os
import re
import subprocess
import sys
import unittest

PROGRAM = sys.argv.pop() if len(sys.argv) > 1 else None
TRAINING_STEPS = 10


def run(frames):
    done = subprocess.run([PROGRAM, str(frames), "32"], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "DEVICELOOP_SIMT_COUNTS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = re.search(r"copies (\d+), synchronisations (\d+), allocations (\d+)", done.stderr)
    return done.stdout, [int(number) for number in counts.groups()]


class Particles(unittest.TestCase):
    def test_frames_copy_nothing_and_nobody_waits(self):
        _, few = run(3)
        text, more = run(23)
        copies, synchronisations, _ = (b - a for a, b in zip(few, more))
        self.assertEqual(synchronisations, 0)
        # The plan `graph` sends the losses of each launch; ten steps are single launches.
        self.assertLessEqual(copies, 20 * TRAINING_STEPS)
        self.assertEqual(copies % 20, 0)
        error, standing_still = map(float, re.search(r"last frame: ([0-9.]+), of standing still ([0-9.]+)", text).groups())
        self.assertLess(error, standing_still)


if __name__ == "__main__":
    unittest.main()
