#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets, small valid files, into the folder given: seeds/FORMAT/*. Standard library only;
the seeds are committed, so that this runs when a format gains a variant.

Those of npz/ that bear the name of another program are not written here. They hold x = [[1, 2, 3], [4, 5, 6]] and
y = [7, 8] in float32, which tests/npz_test.cpp expects, and were made from x.npy and y.npy by
    infozip_stream         zip - x.npy y.npy | cat                     (Info-ZIP 3.0; _stored: with -0)
    infozip_descriptors    zip -fd FILE x.npy y.npy
    infozip_zip64          zip -fz FILE x.npy y.npy
    bsdtar, bsdtar_stream  bsdtar --format zip -cf FILE|- x.npy y.npy  (libarchive 3.6; _zip64: --options zip:zip64)
    7z, 7z_stream          7z a -tzip FILE|-so x.npy y.npy             (7-Zip 26.02)
    python_stream          zipfile, into a stream that cannot seek     (_zip64: deflated, with force_zip64)
    after_program          a shell script, then what zip wrote         (_adjusted: then zip -A)
    zeros_follow, comment  what zip wrote, 500 zeros; zip -z
Those of checkpoint/ are what deviceloop train --checkpoint FILE --steps 4 --bias --samples 6 --layers 2,2,1 writes with
    gram      --formulation gram --optimizer sgd --momentum 0.9 --samples 3
    batches   --optimizer adam --batch-size 2 --validate-fraction 0.3 --validate-every 2 --keep best --standardize
"""
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


KINDS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
         "f2": "e", "f4": "f", "f8": "d"}


def npy(shape, code, values, fortran=False, version=1, order="<"):
    header = f"{{'descr': '{order}{code}', 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    prefix = 10 if version == 1 else 12
    header += b" " * (-(prefix + len(header) + 1) % 64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    data = struct.pack("%s%d%s" % (order.replace("|", "<"), len(values), KINDS[code]), *values)
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


x, y = npy((2, 3), "f4", range(6)), npy((2,), "f8", range(2))
save("npy/float32", x)
save("npy/vector", y)
save("npy/columns", npy((2, 3), "f4", range(6), fortran=True))
save("npy/version2", npy((2, 3), "f8", range(6), version=2))

for code in KINDS:
    save(f"npy/type_{code}", npy((2, 2), code, range(4), order="|" if code[1] == "1" else "<"))
save("npy/big_endian", npy((2, 2), "i8", range(4), fortran=True, order=">"))
save("npy/big_endian_float", npy((2, 2), "f4", range(4), order=">"))

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
save("csv/other_numbers", b"\0+1.0,1.5D-3,0.1-100\n0x1.8p+1,1e-400,5.\n")
save("csv/comments", b"c\0# by me\n# a,b,c\n1,2,3\n# end\n")
save("csv/quoted", b"\"a,b\",2\0\"a,b\",2,c\n1,2,3\n")
save("csv/semicolons", b"1\0a;b\n1,5;NA\n")
save("csv/returns", b"\0a,b\r1,2\r")
save("csv/quoted_numbers", b"\0\"a\",\"b\"\n\"1\",\" 2 \"\n\"3\",4\n")
save("csv/names", b"b,a\0a,b,c\n1,2,3\n4,5,6\n")

tensors = {"__metadata__": {"format": "pt"}, "0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
           "0.bias": {"dtype": "F64", "shape": [1], "data_offsets": [8, 16]}}
header = json.dumps(tensors).encode()
save("safetensors/layer", struct.pack("<Q", len(header)) + header + struct.pack("<ffd", 1, 2, 3))
tensors = {"0.weight": {"dtype": "F16", "shape": [2, 1], "data_offsets": [0, 4]},
           "2.weight": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [4, 8]}}
header = json.dumps(tensors).encode()
save("safetensors/halves", struct.pack("<Q", len(header)) + header + struct.pack("<eeHH", 1, 2, 0x3f80, 0x4000))
network = {"version": 1, "widths": [2, 1], "bias": True, "activation": "leaky-relu", "output_activation": "identity",
           "input_scaling": {"factor": 0.5, "mean": [1, -2e-3], "deviation": [1.5, 1e300]},
           "target_scaling": {"mean": [2e5], "deviation": [7e4]}, "input_names": ["a", "b c"]}
tensors = {"__metadata__": {"deviceloop.network": json.dumps(network), "format": "pt"},
           "0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
           "0.bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}
header = json.dumps(tensors).encode()
save("safetensors/network", struct.pack("<Q", len(header)) + header + struct.pack("<3f", 1, 2, 3))
save("safetensors/empty", struct.pack("<Q", 2) + b"{}")
