"""PyTorch's rows of a case with minibatches and Adam, by its own API: nn.Linear, a loss of torch.nn.functional, autograd
and torch.optim.Adam, all samples on the device and the rows of each batch gathered there.

eager      the loop as PyTorch's tutorials have it
compile    the same with forward and loss compiled, and with them the backward; Adam's step, compiled too, would compute
           1 - beta^t in single precision
graph-N    N steps in a CUDA graph, with Adam's step count and the batch's number on the device
"""

import common


class Job:
    """A network with its optimizer. The tensors stay where they are from run to run."""

    def __init__(self, torch, case, capturable=False):
        self.torch, self.case = torch, case
        self.x, self.y, self.batches = (torch.from_numpy(array.copy()).to(case.device)
                                        for array in (case.x, case.y, case.batches))  # fmt: skip
        layers = []
        for weight in case.weights:
            layers += [torch.nn.Linear(*weight.shape, bias=case.biases is not None, device=case.device, dtype=self.x.dtype)]
            layers += [torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers[:-1])
        self.initial = [torch.from_numpy(value.T.copy()).to(case.device) for layer in zip(*case.copies(lambda a: a))
                        for value in layer]  # fmt: skip
        # PyTorch calls the fused implementation its fastest one.
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=case.rate, fused=True, capturable=capturable)
        functional = torch.nn.functional
        self.loss_function = {"cross-entropy": functional.cross_entropy, "mse": functional.mse_loss}[case.loss]

    def begin(self):
        """The initial parameters, and an optimizer that has done no step."""
        with self.torch.no_grad():
            for parameter, start in zip(self.network.parameters(), self.initial):
                parameter.copy_(start)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
        if self.case.device == "cuda":
            self.torch.cuda.synchronize()

    def loss_of(self, rows):
        with common.products_of(self.torch, self.case):
            outputs = self.network(self.x[rows])
        return self.loss_function(outputs.to(self.x.dtype), self.y[rows])

    def step(self, rows, loss_of):
        loss = loss_of(rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def prepare(self, loss_of):
        self.begin()
        return lambda: self.torch.stack([self.step(rows, loss_of) for rows in self.batches]).cpu().tolist()


class Graph:
    """`count` steps of a job, captured once; each run begins anew and replays them."""

    def __init__(self, torch, case, count):
        self.torch, self.case, self.count = torch, case, count
        self.job = Job(torch, case, capturable=True)
        self.losses = torch.zeros(case.steps, dtype=self.job.x.dtype, device="cuda")
        self.number = torch.zeros(1, dtype=torch.int64, device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # autograd and Adam allocate in their first step
            self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.job.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            for _ in range(count):
                self.step()

    def step(self):
        rows = self.job.batches.index_select(0, self.number)[0]
        self.losses.index_copy_(0, self.number, self.job.step(rows, self.job.loss_of).reshape(1))
        self.number.add_(1)

    def prepare(self):
        self.number.zero_()
        self.job.begin()
        return self.run

    def run(self):
        for _ in range(self.case.steps // self.count):
            self.graph.replay()
        return self.losses.cpu().tolist()


def on_first_use(make):
    """The row's prepare, which makes what it needs in its first run: a failure of that is this row's alone."""
    made = []

    def prepare():
        if not made:
            made.append(make())
        return made[0]()

    return prepare


def rows_of(torch, case, many):
    """The rows, `many` steps in a CUDA graph, and those that are missing."""
    said, missing = common.includes(case, note="fused Adam"), {}

    def eager():
        job = Job(torch, case)
        return lambda: job.prepare(job.loss_of)

    def compiled():
        job = Job(torch, case)
        loss_of = torch.compile(job.loss_of, dynamic=False)
        return lambda: job.prepare(loss_of)

    rows = [common.Row("torch/eager", on_first_use(eager), said), common.Row("torch/compile", on_first_use(compiled), said)]
    if case.device == "cuda":
        graph = {**said, "note": f"fused Adam, {many} steps in a CUDA graph"}
        rows.append(common.Row(f"torch/graph-{many}", on_first_use(lambda: Graph(torch, case, many).prepare), graph))
    else:
        missing["torch/graph"] = "CUDA graphs need a GPU"
    return rows, missing
