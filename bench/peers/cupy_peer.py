"""CuPy: the plain loop of bench/numpy_loop.py on arrays of the GPU, through NumPy's own dispatch."""

import os

import common
import numpy_loop

os.environ["CUPY_TF32"] = "0"


def main() -> None:
    case = common.read_case()
    common.only_in(case, "cupy", "fp32", "fp64")
    common.plain_only(case, "cupy")
    if case.device != "cuda":
        common.cannot(case, "cupy", "runs on a GPU only")
    import cupy

    x, y = cupy.asarray(case.x), cupy.asarray(case.y)

    def prepare():
        weights, biases = case.copies(cupy.asarray)
        cupy.cuda.Device().synchronize()

        def run():
            losses = numpy_loop.train(x, y, weights, biases, case.steps, case.rate)
            values = cupy.stack(losses).get()
            cupy.cuda.Device().synchronize()
            return values

        return run

    common.serve(case, "cupy", cupy.__version__, [common.Row("cupy", prepare, common.includes(case))], {})


if __name__ == "__main__":
    main()
