"""PyTorch: eager with gradients by hand, eager autograd with SGD, torch.compile, and CUDA graphs of one and of many
steps. By hand means as a user who cares writes it: the update is folded into the product of the weight's gradient.

A gradient is blocked where the ReLU's output is 0, which PyTorch does too; ours blocks where its input is below 0. The
two differ only for an input of exactly 0. Cases with minibatches and Adam have rows of their own, in torch_job.py.

In tf32 the products of float32 are by TF32. In bf16 weights stay float32: by hand the operands of each product are
converted, the weights' once a step; elsewhere torch.autocast does so.
"""

import common
import torch_job

GRAPH_STEPS = 100  # at most so many steps in one CUDA graph


class Manual:
    """One step that changes weights and biases in place, on tensors that stay where they are."""

    def __init__(self, torch, x, y, weights, biases, rate, is_bf16):
        self.is_bf16 = is_bf16
        self.torch, self.x, self.y, self.weights, self.biases, self.rate = torch, x, y, weights, biases, rate

    def __call__(self):
        return self.in_bf16() if self.is_bf16 else self.in_their_type()

    def in_bf16(self):
        torch, low = self.torch, self.torch.bfloat16
        inputs, weights = [self.x.to(low)], [weight.to(low) for weight in self.weights]
        for layer, weight in enumerate(weights):
            z = inputs[-1] @ weight
            if self.biases:
                z = z + self.biases[layer].to(low)
            inputs.append(torch.relu(z) if layer + 1 < len(weights) else z)
        difference = inputs.pop().float() - self.y
        loss = difference.square().sum()
        slope = (difference * 2).to(low)
        for layer in reversed(range(len(weights))):
            below = slope @ weights[layer].t() if layer else None
            self.weights[layer].sub_(inputs[layer].t() @ slope, alpha=self.rate)
            if self.biases:
                self.biases[layer].sub_(slope.sum(0, dtype=torch.float32), alpha=self.rate)
            if layer:
                slope = torch.ops.aten.threshold_backward(below, inputs[layer], 0)
        return loss

    def in_their_type(self):
        torch, inputs = self.torch, [self.x]
        for layer, weight in enumerate(self.weights):
            z = torch.addmm(self.biases[layer], inputs[-1], weight) if self.biases else inputs[-1] @ weight
            inputs.append(torch.relu(z) if layer + 1 < len(self.weights) else z)
        slope = inputs.pop() - self.y
        loss = slope.square().sum()
        slope = slope * 2
        for layer in reversed(range(len(self.weights))):
            below = slope @ self.weights[layer].t() if layer else None
            self.weights[layer].addmm_(inputs[layer].t(), slope, alpha=-self.rate)
            if self.biases:
                self.biases[layer].sub_(slope.sum(0), alpha=self.rate)
            if layer:
                slope = torch.ops.aten.threshold_backward(below, inputs[layer], 0)
        return loss


