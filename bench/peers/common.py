"""What every peer shares: the options of a case, its arrays, and the lines it exchanges with bench/compare.

bench/README.md describes the contract, which an executable in any language can keep. Needs NumPy, no more. Import this
before a framework: it sets the numbers of threads, which frameworks read when they are loaded.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
import typing


def _threads() -> str:
    return sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv[:-1] else "1"


for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = _threads()

# What a peer prints while it loads or compiles must not get between the lines of the protocol.
_protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

import numpy as np  # noqa: E402, after the numbers of threads

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import numpy_loop  # noqa: E402, found through the line above


@dataclasses.dataclass
class Case:
    """One training run. The arrays are in the precision of the case, float32 where it is tf32, tf32x3 or bf16, weights as
    [in, out], biases None or [out]; with the loss cross-entropy y [samples] are the numbers of classes, int64."""

    x: np.ndarray
    y: np.ndarray
    weights: list
    biases: "list | None"
    steps: int
    rate: float
    precision: str
    device: str
    threads: int
    once: "str | None"
    loss: str  # squared: the sum of squared errors; mse: their mean; cross-entropy: its mean over the rows
    optimizer: str  # gd or adam
    batches: "np.ndarray | None"  # [steps, rows]: the samples that each step takes, int64; None: all of them

    @property
    def is_plain(self) -> bool:
        """Whether this is full-batch gradient descent on the sum of squared errors."""
        return self.loss == "squared" and self.optimizer == "gd" and self.batches is None

    def copies(self, convert: typing.Callable) -> tuple:
        """The initial weights and biases, each through `convert`, for a run that may change them."""
        biases = None if self.biases is None else [convert(bias.copy()) for bias in self.biases]
        return [convert(weight.copy()) for weight in self.weights], biases


@dataclasses.dataclass
class Row:
    """One way of running the case. `prepare` makes the untimed start and returns the function that trains, which
    returns once all losses are on the host. One that `times_itself` returns its seconds and the losses."""

    name: str
    prepare: typing.Callable
    includes: dict
    times_itself: bool = False


def read_case() -> Case:
    """The case of the command line."""
    parser = argparse.ArgumentParser(description="A peer of bench/compare; see bench/README.md.")
    for option in ("--data", "--weights", "--precision", "--device"):
        parser.add_argument(option, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--once", metavar="ROW", help="run this row once, without a warm-up, and end")
    parser.add_argument("--loss", choices=["squared", "mse", "cross-entropy"], default="squared")
    parser.add_argument("--optimizer", choices=["gd", "adam"], default="gd")
    parser.add_argument("--batch-size", type=int, default=0, metavar="ROWS", help="of a step; 0: all")
    parser.add_argument("--order", metavar="FILE.npy", help="the samples as each epoch takes them, [epochs, samples]")
    options = parser.parse_args()
    if (options.batch_size > 0) != (options.order is not None):
        parser.error("--batch-size and --order belong together")
    dtype = np.float64 if options.precision == "fp64" else np.float32
    arrays = np.load(options.data)
    weights, biases = numpy_loop.read_weights([options.weights])
    y = arrays["y"]
    batches = None
    if options.order is not None:
        # A batch may begin in one epoch and end in the next.
        positions = options.steps * options.batch_size
        batches = np.load(options.order).ravel()[:positions].reshape(options.steps, options.batch_size)
    return Case(
        np.ascontiguousarray(arrays["x"], dtype),
        y.astype(np.int64).ravel() if options.loss == "cross-entropy" else np.ascontiguousarray(y, dtype),
        [np.array(weight, dtype, order="C") for weight in weights],
        None if biases is None else [np.array(bias, dtype) for bias in biases],
        options.steps, options.rate, options.precision, options.device, options.threads, options.once,
        options.loss, options.optimizer, batches,
    )  # fmt: skip


def includes(case: Case, **changes: object) -> dict:
    """What a row says of itself; compare prints it."""
    values = {
        "precision": {"fp32": "true fp32", "tf32": "TF32", "bf16": "bf16 products, fp32 weights"}.get(
            case.precision, case.precision),
        "bias": case.biases is not None,
        "loss": case.loss,
        "optimizer": case.optimizer,
        "batch": None if case.batches is None else case.batches.shape[1],
        "loss_every_step": True,
        "update": True,
        "data_resident": True,
        "threads": case.threads,
        "device": case.device,
        "note": "",
    }
    return {**values, **changes}


def _say(message: dict) -> None:
    _protocol.write(json.dumps(message) + "\n")
    _protocol.flush()


def _try(row: Row) -> "str | None":
    """One run, which loads, compiles and captures; the reason in a line where that fails."""
    try:
        row.prepare()()
        return None
    except Exception as error:  # whatever a framework throws makes this row missing, and no other
        return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"


def _answer(row: Row) -> None:
    """Trains and says what that took."""
    run = row.prepare()
    start = time.perf_counter()
    losses = run()
    seconds = time.perf_counter() - start
    if row.times_itself:
        seconds, losses = losses
    # JSON has no NaN: null stands for what is not finite.
    values = [float(loss) for loss in losses]
    _say({"seconds": seconds, "losses": [value if math.isfinite(value) else None for value in values]})


def serve(case: Case, name: str, version: str, rows: "list[Row]", missing: "dict[str, str]") -> None:
    """Warms every row up, then answers `run ROW` lines until standard input ends; or runs the row of --once."""
    by_name = {row.name: row for row in rows}
    if case.once is not None:
        if case.once not in by_name:
            sys.exit(f"--once {case.once}: {name} has {', '.join(by_name) or 'no row'}")
        _answer(by_name[case.once])
        return
    missing = dict(missing)
    for row in rows:
        reason = _try(row)
        if reason:
            missing[row.name] = reason
            del by_name[row.name]
    described = [{"name": row.name, "includes": row.includes} for row in by_name.values()]
    _say({"ready": name, "version": version, "once": True, "rows": described, "missing": missing})
    for line in sys.stdin:
        _answer(by_name[line.split(None, 1)[1].strip()])


def only_in(case: Case, name: str, *precisions: str) -> None:
    """Ends a peer that has no row in the case's precision."""
    if case.precision not in precisions:
        cannot(case, name, f"it has no row in {case.precision}, only in {', '.join(precisions)}")


def products_of(torch: typing.Any, case: Case) -> typing.ContextManager:
    """In which PyTorch multiplies in bf16, where the case does; weights stay float32."""
    return torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16")


def plain_only(case: Case, name: str) -> None:
    """Ends a peer that has no row for minibatches, other losses and optimizers, where the case has them."""
    if not case.is_plain:
        cannot(case, name, "its plain loop is full-batch gradient descent on squared errors: no case of minibatches and Adam")


def cannot(case: Case, name: str, reason: str) -> None:
    """Ends a peer that cannot run here; compare prints the reason."""
    if case.once is not None:
        sys.exit(reason)
    _say({"ready": name, "version": "", "rows": [], "missing": {name: reason}})
    sys.exit(0)
