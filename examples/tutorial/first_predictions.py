# The same network in NumPy, on the numbers that `deviceloop data` wrote.
import numpy as np

from read_weights import read_weights

x, y = np.load("x.npy"), np.load("y.npy")
w1, w2 = read_weights("w.safetensors")
h = np.maximum(x @ w1, 0)
p = h @ w2

print("prediction    target     error")
for prediction, target in zip(p[:5, 0], y[:5, 0]):
    print(f"{prediction:10.3f}  {target:8.3f}  {prediction - target:8.3f}")
print(f"sum of all 128 squared errors: {np.sum((p - y) ** 2):.2f}")
