"""One training step of the paper's network, batch 128, dropout on, in all the ways there are.

Each way does a whole step: forward, loss, backward, optimizer (SGD with momentum 0.9 and the
paper's decay). All run interleaved in one process for each level and number of threads. Prints
tables and writes JSON.

    python benchmarks/step.py --library build/benchmarks/libbench_step.so --out step.json
"""

import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    Release,
    Step,
    arguments_of,
    interleaved,
    measure_everywhere,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nsn

BATCH = 128
PIXELS, CLASSES = 784, 10
LR, MOMENTUM, DECAY = 0.003, 0.9, 9e-5
SECONDS = 9
#: Dropout of base behind hidden1 and hidden2, and of sub1 behind hidden2.
DROPOUT = (0.2, 0.5, 0.2)

EXPLAINED = {
    "nsn_cpp": "nsn from C++, nsn::FusedSGD",
    "nsn_python": "nsn from Python, torch.optim.SGD(fused=True)",
    "paper_way": "the authors' way: three modules, clones, gradients averaged by hand",
    "shared_eager": "shared nn.Linears, three forwards, one summed loss, fused SGD",
    "stacked_eager": "the same, stacked by hand",
    "compiled_shared": "torch.compile of shared_eager",
    "compiled_stacked": "torch.compile of stacked_eager",
    "no_autograd": "stacked, by hand: plain torch's operations into buffers made once",
    "limit": "the matrix products alone, and one fused pass of SGD",
}


class Linears(nn.Module):
    """The network's layers, initialised as the paper's."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(PIXELS, PIXELS)
        self.hidden2 = nn.Linear(PIXELS, PIXELS)
        self.output = nn.Linear(PIXELS, CLASSES)
        for layer in (self.hidden1, self.hidden2, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 0.01)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with the decay that the paper's L2 term leaves after merging."""
        rest = [self.output.weight, self.output.bias, self.hidden1.bias, self.hidden2.bias]
        return [
            {"params": [self.hidden1.weight], "weight_decay": DECAY},
            {"params": [self.hidden2.weight], "weight_decay": DECAY / 2},
            {"params": rest, "weight_decay": 0.0},
        ]


def shared_loss(layers: Linears, x: Tensor, y: Tensor) -> Tensor:
    """Three forwards, one summed loss."""
    h = F.dropout(F.relu(layers.hidden1(x)), 0.2)
    base = layers.output(F.dropout(F.relu(layers.hidden2(h)), 0.5))
    sub1 = layers.output(F.dropout(F.relu(layers.hidden2(x)), 0.2))
    sub2 = layers.output(x)
    return F.cross_entropy(base, y) + F.cross_entropy(sub1, y) + F.cross_entropy(sub2, y)


def stacked_loss(layers: Linears, x: Tensor, y: Tensor) -> Tensor:
    """The same with what runs through one layer stacked."""
    h = F.dropout(F.relu(layers.hidden1(x)), 0.2)
    base, sub1 = F.relu(layers.hidden2(torch.cat([h, x]))).chunk(2)
    logits = layers.output(torch.cat([F.dropout(base, 0.5), F.dropout(sub1, 0.2), x]))
    return F.cross_entropy(logits, y.repeat(3), reduction="sum") / len(y)


