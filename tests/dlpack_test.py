#!/usr/bin/env python3
"""Tensors go from the shared library to array libraries of Python and back without a copy, by capsules of DLPack and the
C API alone. Which form of a capsule is used is what the array library asks for.

    tests/dlpack_test.py build/libdeviceloop.so

Skipped (exit code 77) without NumPy; PyTorch and JAX are tested where the Python has them.
"""

import ctypes
import sys
import unittest

try:
    import numpy
except ImportError:
    print("skipped: no NumPy here; install python3-numpy")
    sys.exit(77)

LIBRARY = ctypes.CDLL(sys.argv[1])
PYTHON = ctypes.pythonapi
PYTHON.PyCapsule_New.restype = ctypes.py_object
PYTHON.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
PYTHON.PyCapsule_GetPointer.restype = ctypes.c_void_p
PYTHON.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
PYTHON.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
LIBRARY.deviceloop_last_error.restype = ctypes.c_char_p
# PyCapsule_New keeps the pointers to the names.
HOST = 0  # DEVICELOOP_MEMORY_HOST
LEGACY, VERSIONED = ctypes.c_char_p(b"dltensor"), ctypes.c_char_p(b"dltensor_versioned")


class Matrix(ctypes.Structure):
    """deviceloop_matrix."""

    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("space", ctypes.c_int32), ("rows", ctypes.c_int64),
                ("columns", ctypes.c_int64), ("row_stride", ctypes.c_int64)]  # fmt: skip


class NetworkSpec(ctypes.Structure):
    """deviceloop_network_spec."""

    _fields_ = [("struct_size", ctypes.c_size_t), ("widths", ctypes.POINTER(ctypes.c_int64)),
                ("width_count", ctypes.c_int64), ("activation", ctypes.c_int32), ("output_activation", ctypes.c_int32),
                ("leaky_slope", ctypes.c_double), ("bias", ctypes.c_int32), ("reserved", ctypes.c_int32)]  # fmt: skip


class Refused(Exception):
    pass


def call(name: str, *arguments: object) -> None:
    if getattr(LIBRARY, name)(*arguments) != 0:
        raise Refused(LIBRARY.deviceloop_last_error().decode())


class Exported:
    """A tensor of the library, as array libraries take one up. It may be taken once."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.tensor = ctypes.c_void_p()
        self.version = ""
        call(name, *arguments, ctypes.byref(self.tensor))

    def __dlpack_device__(self) -> "tuple[int, int]":
        return 1, 0

    def __dlpack__(self, *, stream: object = None, max_version: "tuple[int, int] | None" = None, **_: object) -> object:
        if max_version is not None and max_version[0] >= 1:
            self.version = "1"
            return PYTHON.PyCapsule_New(self.tensor, VERSIONED, None)
        self.version = "before 1.0"
        legacy = ctypes.c_void_p()
        call("deviceloop_legacy_dlpack", self.tensor, ctypes.byref(legacy))
        return PYTHON.PyCapsule_New(legacy, LEGACY, None)


def view_of(capsule: object, writable: bool = False) -> Matrix:
    view = Matrix()
    if PYTHON.PyCapsule_IsValid(capsule, VERSIONED):
        tensor = ctypes.c_void_p(PYTHON.PyCapsule_GetPointer(capsule, VERSIONED))
        call("deviceloop_view_of_dlpack", tensor, int(writable), ctypes.byref(view))
    else:
        tensor = ctypes.c_void_p(PYTHON.PyCapsule_GetPointer(capsule, LEGACY))
        call("deviceloop_view_of_legacy_dlpack", tensor, ctypes.byref(view))
    return view


def capsules_of(array: object) -> "list[object]":
    """The array's capsule of the old form, and one of the new form where its library has it."""
    capsules = [array.__dlpack__()]
    try:
        capsules.append(array.__dlpack__(max_version=(1, 0)))
    except TypeError:
        pass
    return capsules


