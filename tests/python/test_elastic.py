"""Networks of all blocks, narrowed and dropped at random, against plain torch on plain slices."""

import json
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nsn
import reference
from nsn import _C
from random_networks import random_description, random_input, refused_descriptions
from reference import Document

TOLERANCE = 1e-10
NOT_LINEAR = ("gradient_surgery", "equal_norms")
LaneGradients = dict[str, Tensor | None]
SEEDS = st.integers(0, 2**32 - 1)


def largest(tensors: Iterable[Tensor]) -> float:
    return max((float(each.detach().abs().max()) for each in tensors if each.numel()), default=0.0)


def close(a: Tensor, b: Tensor, scale: float = 0.0) -> bool:
    """Equal but for rounding, which grows with the largest of what was added."""
    scale = max(1.0, scale, largest([b]))
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale)


def network(document: Document) -> nsn.Network:
    return nsn.Network(nsn.Description.from_json(json.dumps(document))).double()


class Case:
    """A random network, a random pass over it, and a random loss."""

    def __init__(self, seed: int, document: Document | None = None) -> None:
        self.seed = seed
        self.random = pick = random.Random(seed)
        torch.manual_seed(seed)
        self.document = random_description(seed) if document is None else document
        self.net = network(self.document)
        types = {block["type"] for block in reference.flattened(self.document).values()}
        with torch.no_grad():
            for parameter in self.net.parameters():
                if parameter.dim() > 1:  # so that values neither grow nor shrink on their way
                    parameter.normal_(0.0, (parameter.shape[0] / parameter.numel()) ** 0.5)
                else:
                    parameter.normal_(0.5, 0.5)
                parameter.requires_grad_(pick.random() > 0.1)
            for name, buffer in self.net.named_buffers():  # as if it had been trained
                if name.split(".running_")[-1].startswith("mean"):
                    buffer.normal_()
                elif "running_var" in name:
                    buffer.uniform_(0.5, 2)
                else:
                    buffer.fill_(1)
        self.names = list(reference.subnetworks(self.document))
        self.lanes = pick.sample(self.names, pick.randint(1, len(self.names)))
        self.in_loss = [name for name in self.lanes if pick.random() < 0.8]
        self.loss_weights = {name: pick.choice([1.0, 0.3, -2.0]) for name in self.lanes}
        batches = [2, 4] if "BatchNorm" in types else [1, 2, 4]
        self.x = random_input(self.document, pick.choice(batches))
        self.targets: dict[str, Tensor] = {}
        self.net.train(pick.random() < 0.6)

    def lane(
        self,
        name: str,
        leaves: dict[str, Tensor],
        x: Tensor,
        mask: reference.Mask | None = None,
    ) -> reference.Lane:
        buffers = dict(self.net.named_buffers())
        return reference.run(
            self.document,
            name,
            partial(_find, leaves),
            partial(_find, buffers),
            x,
            mask,
            self.net.training,
        )

    def loss_of(self, name: str, output: Tensor) -> Tensor:
        if name not in self.targets:
            self.targets[name] = torch.randn(output.shape, dtype=torch.float64)
        return self.loss_weights[name] * (output - self.targets[name]).sin().sum()

    def loss(self, outputs: dict[str, Tensor]) -> Tensor:
        zero = torch.zeros((), dtype=torch.float64)
        return sum((self.loss_of(name, outputs[name]) for name in self.in_loss), zero)

    def leaves(self, layout: str = "plain") -> dict[str, Tensor]:
        return {
            key: LAYOUTS[layout](value.detach().clone()).requires_grad_()
            for key, value in self.net.named_parameters()
        }