def eager(loss_of: Callable[..., Tensor], x: Tensor, y: Tensor) -> tuple[Step, Release]:
    """A step over shared nn.Linears with fused SGD."""
    layers = Linears()
    optimizer = torch.optim.SGD(layers.groups(), lr=LR, momentum=MOMENTUM, fused=True)

    def step() -> None:
        loss = loss_of(layers, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, optimizer.zero_grad


def nsn_network() -> nsn.Network:
    """The network as nsn has it."""
    hidden = {"activation": "relu", "weight_init": "xavier_uniform", "bias_init": 0.01}
    return nsn.Network(
        input=(PIXELS,),
        blocks={
            "hidden1": nsn.Dense(PIXELS, PIXELS, dropout=0.2, **hidden),
            "hidden2": nsn.Dense(PIXELS, PIXELS, dropout=0.5, **hidden),
            "output": nsn.Dense(PIXELS, CLASSES, weight_init="xavier_uniform", bias_init=0.01),
        },
        subnetworks={
            "sub1": nsn.Subnetwork(["hidden2", "output"], dropout={"hidden2": 0.2}),
            "sub2": ["output"],
        },
        merge=nsn.merge.two_smallest_mean(),
    )


def nsn_python(x: Tensor, y: Tensor) -> tuple[Step, Release]:
    """nsn.Network with torch's fused SGD."""
    net = nsn_network()
    groups = nsn.param_groups(net, DECAY, of="base")
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, fused=True)

    def step() -> None:
        loss = nsn.joint_loss(net(x, nsn.ALL), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, optimizer.zero_grad


def nsn_cpp(library: Path, x: Tensor, y: Tensor) -> tuple[Step, Release]:
    """The same from C++, by step.cpp."""
    code = ctypes.CDLL(str(library))
    code.nsn_step_new.restype = ctypes.c_void_p
    code.nsn_step_new.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    code.nsn_step_run.argtypes = code.nsn_step_release.argtypes = [ctypes.c_void_p]
    handle = code.nsn_step_new(x.data_ptr(), y.data_ptr(), len(x))
    return lambda: code.nsn_step_run(handle), lambda: code.nsn_step_release(handle)


def paper_way(x: Tensor, y: Tensor) -> tuple[Step, Release]:
    """The authors' program, step by step: L2 in base's loss, averaged momentum, clones."""

    def hidden(p: float) -> list[nn.Module]:
        return [nn.Linear(PIXELS, PIXELS), nn.ReLU(), nn.Dropout(p)]

    output = (PIXELS, CLASSES)
    base = nn.Sequential(*hidden(0.2), *hidden(0.5), nn.Linear(*output))
    sub1 = nn.Sequential(*hidden(0.2), nn.Linear(*output))
    sub2 = nn.Sequential(nn.Linear(*output))
    b, s, t = (list(net.parameters()) for net in (base, sub1, sub2))
    # Each parameter of base, and the two smallest networks' copies of it.
    merges = [
        (b[0], [b[0]]),
        (b[1], [b[1]]),
        (b[2], [s[0], b[2]]),
        (b[3], [s[1], b[3]]),
        (b[4], [t[0], s[2]]),
        (b[5], [t[1], s[3]]),
    ]
    copies = [(s[0], b[2]), (s[1], b[3]), (s[2], b[4]), (s[3], b[5]), (t[0], b[4]), (t[1], b[5])]
    momentum = [torch.zeros_like(p) for p in b]

    def step() -> None:
        for net in (base, sub1, sub2):
            net.zero_grad()
            loss = F.cross_entropy(net(x), y)
            if net is base:
                loss = loss + DECAY / 2 * sum((w**2).sum() for w in (b[0], b[2], b[4]))
            loss.backward()
        with torch.no_grad():
            for place, (parameter, users) in enumerate(merges):
                gradients = [user.grad.clone() for user in users]
                merged = sum(gradients) / len(gradients)
                momentum[place] = MOMENTUM * momentum[place] + (1 - MOMENTUM) * merged
                parameter.copy_(parameter - LR * 10 * momentum[place])
            for copy, original in copies:
                copy.data = original.clone()

    def release() -> None:
        for net in (base, sub1, sub2):
            net.zero_grad()

    return step, release


class ByHand:
    """The network's step without autograd, into buffers that are made once."""

    def __init__(self, x: Tensor, y: Tensor, dropout: tuple[float, float, float]) -> None:
        options = {"dtype": x.dtype}
        self.layers = Linears().to(x.dtype)
        self.x, self.classes = x, y.repeat(3).unsqueeze(1)
        self.dropout = dropout
        self.parameters = [p.detach() for p in self.layers.parameters()]
        self.gradients = [torch.zeros_like(p) for p in self.parameters]
        self.momentum = [torch.zeros_like(p) for p in self.parameters]
        batch = len(x)
        self.z1, self.mask1, self.d1 = (torch.empty(batch, PIXELS, **options) for _ in range(3))
        self.z2, self.mask2, self.d2 = (torch.empty(2 * batch, PIXELS, **options) for _ in range(3))
        self.in2 = torch.cat([x, x])
        self.in3 = torch.cat([x, x, x])
        self.logits = torch.empty(3 * batch, CLASSES, **options)
        self.ones = torch.full_like(self.classes, -1.0, dtype=x.dtype)

    @staticmethod
    def draw(mask: Tensor, probability: float) -> None:
        mask.bernoulli_(1 - probability).div_(1 - probability)

    def differentiate(self) -> None:
        """Forward, and the merged gradients."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        dw1, db1, dw2, db2, dw3, db3 = self.gradients
        batch = len(self.x)
        torch.mm(self.x, w1.t(), out=self.z1)
        self.z1.add_(b1).clamp_min_(0)
        self.draw(self.mask1, self.dropout[0])
        torch.mul(self.z1, self.mask1, out=self.in2[:batch])
        torch.mm(self.in2, w2.t(), out=self.z2)
        self.z2.add_(b2).clamp_min_(0)
        self.draw(self.mask2[:batch], self.dropout[1])
        self.draw(self.mask2[batch:], self.dropout[2])
        torch.mul(self.z2, self.mask2, out=self.in3[: 2 * batch])
        torch.addmm(b3, self.in3, w3.t(), out=self.logits)

        dy = torch.softmax(self.logits, 1).scatter_add_(1, self.classes, self.ones).div_(batch)
        # The mean of the two smallest: sub1 and sub2 for the output, base and sub1 for hidden2.
        torch.addmm(dw3, dy[batch:].t(), self.in3[batch:], beta=0, alpha=0.5, out=dw3)
        torch.sum(dy[batch:], 0, out=db3).mul_(0.5)
        torch.mm(dy[: 2 * batch], w3, out=self.d2)
        self.d2.mul_(self.mask2)
        torch.ops.aten.threshold_backward.grad_input(self.d2, self.z2, 0, grad_input=self.d2)
        torch.addmm(dw2, self.d2.t(), self.in2, beta=0, alpha=0.5, out=dw2)
        torch.sum(self.d2, 0, out=db2).mul_(0.5)
        torch.mm(self.d2[:batch], w2, out=self.d1)
        self.d1.mul_(self.mask1)
        torch.ops.aten.threshold_backward.grad_input(self.d1, self.z1, 0, grad_input=self.d1)
        torch.mm(self.d1.t(), self.x, out=dw1)
        torch.sum(self.d1, 0, out=db1)

    def step(self) -> None:
        self.differentiate()
        for places, decay in (((0,), DECAY), ((2,), DECAY / 2), ((1, 3, 4, 5), 0.0)):
            torch._fused_sgd_(
                [self.parameters[i] for i in places],
                [self.gradients[i] for i in places],
                [self.momentum[i] for i in places],
                weight_decay=decay,
                momentum=MOMENTUM,
                lr=LR,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )


def no_autograd(x: Tensor, y: Tensor) -> tuple[Step, Release]:
    """ByHand, whose gradients are first checked in float64, without dropout, against nsn's."""
    by_hand = ByHand(x.double(), y, (0.0, 0.0, 0.0))
    net = nsn_network().double().eval()
    with torch.no_grad():
        for parameter, own in zip(net.parameters(), by_hand.parameters, strict=True):
            parameter.copy_(own)
    nsn.joint_loss(net(x.double(), nsn.ALL), y).backward()
    by_hand.differentiate()
    for parameter, own in zip(net.parameters(), by_hand.gradients, strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-10, atol=1e-12)
    return ByHand(x, y, DROPOUT).step, lambda: None


def limit(x: Tensor) -> tuple[Step, Release]:
    """The products of one step into buffers that are there, and one fused pass of SGD."""
    layers = Linears()
    w1, w2, w3 = (layer.weight.detach() for layer in layers.children())
    parameters = [p.detach() for p in layers.parameters()]
    gradients = [torch.zeros_like(p) for p in parameters]
    momentum = [torch.zeros_like(p) for p in parameters]
    z1, dx2 = torch.empty(BATCH, PIXELS), torch.empty(BATCH, PIXELS)
    in2, in3 = torch.rand(2 * BATCH, PIXELS), torch.rand(3 * BATCH, PIXELS)
    z2, dx3 = torch.empty(2 * BATCH, PIXELS), torch.empty(2 * BATCH, PIXELS)
    logits = torch.empty(3 * BATCH, CLASSES)
    dy = torch.randn(2 * BATCH, CLASSES) * 1e-3
    dw1, _, dw2, _, dw3, _ = gradients

    def step() -> None:
        torch.mm(x, w1.t(), out=z1)
        torch.mm(in2, w2.t(), out=z2)
        torch.mm(in3, w3.t(), out=logits)
        # Output's weight gets the gradients of sub1 and sub2; base and sub1 hand theirs on.
        torch.mm(dy.t(), in3[BATCH:], out=dw3)
        torch.mm(dy, w3, out=dx3)
        torch.mm(dx3.t(), in2, out=dw2)
        torch.mm(dx3[:BATCH], w2, out=dx2)
        torch.mm(dx2.t(), x, out=dw1)
        torch._fused_sgd_(
            parameters,
            gradients,
            momentum,
            weight_decay=DECAY,
            momentum=MOMENTUM,
            lr=1e-9,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    return step, lambda: None


def measure(library: Path) -> dict[str, Any]:
    """One process: all ways, interleaved, with the threads that OMP_NUM_THREADS gives."""
    torch.manual_seed(1)
    x, y = torch.rand(BATCH, PIXELS), torch.randint(CLASSES, (BATCH,))
    ways = {
        "nsn_cpp": nsn_cpp(library, x, y),
        "nsn_python": nsn_python(x, y),
        "paper_way": paper_way(x, y),
        "shared_eager": eager(shared_loss, x, y),
        "stacked_eager": eager(stacked_loss, x, y),
        "compiled_shared": eager(torch.compile(shared_loss), x, y),
        "compiled_stacked": eager(torch.compile(stacked_loss), x, y),
        "no_autograd": no_autograd(x, y),
        "limit": limit(x),
    }
    return interleaved(ways, SECONDS)


KINDS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "SGD's pass over the parameters": ("aten::_fused_sgd_",),
    "torch.optim in Python": ("Optimizer.",),
    "bias: sums over rows": ("aten::sum",),
    "input copied behind activations": ("aten::copy_",),
    "nsn: element-wise passes, loss, graph": ("torch::autograd::CppNode",),
}


def print_profile(library: Path) -> None:
    """Where the time of a step from C++ and Python goes, by torch's profiler."""
    torch.manual_seed(1)
    x, y = torch.rand(BATCH, PIXELS), torch.randint(CLASSES, (BATCH,))
    for name, (step, _) in {
        "nsn_cpp": nsn_cpp(library, x, y),
        "nsn_python": nsn_python(x, y),
    }.items():
        for _ in range(20):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            started = time.perf_counter()
            for _ in range(100):
                step()
            total = (time.perf_counter() - started) * 1e6
        shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
        for event in profile.key_averages():
            kinds = (k for k, names in KINDS.items() if event.key.startswith(names))
            kind = next(kinds, None)
            if kind is not None:
                shares[kind] += event.self_cpu_time_total
        shares["the rest"] = total - sum(shares.values())
        table = Table(title=f"{name}, threads: {torch.get_num_threads()}", title_justify="left")
        table.add_column("")
        table.add_column("ms a step", justify="right")
        table.add_column("share", justify="right")
        for kind, spent in shares.items():
            table.add_row(kind, f"{spent / 1e5:.2f}", f"{spent / total:.1%}")
        Console(width=100).print(table)


#: The ways without nsn that leave differentiation to autograd.
OTHERS = ("shared_eager", "stacked_eager", "compiled_shared", "compiled_stacked")


def print_table(above: str, result: dict[str, Any]) -> None:
    """One line a way, and nsn's ratios."""
    median, peak = result["median_ms"], result["peak_bytes"]
    table = Table(title=f"one step, batch {BATCH}: {above}", title_justify="left")
    for column in ("way", "median", "p10 - p90", "/ nsn_cpp", "/ nsn_python", "peak memory"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for name in EXPLAINED:
        low, high = result["p10_p90_ms"][name]
        table.add_row(
            name,
            f"{median[name]:.2f} ms",
            f"{low:.2f} - {high:.2f}",
            f"{median[name] / median['nsn_cpp']:.2f}",
            f"{median[name] / median['nsn_python']:.2f}",
            f"{peak[name] / 1e6:.1f} MB",
        )
    console = Console(width=110)
    console.print(table)
    best = min(median[name] for name in OTHERS)
    for name in ("nsn_cpp", "nsn_python"):
        console.print(
            f"{name}: {median[name] / median['limit']:.2f} times the limit; "
            f"best other way with autograd / {name}: {best / median[name]:.2f}"
        )


def main() -> None:
    """Runs one process for each level and number of threads."""
    parser = arguments_of(__doc__, action="store_true")
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, only")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.library)))
        return
    if arguments.profile:
        print_profile(arguments.library)
        return
    measure_everywhere(arguments, print_table, "--library", str(arguments.library), batch=BATCH)
    for name, text in EXPLAINED.items():
        print(f"{name}: {text}")


if __name__ == "__main__":
    main()
