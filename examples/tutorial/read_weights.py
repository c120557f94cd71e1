"""Reads the weights that deviceloop writes.

A .safetensors file is the length of a header, the header in JSON, and numbers.
"""
import json

import numpy as np

TYPES = {"F32": np.float32, "F64": np.float64}


def read_weights(path):
    """The weights [in, out] of the layers, in order; the file has them as [out, in]."""
    content = open(path, "rb").read()
    end = 8 + int.from_bytes(content[:8], "little")
    found = []
    for name, tensor in json.loads(content[8:end]).items():
        if name.endswith(".weight"):
            begin, stop = tensor["data_offsets"]
            data = content[end + begin : end + stop]
            numbers = np.frombuffer(data, TYPES[tensor["dtype"]])
            found.append(numbers.reshape(tensor["shape"]).T)
    return found