def _find(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    found = tensors[name]
    assert tuple(found.shape) == shape, (name, found.shape, shape)
    return found


class Expected:
    """Outputs, merged gradients and new statistics of a case's pass, one lane at a time."""

    def __init__(self, case: Case, pass_seed: int) -> None:
        self._case, self._pass_seed = case, pass_seed
        document = case.document
        self.lanes, leaves, self.input_gradient = self._run("plain")
        counts = {
            name: case.lane(name, leaves[case.lanes[0]], case.x, _no_dropout).parameter_count
            for name in case.names
        }
        self.covered: dict[str, dict[str, Tensor]] = {}
        self.gradients: dict[str, Tensor | None] = {}
        self._of_lanes: dict[str, LaneGradients] = {}
        self._merge: dict[str, Callable[[LaneGradients], Tensor | None]] = {}
        for key, parameter in case.net.named_parameters():
            users = [name for name in case.lanes if key in self.lanes[name].uses]
            self.covered[key] = {
                name: reference.coverage(self.lanes[name].uses[key], parameter.shape)
                for name in users
            }
            self._merge[key] = partial(
                reference.merge_elements,
                reference.rule_of(document, key),
                covered=self.covered[key],
                by_size=reference.ranking(counts),
            )
            self._of_lanes[key] = {name: leaves[name][key].grad for name in users}
            merged = self._merge[key](self._of_lanes[key])
            self.gradients[key] = merged if parameter.requires_grad else None
        buffers = dict(case.net.named_buffers())
        self.buffers = buffers
        if case.net.training:
            self.buffers = reference.new_statistics(document, buffers, self.lanes)

    def _run(
        self, layout: str
    ) -> tuple[dict[str, reference.Lane], dict[str, dict[str, Tensor]], Tensor | None]:
        """The lanes, the leaves with their gradients, parameters laid so, and the input's."""
        case = self._case
        lanes: dict[str, reference.Lane] = {}
        leaves: dict[str, dict[str, Tensor]] = {}
        input_gradient: Tensor | None = None
        for name in case.lanes:
            leaves[name] = case.leaves(layout)
            x = case.x.clone()
            if x.is_floating_point():
                x.requires_grad_()
            mask = partial(case.net._core.dropout_mask, self._pass_seed, name)
            lanes[name] = case.lane(name, leaves[name], x, mask)
            if name in case.in_loss:
                case.loss_of(name, lanes[name].output).backward()
                if x.grad is not None:
                    input_gradient = x.grad if input_gradient is None else input_gradient + x.grad
        return lanes, leaves, input_gradient

    def doubt(self, key: str) -> float:
        """How far a merged gradient moves when those of the lanes are rounded otherwise.

        Rules that are not linear compare lanes' gradients: where one of them is rounding alone, so
        is its norm or angle. One that is zero however the parameters lie is no rounding.
        """
        of_lanes, merge, merged = self._of_lanes[key], self._merge[key], self.gradients[key]
        assert merged is not None
        runs = [self._run(layout)[1] for layout in LAYOUTS if layout != "expanded"]
        generator = torch.Generator().manual_seed(0)
        scale = max(1.0, largest(each for each in of_lanes.values() if each is not None))
        moved = []
        for _ in range(10):
            others: LaneGradients = {}
            for name, gradient in of_lanes.items():
                if gradient is None or not any(largest([run[name][key].grad]) for run in runs):
                    others[name] = gradient
                    continue
                noise = torch.randn(merged.shape, generator=generator, dtype=merged.dtype)
                others[name] = gradient + TOLERANCE * scale * noise * self.covered[key][name]
            again = merge(others)
            assert again is not None
            moved.append(again - merged)
        return largest(moved)


def _no_dropout(path: str, probability: float, shape: Any) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def check_pass(case: Case) -> None:
    """Outputs, statistics and gradients of a case's pass."""
    torch.manual_seed(case.seed)
    pass_seed = _C.draw_seed()
    expected = Expected(case, pass_seed)
    torch.manual_seed(case.seed)
    x = case.x.clone()
    if x.is_floating_point():
        x.requires_grad_()
    outputs = case.net(x, case.lanes)
    assert list(outputs) == case.lanes
    for name in case.lanes:
        assert close(outputs[name], expected.lanes[name].output), name
    for name, buffer in case.net.named_buffers():
        assert close(buffer.double(), expected.buffers[name].double()), name
    loss = case.loss(outputs)
    if not loss.requires_grad:
        return
    loss.backward()
    scale = largest(each for each in expected.gradients.values() if each is not None)
    for key, parameter in case.net.named_parameters():
        gradient = expected.gradients[key]
        if gradient is None:
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        rule = reference.rule_of(case.document, key)
        rounding = scale
        if rule["rule"] in NOT_LINEAR and not close(parameter.grad, gradient, scale):
            rounding = 3 * expected.doubt(key) / TOLERANCE
        assert close(parameter.grad, gradient, rounding), (key, rule)
        unused = ~torch.stack(list(expected.covered[key].values())).any(0)
        assert not parameter.grad[unused].any(), key
    if expected.input_gradient is not None:
        assert x.grad is not None and close(x.grad, expected.input_gradient, scale)


@settings(max_examples=1000)
@given(SEEDS)
def test_random_networks(seed: int) -> None:
    check_pass(Case(seed))


def offset(tensor: Tensor) -> Tensor:
    """Behind something else."""
    room = torch.full((tensor.numel() + 3,), 7.0, dtype=tensor.dtype)
    return room[3:].view(tensor.shape).copy_(tensor)


def strided(tensor: Tensor) -> Tensor:
    """A column of a table."""
    return torch.stack([torch.full_like(tensor, 7.0), tensor], -1)[..., 1]


#: The same values (but for `expanded`, which has one row many times) otherwise in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda tensor: tensor,
    "offset": offset,
    "strided": strided,
    "transposed": lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1),
    "negated": lambda tensor: torch._neg_view(-tensor),
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
}


