"""What tests/gpu_check makes of compute-sanitizer's reports."""

import re

# The bugs that prove a tool: it must report one of these, in such words.
PLANTED = {
    "memcheck": (["out_of_bounds"], r"Invalid __global__ write"),
    "racecheck": (["race"], r"[Rr]ace reported|[Hh]azard"),
    "initcheck": (["uninitialized"], r"Uninitialized __global__ memory read"),
    "synccheck": (["divergent_barrier", "wrong_warp_mask"], r"Barrier error|[Dd]ivergent thread|Invalid arguments"),
}
# What the tools say where the machine does not let them work.
REFUSED = r"not supported|[Pp]ermission denied|not permitted|LibraryNotLoaded|Unable to|error while loading"
REPORTED = 99  # the exit status that compute-sanitizer is told to end with where it has something to report

# The tests under each tool, small ones of every plan, form and formulation first: a tool slows a kernel a hundred
# times. `EXACT` is IsExactOnTinyIntegers where a program has such tests, else IsExactOnSmallIntegers.
EXACT = "*EXACT*"
KERNELS = "*OfIntegers*:*BitForBit*:*SgdUpdate*:*SameSamplesOfEachMatrix*"
GENERAL = {"small_product_test": "*OfIntegers*", "tensor_test": "*SumsGoOn*", "fused_test": "*OneStepIsExact*",
           "fused_executor_test": "*OneStepIsExact*",
           "cuda_optimizer_test": "*InTheMiddleOfAnEpoch*", "cuda_device_arrays_test": "*PredictIsTaken*/graph",
           "cuda_watching_test": "*ValidationDataOutlive*", "cuda_precision_test": "*OnSmallIntegers*"}
TESTS = {
    "memcheck": {"cuda_conformance_test": f"{EXACT}:*OneCallEqualsThreeCalls*:*WrittenInBetween*",
                 "two_layer_test": f"{EXACT}:*NaNShows*",
                 "on_chip_test": f"{EXACT}:*NaNShows*", "cuda_kernels_test": KERNELS, "cuda_gpu_test": "-*Large*", **GENERAL},
    "racecheck": {"cuda_conformance_test": EXACT, "two_layer_test": EXACT, "on_chip_test": EXACT,
                  "cuda_kernels_test": KERNELS, **GENERAL},
    "initcheck": {"cuda_conformance_test": EXACT, "two_layer_test": EXACT, "on_chip_test": EXACT,
                  "cuda_kernels_test": KERNELS, **GENERAL},
    "synccheck": {"cuda_conformance_test": EXACT, "two_layer_test": EXACT, "on_chip_test": EXACT,
                  "cuda_kernels_test": KERNELS, **GENERAL},
}  # fmt: skip


def filter_of(tool, program, listed):
    """The --gtest_filter for a program that lists these tests."""
    name = "IsExactOnTinyIntegers" if "IsExactOnTinyIntegers" in listed else "IsExactOnSmallIntegers"
    return TESTS[tool][program].replace("EXACT", name)


def tool_command(sanitizer, tool):
    # Errors that the API returns are the tests' own to judge: some cause them on purpose.
    quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [sanitizer, "--tool", tool, "--error-exitcode", REPORTED, "--print-limit", 1000, *quiet]


def reports_in(status, text):
    """How many errors and hazards a tool reports; None where it did not come to an end."""
    found = [int(number) for number in re.findall(r"RACECHECK SUMMARY: (\d+) hazards? displayed", text)
             + re.findall(r"ERROR SUMMARY: (\d+) error", text)]  # fmt: skip
    if not found:
        return None
    return max(found + [1 if status == REPORTED else 0])


def excerpt(text, lines=25):
    """The reports in a tool's output, or its end."""
    reports = [line for line in text.splitlines() if line.startswith("=========") and line.strip("= ")]
    return "\n".join(reports[:lines] or text.rstrip().splitlines()[-lines:])
