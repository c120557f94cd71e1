"""What tests/gpu_check --pack gathers in a folder, for a machine that lacks it: the libraries that the project is built
with, as sources or archives, and with --binaries the programs of a build."""

import datetime
import hashlib
import json
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile

from gpu_check_machine import (ROOT, cache_entry, commit_here, find_cmake, nvcc_command, output_of, prefix_path, stop,
                               toolkit_version)  # fmt: skip

LIMIT = 64 << 20
MANIFEST = "BINARIES.json"
ARCHIVE = "binaries.tar.xz"
# The programs have the same library in them: a window that holds several of them sees that.
COMPRESSION = [{"id": lzma.FILTER_LZMA2, "preset": 2, "dict_size": 64 << 20}]


def packed_commit(packages):
    try:
        words = (packages / "COMMIT").read_text().split()
        return {"commit": words[0], "dirty": "dirty" in words[1:], "commit_from": "COMMIT, written when packing"}
    except (OSError, IndexError, TypeError):
        return {"commit": None, "dirty": None, "commit_from": None}


def pack(folder, build):
    folder = pathlib.Path(folder).resolve()
    marker = folder / "COMMIT"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        stop(f"{folder} holds other files: name a new folder, or one that --pack has made")
    packages = find_packages()
    with tempfile.TemporaryDirectory(prefix="gpu-check-pack-") as name:
        made = pathlib.Path(name) / "packed"
        made.mkdir()
        said = pack_binaries(made, pathlib.Path(build).resolve()) if build else None
        pack_packages(made, packages)
        commit = commit_here() or {"commit": "unknown", "dirty": False}
        (made / "COMMIT").write_text(commit["commit"] + (" dirty" if commit["dirty"] else "") + "\n")
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        if size > LIMIT:
            stop(f"{size / 2**20:.1f} MiB, more than {LIMIT >> 20}: pack a build for one architecture, configured with "
                 "-DDEVICELOOP_BLAS=OWN")  # fmt: skip
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(made), str(folder))
    print(f"{folder}: {size / 2**20:.1f} MiB, commit {marker.read_text().strip()}, for {os.uname().machine}")
    if said:
        print(said)


# ---- packages

GTEST_CONFIG = """# GoogleTest from its source, compiled with the project that looks for it.
if(NOT TARGET GTest::gtest_main)
  set(GOOGLETEST_VERSION @version@)
  set(INSTALL_GTEST OFF CACHE BOOL "" FORCE)
  get_filename_component(gtest_source "${CMAKE_CURRENT_LIST_DIR}/../../../src/googletest" ABSOLUTE)
  add_subdirectory("${gtest_source}" "${CMAKE_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL)
  foreach(gtest_target gtest gtest_main)
    get_target_property(gtest_include ${gtest_target} INTERFACE_INCLUDE_DIRECTORIES)
    set_target_properties(${gtest_target} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${gtest_include}")
    target_compile_options(${gtest_target} PRIVATE -w)
    if(NOT TARGET GTest::${gtest_target})
      add_library(GTest::${gtest_target} ALIAS ${gtest_target})
    endif()
  endforeach()
endif()
set(GTest_FOUND TRUE)
"""
GTEST_VERSION = """set(PACKAGE_VERSION @version@)
set(PACKAGE_VERSION_COMPATIBLE TRUE)
"""