@settings(max_examples=200)
@given(SEEDS)
def test_random_layouts(seed: int) -> None:
    """Of every parameter and the input, in every block."""
    case = Case(seed)
    for key, parameter in list(case.net.named_parameters()):
        laid = LAYOUTS[case.random.choice(list(LAYOUTS))](parameter.detach().clone())
        path, _, name = key.rpartition(".")
        module = case.net.get_submodule(path)
        setattr(module, name, nn.Parameter(laid, requires_grad=parameter.requires_grad))
    check_pass(case)


@settings(max_examples=200)
@given(SEEDS)
def test_random_modes(seed: int) -> None:
    """Where nothing is recorded, memory is used again: never what somebody else reads."""
    case = Case(seed)
    kept = case.random.choice([0.0, 0.0, 0.3])
    for parameter in case.net.parameters():
        parameter.requires_grad_(case.random.random() < kept)
    torch.manual_seed(case.seed)
    expected = Expected(case, _C.draw_seed())
    before = {name: buffer.clone() for name, buffer in case.net.named_buffers()}
    layouts = [each for each in LAYOUTS if each not in ("plain", "expanded", "negated")]
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        x = LAYOUTS[case.random.choice(layouts)](case.x.clone()) if case.x.dim() > 1 else case.x
        with torch.no_grad():
            for name, buffer in case.net.named_buffers():
                buffer.copy_(before[name])
        torch.manual_seed(case.seed)
        with mode():
            outputs = case.net(x, case.lanes)
        for name in case.lanes:
            assert close(outputs[name], expected.lanes[name].output), (mode, name)
        assert torch.equal(x, case.x)
        for name, buffer in case.net.named_buffers():
            assert close(buffer.double(), expected.buffers[name].double()), (mode, name)


@settings(max_examples=100)
@given(SEEDS)
def test_joint_equals_each_alone(seed: int) -> None:
    case = Case(seed)
    case.net.eval()
    outputs = case.net(case.x, nsn.ALL)
    assert list(outputs) == case.names
    for name in case.names:
        alone = case.net(case.x, name)
        assert tuple(alone.shape[1:]) == case.net.description.output_shape(name)
        assert close(outputs[name], alone)
        assert close(case.net.view(name)(case.x), alone)


@settings(max_examples=100)
@given(SEEDS)
def test_permuting_lanes_changes_nothing(seed: int) -> None:
    case = Case(seed)
    before = {name: buffer.clone() for name, buffer in case.net.named_buffers()}
    results = []
    for lanes in (case.lanes, case.random.sample(case.lanes, len(case.lanes))):
        torch.manual_seed(seed)
        case.net.zero_grad()
        case.net.load_state_dict(before, strict=False)
        outputs = case.net(case.x, lanes)
        loss = case.loss(outputs)
        if loss.requires_grad:
            loss.backward()
        buffers = {name: buffer.clone() for name, buffer in case.net.named_buffers()}
        results.append((outputs, buffers, {k: v.grad for k, v in case.net.named_parameters()}))
    first, second = results
    assert all(close(first[0][name], second[0][name]) for name in case.lanes)
    assert all(close(first[1][name].double(), second[1][name].double()) for name in before)
    scale = largest(each for each in first[2].values() if each is not None)
    for key, gradient in first[2].items():
        other = second[2][key]
        assert (gradient is None) == (other is None), key
        assert gradient is None or close(gradient, other, scale), key