class Peer:
    def __init__(self, torch, case):
        self.torch, self.case = torch, case
        self.x, self.y = self.tensor(case.x), self.tensor(case.y)

    def tensor(self, array):
        return self.torch.from_numpy(array.copy()).to(self.case.device)

    def collect(self, losses):
        return self.torch.stack(losses).cpu().tolist()

    def synchronize(self):
        if self.case.device == "cuda":
            self.torch.cuda.synchronize()

    def loop(self, step):
        """A run of all steps, one call each, whose losses come to the host at the end."""

        def run():
            losses = [step() for _ in range(self.case.steps)]
            values = self.collect(losses)
            self.synchronize()
            return values

        self.synchronize()
        return run

    def manual_step(self):
        weights, biases = self.case.copies(self.tensor)
        return Manual(self.torch, self.x, self.y, weights, biases, self.case.rate, self.case.precision == "bf16")

    def manual(self):
        run = self.loop(self.manual_step())

        def without_gradients():
            with self.torch.no_grad():
                return run()

        return without_gradients

    def autograd(self):
        torch = self.torch
        weights, biases = self.case.copies(self.tensor)
        parameters = [value.requires_grad_() for value in weights + (biases or [])]
        optimizer = torch.optim.SGD(parameters, lr=self.case.rate)

        def step():
            h = self.x
            with common.products_of(torch, self.case):
                for layer, weight in enumerate(weights):
                    h = torch.addmm(biases[layer], h, weight) if biases else h @ weight
                    h = torch.relu(h) if layer + 1 < len(weights) else h
            loss = (h.to(self.y.dtype) - self.y).square().sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return self.loop(step)

    def prepare_compiled(self):
        """Compiled once for all runs: the tensors are arguments, and the code belongs to their shapes."""
        if not hasattr(self, "compiled"):
            torch, rate, is_bf16 = self.torch, self.case.rate, self.case.precision == "bf16"
            self.compiled = torch.compile(lambda x, y, w, b: Manual(torch, x, y, w, b, rate, is_bf16)(), dynamic=False)
        weights, biases = self.case.copies(self.tensor)

        def step():
            with self.torch.no_grad():
                return self.compiled(self.x, self.y, weights, biases)

        return self.loop(step)

    def graph_of(self, count):
        """Captures `count` steps once; each run copies the initial weights back and replays."""
        torch, case = self.torch, self.case
        step = self.manual_step()
        start_weights, start_biases = case.copies(self.tensor)
        losses = torch.zeros(case.steps, dtype=self.x.dtype, device="cuda")
        number = torch.zeros(1, dtype=torch.int64, device="cuda")
        graph = torch.cuda.CUDAGraph()

        def reset():
            for value, start in zip(step.weights + (step.biases or []), start_weights + (start_biases or [])):
                value.copy_(start)
            number.zero_()

        def steps(how_many):
            for _ in range(how_many):
                losses.index_copy_(0, number, step().reshape(1))
                number.add_(1)

        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                steps(1)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                steps(count)

        def prepare():
            with torch.no_grad():
                reset()
            torch.cuda.synchronize()

            def run():
                for _ in range(case.steps // count):
                    graph.replay()
                return losses.cpu().tolist()

            return run

        return prepare

    def graphs(self, count):
        """The row's prepare: the capture waits for the first run, so that a failure of it is this row's."""
        made = []

        def prepare():
            if not made:
                made.append(self.graph_of(count))
            return made[0]()

        return prepare


def main() -> None:
    case = common.read_case()
    import torch

    torch.set_num_threads(case.threads)
    common.only_in(case, "torch", "fp32", "fp64", *(["tf32", "bf16"] if case.device == "cuda" else []))
    torch.backends.cuda.matmul.allow_tf32 = case.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = False
    if hasattr(torch, "set_float32_matmul_precision"):
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
    if case.device == "cuda" and not torch.cuda.is_available():
        common.cannot(case, "torch", "this PyTorch finds no CUDA device")
    many = max(count for count in range(1, GRAPH_STEPS + 1) if case.steps % count == 0)
    if not case.is_plain:
        rows, missing = torch_job.rows_of(torch, case, many)
        common.serve(case, "torch", torch.__version__, rows, missing)
        return
    peer, said, missing = Peer(torch, case), common.includes(case), {}
    rows = [common.Row("torch/manual", peer.manual, said), common.Row("torch/autograd", peer.autograd, said)]
    if hasattr(torch, "compile"):
        rows.append(common.Row("torch/compile", peer.prepare_compiled, said))
    else:
        missing["torch/compile"] = f"PyTorch {torch.__version__} has no torch.compile"
    for name, count in (("torch/graph-1", 1), (f"torch/graph-{many}", many)):
        if case.device != "cuda":
            missing["torch/graph"] = "CUDA graphs need a GPU"
        elif name not in [row.name for row in rows]:
            rows.append(common.Row(name, peer.graphs(count), {**said, "note": f"{count} steps in a CUDA graph"}))
    common.serve(case, "torch", torch.__version__, rows, missing)


if __name__ == "__main__":
    main()