def find_packages():
    """Where each file or folder to pack lies here, by its place in the pack; and GoogleTest's version."""
    prefixes = [pathlib.Path(each) for each in (*prefix_path(), "/usr/local", "/usr")]

    def find(what, package, *places):
        for prefix in prefixes:
            for place in places:
                for found in sorted(prefix.glob(place)):
                    return found
        stop(f"{what} is not here; on Debian: apt-get install {package}")

    machine = os.uname().machine
    google = find("GoogleTest's source", "googletest", "src/googletest/googletest/CMakeLists.txt",
                  "src/gtest/CMakeLists.txt").parent  # fmt: skip
    copies = {
        "include/nlohmann": find("nlohmann-json", "nlohmann-json3-dev", "include/nlohmann/json.hpp").parent,
        "share/cmake/nlohmann_json": find("nlohmann-json's CMake package", "nlohmann-json3-dev",
                                          "share/cmake/nlohmann_json/nlohmann_jsonConfig.cmake",
                                          "lib*/cmake/nlohmann_json/nlohmann_jsonConfig.cmake").parent,
        "include/CLI": find("CLI11", "libcli11-dev", "include/CLI/CLI.hpp").parent,
        "share/cmake/CLI11": find("CLI11's CMake package", "libcli11-dev", "share/cmake/CLI11/CLI11Config.cmake",
                                  "lib*/cmake/CLI11/CLI11Config.cmake").parent,
        "include/Random123": find("Random123", "librandom123-dev", "include/Random123/philox.h").parent,
        "include/zlib.h": find("zlib", "zlib1g-dev", "include/zlib.h"),
        "include/zconf.h": find("zlib", "zlib1g-dev", "include/zconf.h", f"include/{machine}-linux-gnu/zconf.h"),
        "lib/libz.a": find("zlib's static library", "zlib1g-dev", f"lib/{machine}-linux-gnu/libz.a", "lib*/libz.a"),
        **{f"src/googletest/{part}": google / part for part in ("CMakeLists.txt", "cmake", "include", "src")},
    }  # fmt: skip
    texts = [path.read_text(errors="replace") for path in (google.parent / "CMakeLists.txt", google / "CMakeLists.txt")
             if path.exists()]  # fmt: skip
    version = re.search(r"GOOGLETEST_VERSION ([0-9.]+)", "\n".join(texts))
    return copies, version.group(1) if version else "1.0.0"


def pack_packages(folder, packages):
    copies, version = packages
    for target, source in copies.items():
        to = folder / target
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to)
        else:
            shutil.copyfile(source, to)
    config = folder / "share/cmake/GTest"
    config.mkdir(parents=True)
    (config / "GTestConfig.cmake").write_text(GTEST_CONFIG.replace("@version@", version))
    (config / "GTestConfigVersion.cmake").write_text(GTEST_VERSION.replace("@version@", version))
    (folder / ".gitignore").write_text("*\n")


# ---- binaries

TOOLS = {"probe": "bench/probe/main.cu", "planted_bugs": "tests/gpu/planted_bugs.cu"}
# What every machine with a GPU driver has; any other library travels along.
USUAL_LIBRARIES = r"(linux-vdso|ld-linux.*|libc|libstdc\+\+|libm|libgcc_s|libdl|libpthread|librt)\.so.*"


def gpu_tests(ctest, build):
    """What ctest knows of the GoogleTest programs that see the GPUs: {program: {"label": ..., "tests": number}}."""
    try:
        listed = json.loads(output_of([ctest, "--test-dir", build, "--show-only=json-v1"])).get("tests", [])
    except (TypeError, ValueError):
        listed = []
    programs = {}
    for test in listed:
        command = test.get("command", [])
        properties = {each["name"]: each["value"] for each in test.get("properties", [])}
        label = (properties.get("LABELS") or [""])[0]
        hidden = any(each.startswith("CUDA_VISIBLE_DEVICES") for each in properties.get("ENVIRONMENT", []))
        if len(command) > 1 and command[1].startswith("--gtest_filter") and label in ("gpu", "host") and not hidden:
            programs.setdefault(pathlib.Path(command[0]).name, {"label": label, "tests": 0})["tests"] += 1
    return programs


def libraries_of(program, environment):
    """{name: path, or None where it is not found} of the shared libraries that a program loads at its start."""
    result = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, **environment})  # fmt: skip
    text = result.stdout.decode(errors="replace")
    found = re.findall(r"^\s*(\S+\.so\S*)(?: => (not found|\S+))?", text, re.MULTILINE)
    return {pathlib.Path(name).name: None if path == "not found" else path or name for name, path in found}


def commit_of_build(build):
    """Of the sources that a build folder was built from: its own record, as deviceloop_bench prints it."""
    try:
        return re.search(r'"(\w+)"', (build / "bench/commit/commit.h").read_text()).group(1)
    except (OSError, AttributeError):
        return "unknown"


