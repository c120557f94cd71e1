"""deviceloop for Conan 2, from the checkout that this file lies in: see packaging/README.md."""

import os
import pathlib
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir



required_conan_version = ">=2.0"


class Deviceloop(ConanFile):
    name = "deviceloop"
    description = "Trains neural networks with the whole training loop on the device"
    license = "Apache-2.0"
    topics = ("neural-network", "training", "cuda")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {
        "shared": [True, False],
        "fPIC": [True, False],
        "blas": ["openblas", "own"],
        "cuda": [True, False],
        "command": [True, False],
    }
    default_options = {"shared": True, "fPIC": True, "blas": "openblas", "cuda": False, "command": False}

    def _checkout(self) -> pathlib.Path:
        return pathlib.Path(self.recipe_folder).parent.parent

    def set_version(self) -> None:
        header = load(self, self._checkout() / "include/deviceloop/version.h")
        self.version = re.search(r'DEVICELOOP_VERSION "(.*)"', header)[1]

    def export_sources(self) -> None:
        for pattern in ("CMakeLists.txt", "LICENSE", "CHANGELOG.md", "README.md", "cmake/*", "cuda/*", "docs/*", "host/*", "include/*",
                        "packaging/*"):  # fmt: skip
            copy(self, pattern, self._checkout(), self.export_sources_folder)

    def configure(self) -> None:
        if self.options.shared:
            self.options.rm_safe("fPIC")

    def layout(self) -> None:
        cmake_layout(self)

    def requirements(self) -> None:
        # Headers whose code is compiled into the library; no public header includes them.
        self.requires("nlohmann_json/[>=3.9 <4]", visible=False)
        self.requires("random123/[>=1.14 <2]", visible=False)
        if self.options.blas == "openblas":
            self.requires("openblas/[>=0.3.20 <0.4]")
        if self.options.command:
            self.requires("cli11/[>=2.1 <3]", visible=False)
            self.requires("zlib/[>=1.2.11 <2]", visible=False)

    def validate(self) -> None:
        check_min_cppstd(self, 20)
        if self.options.cuda and not self.options.shared:
            raise ConanInvalidConfiguration(
                "with cuda=True the static library needs CUDA's static runtime, which no Conan package has: take shared=True"
            )

    def generate(self) -> None:
        toolchain = CMakeToolchain(self)
        on = {True: "ON", False: "OFF"}
        toolchain.cache_variables["BUILD_SHARED_LIBS"] = on[bool(self.options.shared)]
        toolchain.cache_variables["DEVICELOOP_BLAS"] = str(self.options.blas).upper()
        toolchain.cache_variables["DEVICELOOP_CUDA"] = on[bool(self.options.cuda)]
        toolchain.cache_variables["DEVICELOOP_COMMAND"] = on[bool(self.options.command)]
        for part in ("TESTS", "BENCH", "EXAMPLES"):
            toolchain.cache_variables[f"DEVICELOOP_{part}"] = "OFF"
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self) -> None:
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self) -> None:
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "copyright", os.path.join(self.source_folder, "packaging"), os.path.join(self.package_folder, "licenses"))
        # Conan writes the files for CMake and pkg-config itself.
        for folder in ("lib/cmake", "lib/pkgconfig", "share"):
            rmdir(self, os.path.join(self.package_folder, folder))

    def package_info(self) -> None:
        self.cpp_info.libs = ["deviceloop"]
        self.cpp_info.set_property("cmake_file_name", "deviceloop")
        self.cpp_info.set_property("cmake_target_name", "deviceloop::deviceloop")
        self.cpp_info.set_property("pkg_config_name", "deviceloop")
        if self.settings.os == "Linux" and not self.options.shared:
            self.cpp_info.system_libs = ["pthread", "dl", "m"]
