# The same neuron in NumPy.
import numpy as np

x = np.array([2.0, 3.0, 4.0])
for w in (np.array([1.0, -1.0, 5.0]), np.array([1.0, -5.0, 2.0])):
    z = x @ w
    print(f"z = {z:g}, relu(z) = {max(z, 0):g}")