def pack_binaries(folder, build):
    """Puts into `folder` the programs of a build that gpu_check runs, and what is known of them; returns a line."""
    _, ctest = find_cmake()
    tests = gpu_tests(ctest, build)
    if not any(row["label"] == "gpu" for row in tests.values()):
        stop(f"--binaries {build}: ctest knows no test of a GPU there; give a build folder with CUDA, all of it built")
    nvcc, archs = cache_entry(build, "CMAKE_CUDA_COMPILER")[1], cache_entry(build, "CMAKE_CUDA_ARCHITECTURES")[1]
    archs = re.findall(r"[0-9]{2,3}[af]?", archs or "")
    if not nvcc or not archs:
        stop(f"--binaries {build}: its cache names no nvcc or no CMAKE_CUDA_ARCHITECTURES; configure it with "
             "-DCMAKE_CUDA_ARCHITECTURES=90, or what the GPU is")  # fmt: skip
    programs = ["deviceloop", "deviceloop_bench", *sorted(tests)]
    missing = [name for name in programs if not os.access(build / "bin" / name, os.X_OK)]
    if missing:
        stop(f"--binaries {build}: bin/ lacks {', '.join(missing)}; build all of it")

    files = folder / "files"
    (files / "bin").mkdir(parents=True)
    (files / "lib").mkdir()
    for name in programs:
        shutil.copy(build / "bin" / name, files / "bin" / name)
    for name, source in TOOLS.items():
        if output_of(nvcc_command(nvcc, archs[0], source, files / "bin" / name), 300) is None:
            stop(f"{nvcc} does not compile {source} for sm_{archs[0]}")
    libraries = {}
    for path in sorted((files / "bin").iterdir()):
        libraries.update(libraries_of(path, {}))
        if shutil.which("strip"):
            subprocess.run(["strip", path], stderr=subprocess.DEVNULL)
    libraries = {name: path for name, path in libraries.items() if not re.fullmatch(USUAL_LIBRARIES, name)}
    for name, path in libraries.items():
        if path is None:
            stop(f"--binaries {build}: {name} is not found here, so that the programs cannot be started")
        shutil.copy(path, files / "lib" / name)

    manifest = {
        "commit": commit_of_build(build),
        "archs": archs,
        "cuda": toolkit_version(nvcc),
        "build_type": cache_entry(build, "CMAKE_BUILD_TYPE")[1],
        "packed": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": os.uname().machine,
        "programs": sorted(path.name for path in (files / "bin").iterdir()),
        "libraries": sorted(libraries),
        "tests": tests,
    }
    archive = folder / ARCHIVE
    with lzma.open(archive, "wb", filters=COMPRESSION) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for place in ("bin", "lib"):
            tar.add(files / place, place)
    shutil.rmtree(files)
    manifest["sha256"] = hashlib.sha256(archive.read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    carried = f", with {', '.join(sorted(libraries))}" if libraries else ""
    return (f"programs of commit {manifest['commit']} for sm_{', sm_'.join(archs)}, CUDA {manifest['cuda']}, "
            f"{archive.stat().st_size / 2**20:.1f} MiB{carried}")  # fmt: skip


def read_manifest(packages):
    """What is known of the binaries in a packed folder, or None where it has none."""
    try:
        return json.loads((packages / MANIFEST).read_text()) if packages else None
    except OSError:
        return None
    except ValueError as error:
        stop(f"{packages / MANIFEST}: {error}; pack anew")


def library_environment(unpacked):
    """The environment that unpacked programs need, in which they find the libraries that this machine lacks."""
    used = unpacked / "used"
    paths = [str(used), *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, paths))} if used.is_dir() and any(used.iterdir()) else {}


def unpack_binaries(packages, manifest, to):
    """Unpacks them into the folder `to`."""
    archive = packages / ARCHIVE
    if not archive.exists() or hashlib.sha256(archive.read_bytes()).hexdigest() != manifest["sha256"]:
        raise ValueError(f"{archive.name} is not the one that was packed: carry it anew")
    shutil.rmtree(to, ignore_errors=True)
    with tarfile.open(archive) as tar:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(to, **safely)
    # Only the libraries that this machine lacks, found one below the other: other programs that are started with this
    # environment, such as a Python with PyTorch, keep their own.
    (to / "used").mkdir()
    while True:
        found = [libraries_of(to / "bin" / name, library_environment(to)) for name in manifest["programs"]]
        lacking = {name for libraries in found for name, path in libraries.items() if path is None}
        lacking = [name for name in lacking if (to / "lib" / name).exists()]
        if not lacking:
            return
        for name in lacking:
            os.replace(to / "lib" / name, to / "used" / name)
