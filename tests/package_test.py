#!/usr/bin/env python3
"""The packages that cpack makes of a build folder: what is in them, what they depend on, and that programs are built
against them and give the losses of the command that is in them.

    tests/package_test.py build                      unpacks them into folders; no network
    tests/package_test.py build --chroot bookworm    also installs them by apt-get into a minimal system made of that
                                                     suite by mmdebstrap, or into one that there is (a folder); as root

Ends with 77, skipped, where no Debian packages can be made, and says why. That `cmake --install` can be moved, and what
README shows of it, is for tests/install/run.cmake.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIPPED = 77
COMPONENTS = ("deviceloop_runtime", "deviceloop_development", "deviceloop_command")
# The same run as that of tests/install/losses.cpp.
SAME_RUN = shlex.split("train --device cpu --precision fp64 --layers 40,50,3 --bias --samples 96 --steps 60 --lr 1e-5")
# What lintian says and the packages keep, with the reasons in packaging/README.md.
ACCEPTED_TAGS = ["initial-upload-closes-no-bugs"]
CUDA_TAGS = ["pkg-config-bad-directive"]  # the folder of CUDA's static runtime, outside /usr/lib

BUILD = pathlib.Path()  # the arguments, and what the build folder says
CHROOT = ""
CACHE: "dict[str, str]" = {}
VERSION = ""


def run(*command: object, **options: object) -> str:
    """What the command prints; it must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=900, **options)
    if done.returncode != 0:
        raise AssertionError(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def pack(generator: str, folder: pathlib.Path, **environment: str) -> "list[pathlib.Path]":
    """The packages that cpack makes of the build folder."""
    run("cpack", "-G", generator, "-B", folder, cwd=BUILD, env={**os.environ, **environment})
    return sorted(path for path in folder.iterdir() if path.is_file())


def files_below(folder: pathlib.Path) -> "dict[str, str]":
    """Each file by its path, with a digest of its content, or the target of a link."""
    files = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            files[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def losses(history: str) -> "list[float]":
    lines = history.splitlines()
    assert lines[0] == "step,loss", history
    return [float(line.split(",")[1]) for line in lines[1:]]


def dependencies(field: str) -> "dict[str, str]":
    """Package: version, "" where any will do. Of alternatives the first."""
    found = {}
    for item in filter(None, (part.strip() for part in field.split(","))):
        match = re.match(r"(\S+)(?: \(([^)]*)\))?", item)
        found[match[1]] = match[2] or ""
    return found


class Package:
    """One .deb, unpacked."""

    def __init__(self, path: pathlib.Path, folder: pathlib.Path) -> None:
        self.path = path
        self.folder = folder / path.stem
        self.control_folder = folder / f"{path.stem}.control"
        self.folder.mkdir(parents=True)
        run("dpkg-deb", "--extract", path, self.folder)
        run("dpkg-deb", "--control", path, self.control_folder)
        control = (self.control_folder / "control").read_text()
        self.fields = dict(re.findall(r"^([^\s:]+): (.*)$", control, re.MULTILINE))
        self.files = files_below(self.folder)

    def depends(self) -> "dict[str, str]":
        return dependencies(self.fields.get("Depends", ""))


def consumer_lines() -> str:
    """README's lines of CMake, and a second program."""
    blocks = re.findall(r"\n```cmake\n([^`]*)\n```\n", (ROOT / "README.md").read_text(encoding="utf-8"))
    lines = next(block for block in blocks if "find_package" in block)
    return lines + "\nadd_executable(losses losses.cpp)\ntarget_link_libraries(losses PRIVATE deviceloop::deviceloop)\n"


def write_consumer(folder: pathlib.Path) -> None:
    """Programs of a user, README's and one that prints all losses, and one in C, by a project without C++; and a script
    that builds them with the kinds of the library, by CMake and by pkg-config."""
    folder.mkdir(parents=True)
    run("cmake", f"-DREADME={ROOT / 'README.md'}", f"-DPROGRAM={folder / 'app.cpp'}",
        "-P", ROOT / "tests/readme_program/extract.cmake")  # fmt: skip
    shutil.copy(ROOT / "tests/install/losses.cpp", folder)
    for kind in ("shared", "static"):
        (folder / kind).mkdir()
        lines = consumer_lines().replace("REQUIRED", f"REQUIRED COMPONENTS {kind}").replace("app.cpp", "../app.cpp")
        (folder / kind / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.22)\nproject(consumer LANGUAGES CXX)\n"
            f"{lines.replace(' losses.cpp', ' ../losses.cpp')}"
        )
    shutil.copy(ROOT / "examples/starting_case.c", folder)
    (folder / "c").mkdir()
    (folder / "c/CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(consumer LANGUAGES C)\n"
        "find_package(deviceloop REQUIRED COMPONENTS shared)\nadd_executable(starting_case ../starting_case.c)\n"
        "target_link_libraries(starting_case PRIVATE deviceloop::deviceloop)\n"
    )
    (folder / "build.sh").write_text(
        """# build.sh [CMAKE_ARGUMENT...], in this folder: */app, */losses and */starting_case, with the kinds of the library
# that KINDS names
set -e
kinds="${KINDS:-shared static}"
for kind in $kinds c; do
  cmake -S $kind -B cmake_$kind "$@"
  cmake --build cmake_$kind
done
for kind in $kinds; do
  mkdir -p pkg_config_$kind
  if [ $kind = shared ]; then
    flags=$(pkg-config --cflags --libs deviceloop)
  else
    flags=$(pkg-config --cflags --libs --static deviceloop | sed 's/-ldeviceloop/-l:libdeviceloop.a/')
  fi
  for program in app losses; do
    ${CXX:-c++} -std=c++20 $program.cpp -o pkg_config_$kind/$program $flags
  done
  ${CC:-cc} -std=c99 starting_case.c -o pkg_config_$kind/starting_case $flags
done
"""
    )



class Case(unittest.TestCase):
    maxDiff = None

    def must_train_alike(self, consumer: pathlib.Path, inside: object, command: object, enter: "tuple[object, ...]" = (),
                         libraries: object = "", kinds: str = "shared static") -> None:  # fmt: skip
        """Each program of `consumer`, which is `inside` where `enter` leads, prints the losses of the command."""
        built = [f"{by}_{kind}" for by in ("cmake", "pkg_config") for kind in kinds.split()]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": str(libraries)}
        trained = run(*enter, command, "train", env=environment)
        ends = [re.search(rf"^{step}: ([0-9.]+)$", trained, re.MULTILINE)[1] for step in (0, 499)]
        run(*enter, command, *SAME_RUN, "--history", f"{inside}/history.csv", env=environment)
        history = losses((consumer / "history.csv").read_text())
        self.assertEqual(len(history), 60)
        self.assertLess(history[-1], history[0])
        for way in built:
            with self.subTest(way=way):
                printed = run(*enter, f"{inside}/{way}/app", env=environment)
                self.assertIn(f"loss {ends[0]} at step 0, {ends[1]} at step 499\n", printed)
                self.assertEqual(losses(run(*enter, f"{inside}/{way}/losses", env=environment)), history)
                needed = run("readelf", "-dW", consumer / way / "app")
                self.assertEqual("[libdeviceloop.so." in needed, way.endswith("shared"), needed)
        shown = re.findall(r"^\d+: [0-9.]+$", trained, re.MULTILINE)
        for way in ["cmake_c"] + [way for way in built if way.startswith("pkg_config")]:
            with self.subTest(way=way, language="C"):
                self.assertEqual(run(*enter, f"{inside}/{way}/starting_case", env=environment).splitlines(), shown)


class DebianPackages(Case):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="deviceloop-packages-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        paths = pack("DEB", cls.folder / "packed")
        packages = [Package(path, cls.folder / "unpacked") for path in paths]
        cls.packages = {package.fields["Package"]: package for package in packages}
        (cls.library,) = (package for name, package in cls.packages.items() if re.match(r"libdeviceloop\d", name))
        cls.development = cls.packages["libdeviceloop-dev"]
        cls.command = cls.packages["deviceloop"]
        cls.multiarch = run(CACHE["CMAKE_CXX_COMPILER"], "-print-multiarch").strip()
        cls.libraries = f"usr/lib/{cls.multiarch}"

    def soname(self) -> str:
        (file,) = self.library.folder.glob(f"{self.libraries}/libdeviceloop.so.*.*.*")
        return re.search(r"SONAME.*\[(.*)\]", run("readelf", "-dW", file))[1]

    def test_names_and_versions(self) -> None:
        soname = self.soname()
        self.assertEqual(self.library.fields["Package"], soname.replace(".so.", ""))
        self.assertEqual(len(self.packages), 3)
        changelog = (ROOT / "packaging/deb/changelog").read_text().splitlines()
        port = json.loads((ROOT / "packaging/vcpkg/ports/deviceloop/vcpkg.json").read_text())
        self.assertEqual(port["version"], VERSION)
        for name, package in self.packages.items():
            fields = package.fields
            self.assertRegex(fields["Version"], rf"^{re.escape(VERSION)}-[0-9]")
            self.assertIn(f"({fields['Version']})", changelog[0])
            self.assertTrue(any(line.startswith(f" -- {fields['Maintainer']}  ") for line in changelog))
            self.assertEqual(package.path.name, f"{name}_{fields['Version']}_{fields['Architecture']}.deb")
            self.assertEqual(fields.get("Multi-Arch"), None if name == "deviceloop" else "same")
        # What a program that is linked with the library depends on, and how the loader learns of it; no scripts.
        control = self.library.control_folder
        version = soname.split(".so.")[1]
        expected = f"libdeviceloop {version} {self.library.fields['Package']} (>= {VERSION})\n"
        self.assertEqual((control / "shlibs").read_text(), expected)
        self.assertEqual((control / "triggers").read_text(), "activate-noawait ldconfig\n")
        for package in self.packages.values():
            self.assertLessEqual(set(os.listdir(package.control_folder)), {"control", "md5sums", "shlibs", "triggers"})

    def test_contents(self) -> None:
        """All that `cmake --install` installs, in Debian's folders, each file in one package."""
        run("cmake", "--install", BUILD, "--prefix", self.folder / "installed")
        installed = files_below(self.folder / "installed")
        expected = set()
        library_folder = CACHE["CMAKE_INSTALL_LIBDIR"]
        for name in installed:
            if name.startswith(f"{library_folder}/"):
                expected.add(f"{self.libraries}{name[len(library_folder):]}")
            elif name.startswith("share/man/"):
                expected.add(f"usr/{name}.gz")
            elif not name.startswith("share/doc/"):
                expected.add(f"usr/{name}")
        headers = {f"usr/include/deviceloop/{path.name}" for path in (ROOT / "include/deviceloop").glob("*.h")}
        self.assertLessEqual(headers, expected)
        found: "list[str]" = []
        for name, package in self.packages.items():
            doc = f"usr/share/doc/{name}"
            for file in ("copyright", "changelog.gz", "changelog.Debian.gz"):
                self.assertIn(f"{doc}/{file}", package.files)
            found += [file for file in package.files if not file.startswith(f"{doc}/")]
        self.assertEqual(sorted(found), sorted(expected))
        soname = self.soname()
        self.assertEqual({name for name in self.library.files if "/doc/" not in name},
                         {f"{self.libraries}/{soname}", f"{self.libraries}/libdeviceloop.so.{VERSION}"})  # fmt: skip
        self.assertEqual(self.development.files[f"{self.libraries}/libdeviceloop.so"], f"link to {soname}")
        self.assertIn("usr/bin/deviceloop", self.command.files)
        self.assertIn("usr/share/doc/deviceloop/README.md", self.command.files)
        # The manual page knows the commands.
        page = (ROOT / "host/cli/deviceloop.1").read_text()
        listed = run(self.command.folder / "usr/bin/deviceloop", "--help").split("Commands")[1].split("Options:")[0]
        for name in re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE):
            self.assertIn(f"\n.TP\n.B {name}\n", page)

    def owners(self, file: str) -> "set[str]":
        """The installed packages that a file is of, found by the loader's name for it."""
        real = os.path.realpath(file)
        for path in (file, real, real.replace("/usr/lib", "/lib", 1), f"/usr{real}"):
            done = subprocess.run(["dpkg-query", "-S", path], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return {name.split(":")[0] for name in done.stdout.split(": /")[0].split(", ")}
        raise AssertionError(f"{file} ({real}) is of no package")

    def test_dependencies(self) -> None:
        """The binaries depend on the packages of the libraries that they load, or on one that needs such a package, as
        libopenblas0 does, and on no others."""
        library_needs = f"= {self.library.fields['Version']}"
        for package, binary in ((self.library, f"{self.libraries}/{self.soname()}"), (self.command, "usr/bin/deviceloop")):
            depends = package.depends()
            needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-dW", package.folder / binary))
            loaded = dict(re.findall(r"^\s*(\S+) => (\S+)", run("ldd", package.folder / binary), re.MULTILINE))
            by_library = {}
            for name in needed:
                if name not in loaded:
                    continue  # the loader itself, which comes with libc.so.6
                owners = self.owners(loaded[name])
                for other in depends:
                    told = run("dpkg-query", "-W", "-f=${Depends}", other)
                    if owners & ({other} | {part.split()[0] for part in re.split(r"[,|] *", told) if part}):
                        by_library.setdefault(name, set()).add(other)
                self.assertIn(name, by_library, f"{package.path.name}, which depends on {depends}, needs {name} of {owners}")
            self.assertEqual(set(depends), set().union(*by_library.values()), by_library)
            self.assertFalse([name for name in needed if re.match(r"lib(cuda|cublas|nv)", name)])
        depends = self.development.depends()
        self.assertEqual(depends.pop(self.library.fields["Package"]), library_needs)
        private = (self.development.folder / self.libraries / "pkgconfig/deviceloop.pc").read_text()
        self.assertEqual(set(depends), {"libopenblas-dev"} if "-lopenblas" in private else set(depends) & {"libblas-dev"})
        has_cuda = "-lcudart_static" in private
        for package, words in ((self.library, "libcublas-"), (self.command, "libcublas-"), (self.development, "cuda-cudart-dev-")):
            self.assertEqual(words in package.fields.get("Suggests", ""), has_cuda)

    def test_same_bytes(self) -> None:
        # In the future, so that a file which keeps the time of this run instead shows. Compressed quickly: what is packed
        # is what may differ.
        one, other = (pack("DEB", self.folder / name, SOURCE_DATE_EPOCH="4000000000", DPKG_DEB_COMPRESSOR_TYPE="gzip",
                           DPKG_DEB_COMPRESSOR_LEVEL="1") for name in ("one", "other"))  # fmt: skip
        self.assertEqual([path.name for path in one], [path.name for path in other])
        for path, again in zip(one, other):
            self.assertEqual(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, again)), path.name)

    def test_programs_are_built_and_train(self) -> None:
        root = self.folder / "root"
        for package in self.packages.values():
            run("dpkg-deb", "--extract", package.path, root)
        consumer = self.folder / "consumer"
        write_consumer(consumer)
        environment = {**os.environ, "PKG_CONFIG_PATH": "", "PKG_CONFIG_SYSROOT_DIR": str(root),
                       "PKG_CONFIG_LIBDIR": str(root / self.libraries / "pkgconfig")}  # fmt: skip
        environment["CXX"] = CACHE["CMAKE_CXX_COMPILER"]
        environment["CC"] = CACHE["CMAKE_C_COMPILER"]
        run("sh", "build.sh", "-G", CACHE["CMAKE_GENERATOR"], f"-DCMAKE_PREFIX_PATH={root}/usr", cwd=consumer, env=environment)
        self.must_train_alike(consumer, consumer, root / "usr/bin/deviceloop", libraries=root / self.libraries)
        # A package of that program depends on the library's.
        (self.folder / "debian").mkdir()
        (self.folder / "debian/control").write_text("Source: app\n\nPackage: app\nArchitecture: any\n")
        shutil.copytree(self.library.control_folder, self.library.folder / "DEBIAN", dirs_exist_ok=True)
        told = run("dpkg-shlibdeps", "-O", f"-S{self.library.folder}", consumer / "pkg_config_shared/app", cwd=self.folder)
        found = dependencies(told.strip().split("=", 1)[1])
        self.assertEqual(found[self.library.fields["Package"]], f">= {VERSION}", told)

    @unittest.skipUnless(shutil.which("lintian"), "no lintian here")
    def test_lintian(self) -> None:
        private = (self.development.folder / self.libraries / "pkgconfig/deviceloop.pc").read_text()
        accepted = ACCEPTED_TAGS + (CUDA_TAGS if "-lcudart_static" in private else [])
        told = run("lintian", "--fail-on", "none", "--suppress-tags", ",".join(accepted),
                   *(package.path for package in self.packages.values()))  # fmt: skip
        self.assertEqual([line for line in told.splitlines() if re.match(r"[EW]: ", line)], [])

    @unittest.skipUnless("--chroot" in sys.argv, "no --chroot given")
    def test_installed_in_a_minimal_system(self) -> None:
        system = pathlib.Path(CHROOT)
        if not system.is_dir():
            system = self.folder / "system"
            self.addCleanup(shutil.rmtree, system, ignore_errors=True)
            run("mmdebstrap", "--variant=apt", "--include=g++,cmake,make,pkgconf", CHROOT, system)
        shutil.rmtree(system / "deviceloop", ignore_errors=True)
        write_consumer(system / "deviceloop/consumer")
        for package in self.packages.values():
            shutil.copy(package.path, system / "deviceloop")
        enter = ("chroot", system)
        run(*enter, "apt-get", "update")
        names = [f"/deviceloop/{package.path.name}" for package in self.packages.values()]
        try:
            run(*enter, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends",
                "--allow-downgrades", "--reinstall", *names)  # fmt: skip
            # A static library with kernels wants CUDA's runtime, which is none of Debian's packages.
            private = (self.development.folder / self.libraries / "pkgconfig/deviceloop.pc").read_text()
            kinds = "shared" if "-lcudart_static" in private else "shared static"
            run(*enter, "sh", "-c", f"cd /deviceloop/consumer && KINDS='{kinds}' exec sh build.sh")
            self.must_train_alike(system / "deviceloop/consumer", "/deviceloop/consumer", "/usr/bin/deviceloop", enter,
                                  kinds=kinds)  # fmt: skip
        finally:
            run(*enter, "apt-get", "purge", "-y", *self.packages)
        self.assertEqual([str(path) for path in (system / "usr").rglob("*deviceloop*")], [])


