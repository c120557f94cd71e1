#!/usr/bin/env python3
"""The pages of deviceloop train --report: report_test.py DEVICELOOP. Real runs, whose pages are read by an XML parser, and
the files that they leave behind."""

import html.parser
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import unittest
from xml.etree import ElementTree

COMMAND = pathlib.Path(sys.argv.pop()).resolve()
XHTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "\"><script>alert(1)<script>&' $(x)\x01".encode() + b"\xff.csv"


class References(html.parser.HTMLParser):
    """What a browser would run or fetch."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.scripts = []

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self.scripts.append(dict(attributes).get("type"))
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action") or name.startswith("on"):
                self.found.append((tag, name, value))


class Reports(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_command(self, *arguments):
        return subprocess.run([str(COMMAND), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

    def page(self, *arguments, status=0):
        """The page of a run, parsed, with the JSON of the same run."""
        child = self.run_command("train", "--report", "r.html", "--json", "r.json", "--quiet", *arguments)
        self.assertEqual(child.returncode, status, child.stderr)
        text = (self.folder / "r.html").read_text(encoding="utf-8")
        references = References()
        references.feed(text)
        self.assertEqual(references.found, [])
        self.assertEqual(references.scripts, ["application/json"])
        root = ElementTree.fromstring(text)
        script = root.find(f".//{XHTML}script")
        self.assertEqual(json.loads(script.text), json.loads((self.folder / "r.json").read_text()))
        return root

    def words(self, root):
        return " ".join(" ".join(root.itertext()).split())

    def test_the_starting_case(self):
        root = self.page()
        words = self.words(root)
        for part in ("1000-100-1 on 128 samples", "Finished all 500 steps", "final loss 71.86", "measured / predicted",
                     "deviceloop train --json r.json --report r.html --quiet", "128 samples, standard normal",
                     "--lr 1e-6 default", "--seed 0 default"):  # fmt: skip
            self.assertIn(part, words)
        for executor in ("persistent", "graph", "cpu"):
            self.assertIn(f"{executor} ", words)
        self.assertEqual(len(root.findall(f".//{SVG}svg")), 4)
        for picture in root.iter(f"{SVG}svg"):
            self.assertEqual(picture.get("role"), "img")
            self.assertTrue(picture.find(f"{SVG}title").text)

    def test_every_candidate_of_the_plan_is_there_with_its_reason(self):
        words = self.words(self.page("--steps", "2"))
        table = self.run_command("plan").stdout.decode().splitlines()[2:-1]
        self.assertEqual(len(table), 4)
        for line in table:
            executor, verdict = line.split()[:2]
            self.assertIn(executor, words)
            self.assertIn(verdict, words)
            self.assertIn(line.split("  ")[-1].strip(), words)

    def test_a_run_that_diverges(self):
        words = self.words(self.page("--lr", "1", "--save", "w.safetensors", status=1))
        for part in ("Diverged: the loss of step 2 is not finite", "lower --lr, now 1", "w.safetensors was not written",
                     "step 2: not finite", "infinite or nan"):  # fmt: skip
            self.assertIn(part, words)

    def test_no_step_and_one(self):
        self.assertIn("No step was done", self.words(self.page("--steps", "0")))
        self.assertIn("One step was done", self.words(self.page("--steps", "1")))

    def test_validation_and_what_the_options_leave_open(self):
        self.run_command("data", "--task", "digits", "--samples", "300", "--data", "d.npz")
        words = self.words(self.page("--data", "d.npz", "--validate-fraction", "0.2", "--layers", "784,16,10", "--bias",
                                     "--init", "he", "--loss", "cross-entropy", "--optimizer", "adam", "--lr", "1e-3",
                                     "--batch-size", "32", "--epochs", "3", "--keep", "best", "--save", "w"))  # fmt: skip
        for part in ("Validation by 60 samples", "after steps validation loss accuracy", "best validation", "--steps 23 from --epochs",
                     "--samples 240 from the data", "--momentum - unused by adam", "--beta2 0.999 default", "--weight-decay 0 default",
                     "read 300 samples from d.npz", "each batch"):  # fmt: skip
            self.assertIn(part, words)
        words = self.words(self.page("--data", "d.npz", "--weights", "w", "--loss", "cross-entropy", "--steps", "1"))
        for part in ("--layers 784,16,10 from --weights", "--bias yes from --weights", "--init - unused: --weights"):
            self.assertIn(part, words)

    def test_names_that_are_markup(self):
        name = os.path.join(os.fsencode(self.folder), HOSTILE)
        with open(name, "wb") as file:
            file.write(b"1,2,3\n2,3,4\n")
        root = self.page("--layers", "2,1", "--data", os.fsdecode(HOSTILE), "--targets", "1", "--steps", "3")
        words = self.words(root)
        self.assertIn("read 2 samples from \"><script>alert(1)<script>&' $(x)\\x01\\xff.csv", words)
        # The command does the same again in a shell.
        command = root.find(f".//{XHTML}pre").text
        self.assertTrue(command.startswith("deviceloop train --layers 2,1 --data $'"), command)
        before = json.loads((self.folder / "r.json").read_text())
        os.remove(self.folder / "r.json")
        if os.path.exists("/bin/bash"):
            again = command.replace("deviceloop", shlex.quote(str(COMMAND)), 1)
            subprocess.run(["/bin/bash", "-c", again], check=True, cwd=self.folder)
            after = json.loads((self.folder / "r.json").read_text())
            self.assertEqual(before["loss_last"], after["loss_last"])

    def test_standard_output(self):
        child = self.run_command("train", "--steps", "3", "--report", "-")
        self.assertEqual(child.returncode, 0)
        ElementTree.fromstring(child.stdout)
        self.assertIn(b"3 steps in", child.stderr)

    def test_the_file_is_whole_or_absent(self):
        # Refused before anything is done.
        for arguments in (("--report", "no/r.html"), ("--report", "x", "--json", "./x"), ("--report", "-", "--json", "-"),
                          ("--report", "w", "--weights", "w"), ("--report", "")):  # fmt: skip
            with self.subTest(arguments=arguments):
                child = self.run_command("train", *arguments)
                self.assertEqual((child.returncode, child.stdout), (2, b""), child.stderr)
                self.assertIn(b"--report" if "no/r.html" not in arguments else b"no/r.html", child.stderr)
        self.assertEqual(os.listdir(self.folder), [])
        # Where the input is wrong, an older page stays as it was.
        (self.folder / "r.html").write_text("old")
        self.assertEqual(self.run_command("train", "--x", "none", "--y", "none", "--report", "r.html").returncode, 2)
        self.assertEqual((self.folder / "r.html").read_text(), "old")
        self.page("--steps", "2")
        # A full disk costs the page, and is told.
        child = self.run_command("train", "--steps", "2", "--report", "/dev/full", "--history", "h.csv")
        self.assertEqual(child.returncode, 1)
        self.assertIn(b"/dev/full", child.stderr)
        self.assertTrue((self.folder / "h.csv").exists())

    def test_plan_takes_the_option_and_writes_nothing(self):
        self.assertEqual(self.run_command("plan", "--report", "r.html").returncode, 0)
        self.assertEqual(os.listdir(self.folder), [])


if __name__ == "__main__":
    unittest.main()