@settings(max_examples=80)
@given(SEEDS)
def test_one_lane_leaves_the_rest_alone(seed: int) -> None:
    case = Case(seed)
    case.net.requires_grad_(True)
    name = case.random.choice(case.names)
    lane = case.lane(name, case.leaves(), case.x, _no_dropout)
    output = case.net(case.x, name)
    if output.requires_grad:  # not a sub-network of an activation alone
        output.sum().backward()
    for key, parameter in case.net.named_parameters():
        assert (parameter.grad is None) == (key not in lane.uses), key
        if parameter.grad is not None:
            covered = reference.coverage(lane.uses[key], parameter.shape)
            assert not parameter.grad[~covered].any(), key


@settings(max_examples=100)
@given(SEEDS)
def test_description_round_trip(seed: int) -> None:
    document = random_description(seed)
    description = nsn.Description.from_json(json.dumps(document))
    text = description.to_json()
    again = nsn.Description.from_json(text)
    assert again == description and again.to_json() == text
    assert again.names == list(reference.subnetworks(document))
    written = reference.subnetworks(json.loads(text))
    for name, subnetwork in reference.subnetworks(document).items():
        assert written[name]["blocks"] == subnetwork["blocks"]
        assert written[name].get("dropout", {}) == subnetwork.get("dropout", {})
    torch.manual_seed(seed)
    net, other = network(document), network(json.loads(text))
    other.load_state_dict(net.state_dict())
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in other.state_dict().items()
    }
    for name in net.subnetworks:
        assert again.parameter_count(name) == description.parameter_count(name)
        assert again.flops(name) == description.flops(name)


@settings(max_examples=150)
@given(SEEDS)
def test_what_does_not_fit_is_refused(seed: int) -> None:
    for document, why in refused_descriptions(seed):
        with pytest.raises(ValueError, match=r"block '|sub-network '") as caught:
            nsn.Description.from_json(json.dumps(document))
            pytest.fail(f"accepted in spite of: {why}")
        assert "INTERNAL" not in str(caught.value)


@settings(max_examples=100)
@given(SEEDS)
def test_counts(seed: int) -> None:
    case = Case(seed)
    case.net.eval()
    description = case.net.description
    leaves = {key: value.detach() for key, value in case.net.named_parameters()}
    used = set()
    for name in case.names:
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            lane = case.lane(name, leaves, random_input(case.document, 1))
        used |= set(lane.uses)
        assert description.parameter_count(name) == lane.parameter_count, name
        assert description.flops(name) == counter.get_total_flops(), name
    assert used == set(leaves)
    assert description.parameter_count() == sum(each.numel() for each in leaves.values())


# ---- one sub-network is a plain network ---------------------------------------------------------


def plain_network(
    blocks: dict[str, nsn.blocks.BlockOptions], shape: tuple[int, ...]
) -> nsn.Network:
    return nsn.Network(input=shape, blocks=blocks, dtype=torch.float64)


def mlp() -> tuple[nsn.Network, nn.Module, dict[str, str]]:
    blocks = {
        "hidden": nsn.Dense(5, 8, activation="gelu"),
        "norm": nsn.LayerNorm(8),
        "gated": nsn.Dense(8, 6, activation="glu"),
        "rms": nsn.RMSNorm(6),
        "output": nsn.Dense(6, 3),
    }
    plain = nn.Sequential(
        nn.Linear(5, 8),
        nn.GELU(),
        nn.LayerNorm(8),
        nn.Linear(8, 12),
        nn.GLU(),
        nn.RMSNorm(6, eps=1e-5),
        nn.Linear(6, 3),
    )
    names = {"hidden": "0", "norm": "2", "gated": "3", "rms": "5", "output": "6"}
    return plain_network(blocks, (5,)), plain, names