class Dlpack(unittest.TestCase):
    def setUp(self) -> None:
        widths = (ctypes.c_int64 * 2)(3, 2)
        network = NetworkSpec()
        call("deviceloop_network_spec_init", ctypes.byref(network), ctypes.c_size_t(ctypes.sizeof(network)))
        network.widths, network.width_count, network.bias = widths, 2, 1
        self.trainer = ctypes.c_void_p()
        call("deviceloop_trainer_create", ctypes.byref(network), None, None, 0, ctypes.byref(self.trainer))

    def tearDown(self) -> None:
        LIBRARY.deviceloop_trainer_destroy(self.trainer)

    def write_weight(self, view: Matrix) -> None:
        call("deviceloop_trainer_write_weight", self.trainer, 0, ctypes.byref(view))

    def round_trip(self, weight: object, from_dlpack: "object", module: object) -> str:
        """`weight` [3, 2], an array of the library `module`, goes in and comes back; the version of DLPack."""
        for capsule in capsules_of(weight):
            self.write_weight(view_of(capsule))
            exported = Exported("deviceloop_trainer_weight_to_dlpack", self.trainer, 0, HOST)
            back = from_dlpack(exported)
            self.assertEqual(tuple(back.shape), (3, 2))
            self.assertTrue(bool((back == weight).all()))
            bias = from_dlpack(Exported("deviceloop_trainer_bias_to_dlpack", self.trainer, 0, HOST))
            self.assertEqual(tuple(bias.shape), (2,))
            x = module.ones((4, 3), dtype=module.float32)
            view = view_of(capsules_of(x)[-1])
            predicted = from_dlpack(Exported("deviceloop_trainer_predict_to_dlpack", self.trainer, ctypes.byref(view)))
            self.assertTrue(bool((predicted == weight.sum(0)).all()))
            del exported
            self.assertTrue(bool((back == weight).all()))  # it owns its elements
        return "1" if len(capsules_of(weight)) > 1 else "before 1.0"

    def test_numpy(self) -> None:
        if not hasattr(numpy, "from_dlpack"):
            self.skipTest("this NumPy has no from_dlpack; 1.23 or newer has")
        weight = numpy.arange(6, dtype=numpy.float32).reshape(3, 2)
        version = self.round_trip(weight, numpy.from_dlpack, numpy)
        print(f"NumPy {numpy.__version__}: DLPack {version}")
        self.assertEqual(version == "1", numpy.lib.NumpyVersion(numpy.__version__) >= "2.1.0")

    def test_views_are_those_of_the_array(self) -> None:
        array = numpy.arange(24, dtype=numpy.float64).reshape(4, 6)
        for part, rows, columns, stride in ((array, 4, 6, 6), (array[1::2, 2:5], 2, 3, 12), (array[:, 1], 4, 1, 6)):
            for capsule in capsules_of(part):
                view = view_of(capsule, writable=True)
                self.assertEqual((view.data, view.type, view.space), (part.ctypes.data, 1, 0))
                self.assertEqual((view.rows, view.columns, view.row_stride), (rows, columns, stride))
        for part, words in ((array.T, "strides [1, 6]"), (array[:, ::2], "strides [6, 2]"), (array[::-1], "strides [-6, 1]"),
                            (array.astype(numpy.int32), "type code 0 with 32 bits"),
                            (array.astype(numpy.complex64), "type code 5 with 64 bits"),
                            (array.reshape(2, 2, 6), "3 dimensions")):  # fmt: skip
            for capsule in capsules_of(part):
                with self.assertRaisesRegex(Refused, words.replace("[", r"\[")):
                    view_of(capsule)
        for capsule in capsules_of(array.astype(numpy.float16)):
            view = view_of(capsule)
            self.assertEqual((view.type, view.rows, view.columns, view.row_stride), (3, 4, 6, 6))
        if len(capsules_of(array)) > 1:
            array.flags.writeable = False
            capsule = array.__dlpack__(max_version=(1, 0))
            view_of(capsule)
            with self.assertRaisesRegex(Refused, "read-only"):
                view_of(capsule, writable=True)

    def test_torch(self) -> None:
        try:
            import torch
        except ImportError:
            self.skipTest("no PyTorch here")
        weight = torch.arange(6, dtype=torch.float32).reshape(3, 2)
        print(f"PyTorch {torch.__version__}: DLPack {self.round_trip(weight, torch.from_dlpack, torch)}")

    def test_jax(self) -> None:
        try:
            import jax.numpy
        except ImportError:
            self.skipTest("no JAX here")
        weight = jax.numpy.arange(6, dtype=jax.numpy.float32).reshape(3, 2)
        print(f"JAX {jax.__version__}: DLPack {self.round_trip(weight, jax.numpy.from_dlpack, jax.numpy)}")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
