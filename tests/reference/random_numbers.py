"""deviceloop's random numbers a second time, from their definition and in another language.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in NumPy's integers.
Element i of tensor t under a seed: key = (seed low, seed high), counter = (i/2 low, i/2 high, t, 0); element i takes
the words 2 (i mod 2), the low one, and 2 (i mod 2) + 1, the high one; u = (k + 0.5) 2^-52 with k the top 52 bits of
both. The normal is the inverse distribution function at u by Wichura's algorithm AS 241 (Applied Statistics 37, 1988).

The numbers with |u - 0.5| <= 0.425, 85 % of them, take + - * / only and are the library's to the last bit. The others
take a logarithm: here Python's, correct to about one unit in the last place, in the library its own. They may differ by
a few units in the last place, far below 1e-15 relative.

Imported by record.py. Run by itself it checks Philox against the known answers of the Random123 distribution and the
normals against the error function.
"""

import math

import numpy as np

TENSOR_X, TENSOR_Y = 0, 1


def tensor_of_weight(layer):
    return 2 + 2 * layer


# "philox4x32 10" of the file kat_vectors of the Random123 distribution: counter, key, answer.
PHILOX_KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox4x32_10(counter, key):
    """Four arrays of 32-bit words (as uint64) from four counter words (arrays) and two key words."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> HALF) ^ c1 ^ np.uint64(k0),
            product1 & WORD,
            (product0 >> HALF) ^ c3 ^ np.uint64(k1),
            product0 & WORD,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniforms(seed, tensor, indices):
    """The uniform numbers of some elements (an array of uint64)."""
    indices = np.asarray(indices, np.uint64)
    pair = indices >> np.uint64(1)
    zero = np.zeros_like(indices)
    counter = (pair & WORD, pair >> HALF, zero + np.uint64(tensor), zero)
    words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))
    odd = (indices & np.uint64(1)).astype(bool)
    low = np.where(odd, words[2], words[0])
    high = np.where(odd, words[3], words[1])
    k = ((high << HALF) | low) >> np.uint64(12)
    return (k.astype(np.float64) + 0.5) * 2.0**-52


# AS 241, PPND16: coefficients a, b (centre), c, d (middle), e, f (tail), from power 0 up.
A = (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3)
B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3)
C = (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4)
D = (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9)
E = (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7)
F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15)


def polynomial(coefficients, r):
    value = coefficients[7]
    for coefficient in coefficients[6::-1]:
        value = value * r + coefficient
    return value


def is_central(u):
    """Whether the normal at u takes no logarithm."""
    return np.abs(np.asarray(u) - 0.5) <= 0.425


def inverse_normal(u):
    """The x with a standard normal's probability u below it."""
    u = np.asarray(u, np.float64)
    q = u - 0.5
    r = 0.180625 - q * q
    value = q * polynomial(A, r) / polynomial(B, r)
    for i in np.flatnonzero(~is_central(u)):
        p = u.flat[i] if q.flat[i] < 0 else 1 - u.flat[i]
        r = math.sqrt(-math.log(p))
        if r <= 5:
            size = polynomial(C, r - 1.6) / polynomial(D, r - 1.6)
        else:
            size = polynomial(E, r - 5) / polynomial(F, r - 5)
        value.flat[i] = -size if q.flat[i] < 0 else size
    return value


def normals(seed, tensor, indices):
    """The standard normal numbers of some elements."""
    return inverse_normal(uniforms(seed, tensor, indices))


def normal_matrix(seed, tensor, rows, columns):
    """A [rows, columns] float64 matrix, row-major."""
    return normals(seed, tensor, np.arange(rows * columns, dtype=np.uint64)).reshape(rows, columns)


def check():
    """Raises AssertionError where the numbers are not what they claim to be."""
    for counter, key, answer in PHILOX_KNOWN_ANSWERS:
        words = philox4x32_10([np.array([word]) for word in counter], key)
        assert tuple(int(word[0]) for word in words) == answer, f"Philox4x32-10 of {counter}, {key}"
    # The slope of the distribution function turns an error in probability into one in x.
    u = np.concatenate([uniforms(1, 0, np.arange(20000)), 10.0 ** -np.arange(1, 16), [2.0**-53, 1 - 2.0**-53]])
    for probability, x in zip(u, inverse_normal(u)):
        tail = probability if x < 0 else 1 - probability
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        error = abs(math.erfc(abs(x) / math.sqrt(2)) / 2 - tail) / density
        assert error <= 4e-15 * max(1.0, abs(x)), f"the normal at {probability} is wrong by {error}"


if __name__ == "__main__":
    check()
    print("random numbers: known answers met")
