#!/usr/bin/env python3
"""Each function of deviceloop_c.h is called by tests/c_api_test.c and has an interface in the Fortran module, and each
function of the C++ API has one of the C API.

    tests/c_api_names.py
"""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include" / "deviceloop"

# C++ functions and members whose C counterpart, a function or a member, has another name; empty for those of C++ alone.
OTHER_NAMES = {
    "make_plan": "deviceloop_plan_create", "query_device_caps": "deviceloop_caps_query", "layers": "width_count",
    "in_features": "widths", "out_features": "widths", "name": "deviceloop_executor_name", "api": "api", "code": "code",
    "expression": "expression", "file": "file", "line": "line", "steps": "steps", "us_per_step": "us_per_step",
    "writable_view_of_dlpack": "writable", "done": "deviceloop_run_done", "losses": "deviceloop_run_losses",
    "wait": "deviceloop_run_wait", "on_device": "", "view": "", "size_of": "", "element_type": "", "element_type_of": "",
}  # fmt: skip


def code(path: pathlib.Path) -> str:
    """Without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def c_functions(header: str) -> "list[str]":
    return re.findall(r"\bDEVICELOOP_C_EXPORT\b[^;]*?\b(deviceloop_\w+)\s*\(", header)


def cxx_functions() -> "set[str]":
    """The functions and members that the public C++ headers declare; those of <deviceloop/cuda.h> as cuda_..."""
    start = r"^ *(?:DEVICELOOP_EXPORT )?(?:const |constexpr )?"
    declaration = re.compile(start + r"(?!return)[A-Za-z][\w:<>]*[&*]? +([a-z]\w*)\(", re.MULTILINE)
    found = set()
    for path in INCLUDE.glob("*.h"):
        if path.name not in ("deviceloop_c.h", "export.h"):
            prefix = "cuda_" if path.name == "cuda.h" else ""
            found |= {prefix + name for name in declaration.findall(code(path))}
    return found


class Names(unittest.TestCase):
    def test_every_function_is_tested_and_has_its_interface(self) -> None:
        functions = c_functions(code(INCLUDE / "deviceloop_c.h"))
        self.assertGreater(len(functions), 75)
        self.assertEqual(len(functions), len(set(functions)))
        test = code(ROOT / "tests/c_api_test.c")
        test = test.replace("##suffix", "f32") + test.replace("##suffix", "f64")
        called = set(re.findall(r"\b(deviceloop_\w+)\(", test))
        module = (INCLUDE / "deviceloop.f90").read_text(encoding="utf-8").replace("&\n", "")
        interfaces = re.findall(r"^ *(?:function|subroutine) (deviceloop_\w+)\([^)]*\) bind\(c\)", module, re.MULTILINE)
        self.assertEqual([name for name in functions if name not in called], [])
        self.assertEqual(interfaces, functions)

    def test_every_function_of_the_cxx_api_has_one(self) -> None:
        header = code(INCLUDE / "deviceloop_c.h")
        cxx = cxx_functions()
        for name in ("train", "save_state", "cuda_narrow_linear", "fill_normal", "relu", "query_device_caps"):
            self.assertIn(name, cxx)
        missing = []
        for name in sorted(cxx):
            known = (f"deviceloop_{name}", f"deviceloop_trainer_{name}", f"deviceloop_{name}_f32")
            other = OTHER_NAMES.get(name)
            if other is None and not any(re.search(rf"\b{c_name}\b", header) for c_name in known):
                missing.append(name)
            if other and not re.search(rf"\b{other}\b", header):
                missing.append(name)
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
