"""NumPy: the plain loop, bench/numpy_loop.py. It runs on the CPU whatever the device of the others."""

import ctypes
import pathlib

import common
import numpy as np
import numpy_loop


def blas() -> str:
    """The OpenBLAS that was loaded and the kernels it chose: an old one may not know a new processor."""
    paths = {line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if "blas" in line}
    for path in sorted(path for path in paths if path.startswith("/")):
        for symbol in ("openblas_get_corename", "scipy_openblas_get_corename64_"):
            try:
                function = getattr(ctypes.CDLL(path), symbol)
            except (OSError, AttributeError):
                continue
            function.restype = ctypes.c_char_p
            return f"OpenBLAS {function().decode()} kernels"
    return "BLAS not told"


def main() -> None:
    case = common.read_case()
    common.only_in(case, "numpy", "fp32", "fp64")
    common.plain_only(case, "numpy")

    def prepare():
        weights, biases = case.copies(lambda array: array)
        return lambda: numpy_loop.train(case.x, case.y, weights, biases, case.steps, case.rate)

    note = "" if case.once else blas()  # what takes time only for the note is no part of a cold start
    row = common.Row("numpy", prepare, common.includes(case, device="cpu", note=note))
    common.serve(case, "numpy", np.__version__, [row], {})


if __name__ == "__main__":
    main()
