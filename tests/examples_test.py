#!/usr/bin/env python3
"""What README's blocks do not show of the examples: that they say in one line what is wrong with their input, and that
the network which examples/regression.cpp saves takes and gives numbers in the units of the file.

    tests/examples_test.py build/examples build/bin/deviceloop
"""

import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import unittest

EXAMPLES = pathlib.Path(sys.argv[1]).resolve()
COMMAND = pathlib.Path(sys.argv[2]).resolve()


def run(folder: str, program: pathlib.Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def read_npy(path: pathlib.Path) -> "tuple[float, ...]":
    """The elements of a float64 array."""
    content = path.read_bytes()
    begin = 10 + int.from_bytes(content[8:10], "little")
    assert b"'<f8'" in content[:begin], content[:begin]
    return struct.unpack(f"<{(len(content) - begin) // 8}d", content[begin:])


class Examples(unittest.TestCase):
    def refused(self, program: str, text: str, *words: str, arguments: "tuple[str, ...]" = ()) -> None:
        with tempfile.TemporaryDirectory(prefix="deviceloop-examples-") as folder:
            pathlib.Path(folder, "d.csv").write_text(text, encoding="utf-8")
            done = run(folder, EXAMPLES / program, *(arguments or ("d.csv",)))
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, rf"\A{program}: [^\n]+\n\Z")
        for word in words:
            self.assertIn(word, done.stderr)

    def test_say_what_is_wrong(self) -> None:
        rows = "1,2\n" * 20
        self.refused("regression", "", "none.csv cannot be opened", arguments=("none.csv",))
        self.refused("regression", "", "usage: regression [FILE [TARGET]]", arguments=("a", "b", "c"))
        self.refused("regression", "a,y\n" + rows, "'price'", "a, y", arguments=("d.csv", "price"))
        self.refused("regression", "a,y\n" + "1,2\n" * 19, "d.csv", "20 rows")
        self.refused("regression", "y\n" + "1\n" * 20, "column beside the target")
        self.refused("regression", "a,y\n1,2\n1,x\n", "d.csv, line 3", "'x' is not a number")
        self.refused("regression", "a,y\n1,2\n1,2.5kg\n", "line 3", "'2.5kg'")
        self.refused("regression", "a,y\n1,\n", "line 2", "'' is not a number")
        self.refused("regression", "a,y\n1,2\n\n1,2,3\n", "line 4", "3 fields", "2 columns")
        self.refused("regression", "a,y\n1,nan\n" + rows, "line 2", "'nan'")
        self.refused("regression", "a,y\n", "no rows")
        self.refused("regression", "", "no rows")
        self.refused("digits", "a,y\n" + rows, "2 columns", "784 pixels")
        names = ",".join(f"x{i}" for i in range(784)) + ",y\n"
        row = "0," * 784
        self.refused("digits", names + (row + "3\n") * 5, "5 rows", "100")
        self.refused("digits", names + (row + "3\n") * 99 + row + "10\n", "row 19 is 10", "from 0 to 9")
        self.refused("digits", names + (row + "3\n") * 99 + row + "1.5\n", "row 19 is 1.5", "from 0 to 9")

    def test_c_and_fortran_print_what_the_command_does(self) -> None:
        def losses(output: str) -> "list[str]":
            return re.findall(r"^\d+: [\d.]+$", output, re.MULTILINE)

        with tempfile.TemporaryDirectory(prefix="deviceloop-examples-") as folder:
            expected = losses(run(folder, COMMAND, "train").stdout)
            self.assertEqual((len(expected), expected[-1][:5]), (15, "499: "))
            for name, language in (("starting_case", "C"), ("starting_case_fortran", "Fortran")):
                with self.subTest(name):
                    if not (EXAMPLES / name).exists():
                        self.skipTest(f"{name} was not built: no compiler for {language}")
                    done = run(folder, EXAMPLES / name)
                    self.assertEqual((done.returncode, done.stderr), (0, ""))
                    self.assertEqual(done.stdout.splitlines(), expected)

    def test_saved_regression_takes_the_columns_as_they_are(self) -> None:
        with tempfile.TemporaryDirectory(prefix="deviceloop-examples-") as folder:
            made = run(folder, COMMAND, "data", "--task", "friedman", "--samples", "600", "--data", "all.csv", "--quiet")
            self.assertEqual(made.returncode, 0, made.stderr)
            # A target in the middle, and columns of very different sizes, one of them constant.
            lines = pathlib.Path(folder, "all.csv").read_text(encoding="utf-8").splitlines()
            table = [[float(field) for field in line.split(",")] for line in lines[1:]]
            inputs = [[1e4 * row[0] + 5e3, row[1], row[2], -1e-3 * row[3], row[4], 7] for row in table]
            rows = [",".join(map(repr, [*x[:2], 1000 * row[-1], *x[2:]])) for x, row in zip(inputs, table)]
            pathlib.Path(folder, "d.csv").write_text("a,b,price,c,d,e,f\r\n" + "\r\n".join(rows) + "\r\n", newline="")
            done = run(folder, EXAMPLES / "regression", "d.csv", "price")
            self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
            quality = re.search(r"error (\S+), R\^2 (\S+) \(the mean alone: (\S+)\)", done.stdout)
            assert quality is not None, done.stdout
            self.assertGreater(float(quality[2]), 0.8)
            self.assertLess(float(quality[1]), 0.5 * float(quality[3]))

            shown = re.findall(r"row (\d+): price (\S+), predicted (\S+)", done.stdout)
            self.assertEqual(len(shown), 3)
            x = [",".join(map(repr, inputs[int(number) - 1])) for number, _, _ in shown]
            pathlib.Path(folder, "x.csv").write_text("\n".join(x) + "\n", encoding="utf-8")
            predicted = run(folder, COMMAND, "predict", "--device", "cpu", "--precision", "fp64", "--weights",
                            "regression.safetensors", "--x", "x.csv", "--out", "p.npy")  # fmt: skip
            self.assertEqual(predicted.returncode, 0, predicted.stderr)
            for (number, target, prediction), value in zip(shown, read_npy(pathlib.Path(folder, "p.npy"))):
                self.assertEqual(target, f"{1000 * table[int(number) - 1][-1]:.2f}")
                self.assertAlmostEqual(float(prediction), value, delta=0.006)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
