"""What tests/gpu_check asks of the machine: its GPU, the toolkit, CMake, the commit, and a build folder's cache."""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def stop(message):
    print("gpu_check: " + message, file=sys.stderr)
    sys.exit(2)


def first_file(candidates):
    for candidate in candidates:
        if candidate and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return str(candidate)
    return None


def output_of(command, timeout=60):
    """The standard output of a short command, or None where it fails."""
    try:
        result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                stdin=subprocess.DEVNULL, timeout=timeout, cwd=ROOT)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.decode(errors="replace") if result.returncode == 0 else None


# ---- the GPU


def cuda_driver_gpu():
    """The first GPU that CUDA shows, as a dictionary, or a string that says why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the driver's libcuda.so.1 is not installed"
    code = driver.cuInit(0)
    if code != 0:
        return f"the driver finds none (cuInit returns {code})"
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    if driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return "the driver shows none"
    name, pci = ctypes.create_string_buffer(256), ctypes.create_string_buffer(64)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetPCIBusId(pci, len(pci), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    driver.cuDriverGetVersion(ctypes.byref(version))
    return {"name": name.value.decode(errors="replace"), "compute_capability": f"{major.value}.{minor.value}",
            "pci": pci.value.decode(), "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}  # fmt: skip


def smi_fields(fields, pci):
    """What nvidia-smi says of each field, as a dictionary; fields that it does not know are left out."""
    smi = shutil.which("nvidia-smi") or first_file(["/usr/bin/nvidia-smi", "/usr/local/nvidia/bin/nvidia-smi"])
    values = {}
    for names in [fields] if smi else []:
        select = ["-i", pci] if pci else []
        text = output_of([smi, *select, "--query-gpu=" + ",".join(names), "--format=csv,noheader,nounits"])
        if text is None and len(names) > 1:
            for name in names:
                values.update(smi_fields([name], pci))
        elif text and text.strip():
            values.update(zip(names, (value.strip() for value in text.splitlines()[0].split(","))))
    return {name: value for name, value in values.items() if value and not value.startswith("[")}


CLOCKS = ["clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"]


def find_gpu():
    """The GPU as a dictionary, or a string that says why there is none."""
    gpu = cuda_driver_gpu()
    if isinstance(gpu, str):
        shown = smi_fields(["name"], None).get("name")
        return gpu + (f", although nvidia-smi shows a {shown}" if shown else "")
    pci = gpu.pop("pci")
    gpu["memory_mib"] = smi_fields(["memory.total"], pci).get("memory.total")
    gpu["driver"] = smi_fields(["driver_version"], pci).get("driver_version")
    gpu["clocks"] = smi_fields(CLOCKS, pci)
    gpu["state"] = smi_fields(["power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current",
                               "compute_mode", "persistence_mode"], pci)  # fmt: skip
    gpu["pci"] = pci
    return gpu


# ---- programs


def wheel_folders():
    """The folders nvidia/* of the Python packages here, where pip puts NVIDIA's tools."""
    return [folder for path in sys.path if path for folder in sorted(pathlib.Path(path).glob("nvidia/*"))]


def find_cuda_tool(name, packages=None):
    """A program of the CUDA toolkit, or None."""
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    folders = [pathlib.Path(home) for home in homes if home] + [pathlib.Path("/usr/local/cuda")] + wheel_folders()
    folders += sorted(packages.glob("nvidia/*")) if packages else []
    return first_file([shutil.which(name)] + [folder / place / name for folder in folders
                                              for place in ("bin", "compute-sanitizer")])  # fmt: skip


def find_nvcc():
    """The path of nvcc, or None."""
    named = os.environ.get("CUDACXX")
    return first_file([named, shutil.which(named) if named else None]) or find_cuda_tool("nvcc")


def toolkit_version(nvcc):
    version = re.search(r"release [0-9.]+, V([0-9.]+)", output_of([nvcc, "--version"]) or "")
    if version is None:
        stop(f"{nvcc} --version does not say its release; name another nvcc in CUDACXX")
    return version.group(1)


def nvcc_command(nvcc, arch, source, output):
    """Compiles a program for one architecture; `source` includes all that it is made of."""
    return [nvcc, "-std=c++20", "-O3", "-lineinfo", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-I",
            ROOT / "include", "-o", output, ROOT / source]  # fmt: skip


def find_cmake():
    cmake = shutil.which("cmake")
    if cmake is None:
        stop("no cmake: install CMake 3.22 or newer")
    found = re.search(r"version ([0-9]+)\.([0-9]+)", output_of([cmake, "--version"]) or "")
    if found is None or (int(found.group(1)), int(found.group(2))) < (3, 22):
        stop(f"{cmake} is too old, or does not run: CMake 3.22 or newer is needed")
    ctest = first_file([os.path.join(os.path.dirname(cmake), "ctest"), shutil.which("ctest")])
    if ctest is None:
        stop(f"no ctest beside {cmake}")
    return cmake, ctest


def cores():
    return len(os.sched_getaffinity(0))


def compile_jobs():
    """As many as cores, but 2 GiB of memory for each: nvcc takes about that."""
    if os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "").isdigit():
        return max(1, int(os.environ["CMAKE_BUILD_PARALLEL_LEVEL"]))
    try:
        available = int(re.search(r"MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text()).group(1))
    except (OSError, AttributeError):
        return cores()
    return max(1, min(cores(), available >> 21))


# ---- the checkout, and a build folder


def commit_here():
    """The commit in git and whether files were changed since, or None."""
    commit = output_of(["git", "rev-parse", "HEAD"])
    if commit is None:
        return None
    changes = output_of(["git", "status", "--porcelain", "--", ".", ":!bench/results"])
    return {"commit": commit.strip(), "dirty": changes is None or changes != "", "commit_from": "git"}


def cache_entry(folder, name):
    """The type and the value in a build folder's cache, or None for both."""
    try:
        text = (folder / "CMakeCache.txt").read_text(errors="replace")
    except OSError:
        return None, None
    found = re.search(rf"^{name}:(\w+)=(.*)$", text, re.MULTILINE)
    return found.groups() if found else (None, None)


def prefix_path():
    return [each for each in re.split("[:;]", os.environ.get("CMAKE_PREFIX_PATH", "")) if each]