def cnn() -> tuple[nsn.Network, nn.Module, dict[str, str]]:
    blocks = {
        "conv": nsn.Conv2d(3, 8, 3, padding=1, bias=False),
        "batch": nsn.BatchNorm(8),
        "act": nsn.Activation("relu"),
        "depthwise": nsn.Conv2d(8, 8, 3, padding=1, groups=8),
        "grouped": nsn.Conv2d(8, 4, (1, 2), stride=(2, 1), dilation=(1, 2), groups=2),
        "group": nsn.GroupNorm(2, 4),
        "up": nsn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
        "max": nsn.MaxPool2d(2),
        "bilinear": nsn.Upsample(2, "bilinear"),
        "average": nsn.AvgPool2d(3, 2, 1),
        "last": nsn.BatchNorm(6, momentum=0.5),
        "mean": nsn.GlobalAvgPool(),
        "output": nsn.Dense(6, 3),
    }
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, (1, 2), stride=(2, 1), dilation=(1, 2), groups=2),
        nn.GroupNorm(2, 4),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AvgPool2d(3, 2, 1),
        nn.BatchNorm2d(6, momentum=0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    names = {name: str(place) for place, name in enumerate(blocks)} | {"output": "13"}
    return plain_network(blocks, (3, 6, 6)), plain, names


def signal() -> tuple[nsn.Network, nn.Module, dict[str, str]]:
    blocks = {
        "conv": nsn.Conv1d(2, 4, 3, dilation=2, causal=True),
        "batch": nsn.BatchNorm(4),
        "pool": nsn.MaxPool1d(2),
        "average": nsn.AvgPool1d(2, 1),
        "flatten": nsn.Flatten(),
        "norm": nsn.BatchNorm(12),
        "output": nsn.Dense(12, 3),
    }
    plain = nn.Sequential(
        nn.ConstantPad1d((4, 0), 0.0),
        nn.Conv1d(2, 4, 3, dilation=2),
        nn.BatchNorm1d(4),
        nn.MaxPool1d(2),
        nn.AvgPool1d(2, 1),
        nn.Flatten(),
        nn.BatchNorm1d(12),
        nn.Linear(12, 3),
    )
    names = {name: str(place + 1) for place, name in enumerate(blocks)}
    return plain_network(blocks, (2, 8)), plain, names


def transformer() -> tuple[nsn.Network, nn.Module, dict[str, str]]:
    blocks: dict[str, nsn.blocks.BlockOptions] = {
        f"b{i}": nsn.Transformer(12, 3, 20) for i in range(2)
    }
    options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
    plain = nn.Sequential(
        *(nn.TransformerEncoderLayer(12, 3, 20, norm_first=True, **options) for _ in range(2))
    )
    names = {}
    for i in range(2):
        names |= {
            f"b{i}.attention.norm": f"{i}.norm1",
            f"b{i}.attention.self.qkv.weight": f"{i}.self_attn.in_proj_weight",
            f"b{i}.attention.self.qkv.bias": f"{i}.self_attn.in_proj_bias",
            f"b{i}.attention.self.out": f"{i}.self_attn.out_proj",
            f"b{i}.ffn.norm": f"{i}.norm2",
            f"b{i}.ffn.up": f"{i}.linear1",
            f"b{i}.ffn.down": f"{i}.linear2",
        }
    return plain_network(blocks, (4, 12)), plain, names


@pytest.mark.parametrize("make", [mlp, cnn, signal, transformer])
def test_one_subnetwork_equals_plain_modules(
    make: Callable[[], tuple[nsn.Network, nn.Module, dict[str, str]]],
) -> None:
    net, plain, names = make()
    plain.double()

    def theirs(key: str) -> str:
        """Their name of a tensor of ours."""
        found = max((each for each in names if f"{key}.".startswith(f"{each}.")), key=len)
        return names[found] + key.removeprefix(found)

    state = net.state_dict()
    assert len(state) == len(plain.state_dict())
    plain.load_state_dict({theirs(key): value for key, value in state.items()})
    for training in (True, False):
        net.train(training)
        plain.train(training)
        x = torch.randn(3, *net.description.input_shape, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        net.zero_grad()
        plain.zero_grad()
        ours, expected = net(x), plain(y)
        assert close(ours, expected)
        ours.pow(3).sum().backward()
        expected.pow(3).sum().backward()
        assert x.grad is not None and y.grad is not None and close(x.grad, y.grad)
        for key, parameter in net.named_parameters():
            assert close(parameter.grad, plain.get_parameter(theirs(key)).grad), key
        for key, buffer in net.named_buffers():
            assert close(buffer.double(), plain.get_buffer(theirs(key)).double()), key


# ---- batch norm's statistics --------------------------------------------------------------------


def normed(**options: Any) -> nsn.Network:
    return nsn.Network(
        input=(4,),
        blocks={
            "first": nsn.Dense(4, 6),
            "norm": nsn.BatchNorm(6, **options),
            "output": nsn.Dense(6, 2),
        },
        subnetworks={"slim": nsn.Subnetwork(["first", "norm", "output"], width={"first": 0.5})},
        dtype=torch.float64,
    )


def test_shared_statistics_take_one_step_towards_the_mean() -> None:
    net = normed(momentum=0.25)
    x = torch.randn(5, 4, dtype=torch.float64)
    net(x, nsn.ALL)
    features = nn.functional.linear(x, net.first.weight, net.first.bias)
    # Both lanes see the same values in the channels that they share.
    assert close(net.norm.running_mean, 0.25 * features.mean(0))
    assert close(net.norm.running_var, 0.75 + 0.25 * features.var(0))
    assert net.norm.num_batches_tracked == 1
    before = net.norm.running_mean.clone()
    net(x, "slim")
    assert torch.equal(net.norm.running_mean[3:], before[3:])
    assert close(net.norm.running_mean[:3], 0.75 * before[:3] + 0.25 * features.mean(0)[:3])


def test_private_statistics_are_the_lanes_own() -> None:
    net = normed(per_subnetwork=["affine", "statistics"])
    x = torch.randn(5, 4, dtype=torch.float64)
    net(x, "slim")
    buffers = dict(net.named_buffers())
    features = nn.functional.linear(x, net.first.weight, net.first.bias)
    assert close(buffers["norm.running_mean_slim"], 0.1 * features.mean(0)[:3])
    assert buffers["norm.running_mean_base"].shape == (6,)
    assert not buffers["norm.running_mean_base"].any()
    assert buffers["norm.num_batches_tracked_slim"] == 1
    assert buffers["norm.num_batches_tracked_base"] == 0
    net.eval()
    net(x, "slim")
    with pytest.raises(ValueError, match=r"base.*norm.*recalibrate|norm.*base.*recalibrate"):
        net(x)


@pytest.mark.parametrize(
    "options",
    [{}, {"per_subnetwork": ["statistics"]}, {"per_subnetwork": ["statistics"], "track": False}],
)
def test_evaluation_without_statistics_is_as_in_torch_until_others_have_some(
    options: dict[str, Any],
) -> None:
    net = normed(**options)
    x = torch.randn(5, 4, dtype=torch.float64)
    if not options.get("track", True):
        net(x, nsn.ALL)  # leaves none
    net.eval()
    assert torch.equal(net(x, "slim"), net.view("slim")(x))
    net.recalibrate([x], "base")
    if "per_subnetwork" not in options:
        assert torch.equal(net(x, "slim"), net.view("slim")(x))
        return
    for call in (lambda: net(x, "slim"), lambda: net.view("slim")(x)):
        with pytest.raises(ValueError, match="slim") as caught:
            call()
        assert "'norm." in str(caught.value) and "recalibrate" in str(caught.value)


# ---- the blocks in Python and in JSON -----------------------------------------------------------

DEFAULTS: list[tuple[nsn.blocks.BlockOptions, Document, tuple[int, ...]]] = [
    (nsn.Dense(4, 3), {"in_features": 4, "out_features": 3}, (4,)),
    (nsn.Conv1d(4, 6, 2), {"in_channels": 4, "out_channels": 6, "kernel_size": 2}, (4, 5)),
    (nsn.Conv2d(4, 6, 2), {"in_channels": 4, "out_channels": 6, "kernel_size": 2}, (4, 5, 5)),
    (
        nsn.ConvTranspose2d(4, 6, 2),
        {"in_channels": 4, "out_channels": 6, "kernel_size": 2},
        (4, 5, 5),
    ),
    (nsn.Upsample(2), {"scale_factor": 2}, (4, 5, 5)),
    (nsn.MaxPool1d(2), {"kernel_size": 2}, (4, 5)),
    (nsn.MaxPool2d(2), {"kernel_size": 2}, (4, 5, 5)),
    (nsn.AvgPool1d(2), {"kernel_size": 2}, (4, 5)),
    (nsn.AvgPool2d(2), {"kernel_size": 2}, (4, 5, 5)),
    (nsn.GlobalAvgPool(), {}, (4, 5, 5)),
    (nsn.Flatten(), {}, (4, 5, 5)),
    (nsn.Embedding(7, 3), {"num_embeddings": 7, "embedding_dim": 3}, (4,)),
    (nsn.PositionEmbedding(5, 4), {"length": 5, "features": 4}, (5, 4)),
    (nsn.LayerNorm(4), {"features": 4}, (4,)),
    (nsn.RMSNorm(4), {"features": 4}, (4,)),
    (nsn.GroupNorm(2, 4), {"groups": 2, "channels": 4}, (4, 5)),
    (nsn.BatchNorm(4), {"features": 4}, (4,)),
    (nsn.Activation("tanh"), {"function": "tanh"}, (4,)),
    (nsn.Dropout(0.5), {"p": 0.5}, (4,)),
    (
        nsn.Sequence({"a": nsn.Activation("tanh")}),
        {"blocks": [{"name": "a", "type": "Activation", "function": "tanh"}]},
        (4,),
    ),
    (
        nsn.Residual({"a": nsn.Activation("tanh")}),
        {"blocks": [{"name": "a", "type": "Activation", "function": "tanh"}]},
        (4,),
    ),
    (nsn.Attention(4, 2), {"features": 4, "heads": 2}, (5, 4)),
    (nsn.Transformer(4, 2, 8), {"features": 4, "heads": 2, "ffn": 8}, (5, 4)),
]


@pytest.mark.parametrize(
    ("block", "fields", "shape"), DEFAULTS, ids=[type(each[0]).__name__ for each in DEFAULTS]
)
def test_defaults_are_the_same_in_python_and_json(
    block: nsn.blocks.BlockOptions, fields: Document, shape: tuple[int, ...]
) -> None:
    dtype = torch.int64 if isinstance(block, nsn.Embedding) else torch.float64
    ours = nsn.Description(input=shape, blocks={"it": block}, dtype=dtype)
    entry = {"name": "it", "type": type(block).__name__, **fields}
    document = {
        "nsn": 1,
        "input": {"shape": list(shape), "dtype": "int64" if dtype == torch.int64 else "float64"},
        "blocks": [entry],
    }
    assert nsn.Description.from_json(json.dumps(document)) == ours


def test_tied_output_in_python_and_json() -> None:
    ours = nsn.Description(
        input=(4,),
        blocks={"tokens": nsn.Embedding(7, 3), "output": nsn.TiedOutput("tokens", 7, 3)},
        dtype=torch.int64,
    )
    tied = {"embedding": "tokens", "num_embeddings": 7, "embedding_dim": 3}
    document = json.loads(ours.to_json())
    document["blocks"][1] = {"name": "output", "type": "TiedOutput", **tied}
    assert nsn.Description.from_json(json.dumps(document)) == ours


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (nsn.Dense(4, 4, per_subnetwork="bias"), r'nsn.Dense: per_subnetwork must be a list of parts, but is a str. Write \["bias"\]'),
        (nsn.Sequence([nsn.Dense(4, 4)]), "nsn.Sequence: blocks must be a dict of names, but is a list"),
        (nsn.Residual({"a": nn.Linear(4, 4)}), "nsn.Residual: block 'a' must be a block such as nsn.Dense, but is a Linear"),
    ],
    ids=range(3),
)  # fmt: skip
def test_refused_blocks(block: nsn.blocks.BlockOptions, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        nsn.Description(input=(4,), blocks={"it": block})


def test_private_parts_may_be_any_iterable() -> None:
    texts = {
        nsn.Description(
            input=(4,), blocks={"it": nsn.Dense(4, 4, scale=True, per_subnetwork=parts)}
        ).to_json()
        for parts in ({"scale", "bias"}, ["bias", "scale"], ("bias", "scale"))
    }
    assert len(texts) == 1
