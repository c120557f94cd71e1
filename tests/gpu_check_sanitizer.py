"""What tests/gpu_check makes of compute-sanitizer's reports."""

import re
import subprocess

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
GENERAL = {"small_product_test": "*OfIntegers*",
           "cuda_optimizer_test": "*InTheMiddleOfAnEpoch*", "cuda_device_arrays_test": "*PredictIsTaken*/graph",
           "cuda_watching_test": "*ValidationDataOutlive*"}
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


# ---- racecheck and the words that carry a tag
#
# In two_layer_kernel (cuda/kernels/two_layer.cu) the blocks of a cluster write words into each other's shared memory
# and poll their own: each word carries a number beside the value, in one piece, and no barrier stands between.
# racecheck knows barriers alone and reports each such pair. Only these are accepted. The machine code tells them apart:
# atomic loads and stores are those marked .STRONG.GPU, and of shared memory the kernel accesses only tagged words so.
# gram_two_layer_kernel has its words in global memory, which racecheck does not watch.

KERNEL = r"(?<![A-Za-z_])two_layer_kernel(?:I([fd])Li(\d+)E|<(float|double), ?(?:\(int\))?(\d+)>)"
ACCESS = r"(Read|Write) access at (.+)\+0x([0-9a-f]+)(?: in \S+)?"


def kernel_key(name):
    """('f' or 'd', lanes) of a two_layer_kernel, mangled or not; None for any other."""
    found = re.search(KERNEL, name)
    return (found.group(1) or found.group(3)[0], found.group(2) or found.group(4)) if found else None


def tagged_accesses(sass):
    """From the lines of `cuobjdump --dump-sass PROGRAM`: where each two_layer_kernel loads and stores atomically, as
    {(kernel's key, 'Read' or 'Write'): {offset, ...}}."""
    found, kernel = {}, None
    for line in sass:
        if "Function :" in line:
            kernel = kernel_key(line)
        elif kernel:
            access = re.search(r"/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?(LD|ST)\.\S*STRONG\.GPU", line)
            if access:
                kind = "Read" if access.group(2) == "LD" else "Write"
                found.setdefault((kernel, kind), set()).add(int(access.group(1), 16))
    return found


def dump_tagged_accesses(cuobjdump, program):
    """The same of a program, by cuobjdump; nothing where that fails, so that no hazard is accepted."""
    try:
        child = subprocess.Popen([cuobjdump, "--dump-sass", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                 text=True, errors="replace")  # fmt: skip
    except (OSError, TypeError):
        return {}
    with child:
        return tagged_accesses(child.stdout)


def judge_races(text, tagged):
    """Of racecheck's output: {"accepted": number of reports, "hazards": that they count, "refused": a line for each
    other one}; None where the output is not whole."""
    summary = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed", text)
    if summary is None or "Maximum number of hazards reached" in text:
        return None
    races, refused = [], []
    for line in text.splitlines():
        if re.match(r"=+ \w+: Race reported between ", line):
            races.append([line])
        elif races and re.match(r"=+\s+and (Read|Write) access at ", line):
            races[-1].append(line)
        elif re.match(r"=+ +(Error|ERROR|Fatal|Potential|Invalid|Deadlock|Internal)", line):
            refused.append(line)
    if len(races) != int(summary.group(1)) or any(len(race) < 2 for race in races):
        return None
    accepted, hazards = 0, 0
    for race in races:
        if is_tagged([re.search(ACCESS, line) for line in race], tagged):
            accepted += 1
            hazards += sum(int(number) for number in re.findall(r"\[(\d+) hazards?\]", "\n".join(race)))
        else:
            refused.append(" ".join(re.sub(r"^=+\s+", "", line) for line in race))
    return {"accepted": accepted, "hazards": hazards, "refused": refused}


def is_tagged(accesses, tagged):
    """Whether some accesses are the write of a tagged word and its polls, or its poll and writes, in one kernel."""
    if not all(accesses):
        return False
    kinds, kernels = [access.group(1) for access in accesses], {kernel_key(access.group(2)) for access in accesses}
    return (
        len(kernels) == 1
        and None not in kernels
        and all(kind != kinds[0] for kind in kinds[1:])
        and all(int(access.group(3), 16) in tagged.get((kernel_key(access.group(2)), access.group(1)), ())
                for access in accesses)  # fmt: skip
    )


def excerpt(text, lines=25):
    """The reports in a tool's output, or its end."""
    reports = [line for line in text.splitlines() if line.startswith("=========") and line.strip("= ")]
    return "\n".join(reports[:lines] or text.rstrip().splitlines()[-lines:])