class Archive(Case):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="deviceloop-archive-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.archive,) = pack("TGZ", cls.folder / "packed")
        run("tar", "-xzf", cls.archive, "-C", cls.folder)
        # Into a folder whose name is not that of the archive, and with a space.
        cls.prefix = cls.folder / "some where"
        (cls.folder / cls.archive.name[: -len(".tar.gz")]).rename(cls.prefix)

    def test_is_what_is_installed(self) -> None:
        run("cmake", "--install", BUILD, "--prefix", self.folder / "installed", "--strip")
        installed = files_below(self.folder / "installed")
        self.assertEqual(files_below(self.prefix), installed)
        # The three components are all of it; only the licence and the notices come with each.
        together: "dict[str, str]" = {}
        for component in COMPONENTS:
            folder = self.folder / component
            run("cmake", "--install", BUILD, "--prefix", folder, "--strip", "--component", component)
            files = files_below(folder)
            notices = {name for name in files if name.startswith("share/doc/deviceloop/")}
            self.assertEqual({name.rsplit("/", 1)[1] for name in notices}, {"LICENSE", "copyright"})
            self.assertEqual(set(files) & set(together), notices if together else set())
            together.update(files)
        self.assertEqual(together, installed)

    def test_programs_are_built_and_train(self) -> None:
        consumer = self.folder / "consumer"
        write_consumer(consumer)
        libraries = self.prefix / CACHE["CMAKE_INSTALL_LIBDIR"]
        # pkg-config has no way to name a folder with a space that a shell would pass on.
        link = self.folder / "link"
        link.symlink_to(self.prefix)
        environment = {**os.environ, "CC": CACHE["CMAKE_C_COMPILER"], "CXX": CACHE["CMAKE_CXX_COMPILER"],
                       "PKG_CONFIG_PATH": str(link / CACHE["CMAKE_INSTALL_LIBDIR"] / "pkgconfig")}  # fmt: skip
        run("sh", "build.sh", "-G", CACHE["CMAKE_GENERATOR"], f"-DCMAKE_PREFIX_PATH={self.prefix}", cwd=consumer,
            env=environment)  # fmt: skip
        self.must_train_alike(consumer, consumer, self.prefix / CACHE["CMAKE_INSTALL_BINDIR"] / "deviceloop",
                              libraries=libraries)  # fmt: skip


def read_cache() -> None:
    for line in (BUILD / "CMakeCache.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"(\w+):\w+=(.*)", line)
        if match:
            CACHE[match[1]] = match[2]


def why_skipped() -> str:
    for program in ("cpack", "dpkg-deb", "dpkg-shlibdeps", "dpkg-query", "file", "strip", "readelf", "pkg-config"):
        if not shutil.which(program):
            return f"there is no {program} here"
    config = (BUILD / "CPackConfig.cmake").read_text(encoding="utf-8")
    match = re.search(r'^set\(CPACK_DEVICELOOP_NO_DEB "(.+)"\)$', config, re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--chroot", default="", metavar="SUITE_OR_FOLDER")
    arguments, rest = parser.parse_known_args()
    BUILD = arguments.build.resolve()
    CHROOT = arguments.chroot
    read_cache()
    VERSION = re.search(r'DEVICELOOP_VERSION "(.*)"', (ROOT / "include/deviceloop/version.h").read_text())[1]
    reason = why_skipped()
    if reason.startswith("packaging/"):  # a version without an entry in the changelog
        sys.exit(reason)
    if reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
