#!/usr/bin/env python3
"""The order in which deviceloop takes the samples of an epoch, from its definition in host/permutation.h.

Run by itself, `sample_order.py DEVICELOOP`, it compares `deviceloop data --order` with this; it ends with 77 where there
is no NumPy, and with 1 at the first difference. The recorded indices of sample_order_known_answers.txt are lines of
`order(seed, samples, epoch)`, made by `sample_order.py --record`.
"""

import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    sys.exit(77)

sys.dont_write_bytecode = True
from random_numbers import philox4x32_10  # noqa: E402


def order(seed, samples, epoch):
    """The samples of an epoch in the order in which they are taken, int64 [samples]."""
    q = next(q for q in range(2, 2**21, 2) if q * q >= samples)
    rounds = 4 + next(n for n in range(1, 17) if q**n >= 2**16)
    x = np.arange(samples, dtype=np.uint64)
    walks = np.full(samples, True)
    while walks.any():
        left, right = x[walks] // np.uint64(q), x[walks] % np.uint64(q)
        for j in range(rounds):
            counter = [right * np.uint64(0) + np.uint64(word) for word in (epoch & 0xFFFFFFFF, epoch >> 32, 0, 1 + j)]
            counter[2] = right
            word = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))[0]
            left, right = right, (left + (word * np.uint64(q) >> np.uint64(32))) % np.uint64(q)
        x[walks] = left * np.uint64(q) + right
        walks = x >= samples
    return x.astype(np.int64)


# seed, samples, epoch
RECORDED = [(0, 1, 0), (0, 2, 0), (7, 2, 1), (1, 3, 5), (2, 4, 2**32 + 1), (0, 5, 0), (2**64 - 1, 16, 3), (3, 17, 4),
            (0x0123456789ABCDEF, 100, 1), (4, 1000, 2), (5, 4096, 0), (6, 4097, 2**40)]
MOST_RECORDED = 40

if __name__ == "__main__" and sys.argv[1:] == ["--record"]:
    print("# seed, samples, epoch, and the first samples of that epoch, by sample_order.py --record.")
    for seed, samples, epoch in RECORDED:
        print(seed, samples, epoch, *order(seed, samples, epoch)[:MOST_RECORDED])
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "order.npy")
        for seed, samples, epochs in [(0, 1, 3), (1, 2, 40), (2, 5, 300), (2**64 - 1, 1000, 4), (3, 65536, 2), (4, 65537, 2)]:
            subprocess.run([sys.argv[1], "data", "--order", path, "--samples", str(samples), "--epochs", str(epochs),
                            "--seed", str(seed), "--quiet"], check=True)
            written = np.load(path)
            expected = np.stack([order(seed, samples, epoch) for epoch in range(epochs)])
            if written.dtype != np.int64 or not np.array_equal(written, expected):
                sys.exit(f"FAILED: the order of {samples} samples, {epochs} epochs and seed {seed} differs")
