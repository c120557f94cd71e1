#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets, small valid files, into the folder given: seeds/FORMAT/*. Standard library only;
the seeds are committed, so that this runs when a format gains a variant."""
import json
import pathlib
import struct
import sys
import zipfile

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "seeds")


def save(name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def npy(shape, code, values, fortran=False, version=1):
    header = f"{{'descr': '<{code}', 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    prefix = 10 if version == 1 else 12
    header += b" " * (-(prefix + len(header) + 1) % 64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    data = struct.pack("<%d%s" % (len(values), "f" if code == "f4" else "d"), *values)
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


x, y = npy((2, 3), "f4", range(6)), npy((2,), "f8", range(2))
save("npy/float32", x)
save("npy/vector", y)
save("npy/columns", npy((2, 3), "f4", range(6), fortran=True))
save("npy/version2", npy((2, 3), "f8", range(6), version=2))

for name, method, zip64 in (("stored", 0, False), ("deflated", 8, False), ("zip64", 8, True)):
    path = folder / "npz" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for array, content in (("x.npy", x), ("y.npy", y)):
            info = zipfile.ZipInfo(array)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=zip64) as entry:
                entry.write(content)

for code, kind in ((8, "B"), (9, "b"), (11, "h"), (12, "i"), (13, "f"), (14, "d")):
    save(f"idx/type{code}", struct.pack(">BBBB3I", 0, 0, code, 3, 2, 1, 2) + struct.pack(f">4{kind}", 0, 1, 2, 3))

save("csv/numbers", b"\0001,2.5\n-3,4e2\n")
save("csv/header", b"\0\"a \"\"b\", c\r\n1 , nan\r\n.5,-inf")
save("csv/count", b"1\0a,b\n1,2\n3,4\n")
save("csv/names", b"b,a\0a,b,c\n1,2,3\n4,5,6\n")

tensors = {"__metadata__": {"format": "pt"}, "0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
           "0.bias": {"dtype": "F64", "shape": [1], "data_offsets": [8, 16]}}
header = json.dumps(tensors).encode()
save("safetensors/layer", struct.pack("<Q", len(header)) + header + struct.pack("<ffd", 1, 2, 3))
save("safetensors/empty", struct.pack("<Q", 2) + b"{}")
