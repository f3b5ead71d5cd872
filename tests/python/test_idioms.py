"""What users of torch do with a module, done with ours."""

import copy
import io
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import nsn
from conftest import paper_network


def network(**options: Any) -> nsn.Network:
    return paper_network(width=12, dropout=False, **options)


def batch(size: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 12, dtype=dtype), torch.randint(10, (size,))


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}


def step(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    net.zero_grad()
    loss = nsn.joint_loss(net(x, nsn.ALL), y)
    loss.backward()
    return loss


def test_parameters_are_nn_parameters_under_their_names() -> None:
    net = network()
    names = [f"{b}.{p}" for b in ("hidden1", "hidden2", "output") for p in ("weight", "bias")]
    assert [name for name, _ in net.named_parameters()] == names
    assert all(type(each) is nn.Parameter for each in net.parameters())
    assert isinstance(net.hidden1.weight, nn.Parameter)


def test_state_dict_round_trip() -> None:
    a, b = network(), network()
    x, _ = batch()
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))


def test_load_state_dict_refuses_other_shapes() -> None:
    state = network().state_dict()
    state["output.weight"] = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match="size mismatch for output.weight"):
        network().load_state_dict(state)


def test_load_state_dict_assign() -> None:
    net = network()
    x, y = batch()
    view = net.view("sub1")
    before = view(x)
    state = {key: torch.full_like(value, 0.01) for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    assert net.hidden2.weight.data_ptr() == state["hidden2.weight"].data_ptr()
    expected = F.linear(
        F.relu(F.linear(x, *[state[f"hidden2.{p}"] for p in ("weight", "bias")])),
        state["output.weight"],
        state["output.bias"],
    )
    assert torch.allclose(net(x, "sub1"), expected)
    assert view.stale() and torch.equal(view(x), before)
    step(net, x, y)
    assert net.hidden2.weight.grad is not None


def test_assign_of_a_wrong_shape_is_refused_when_called() -> None:
    net = network()
    net.output.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(
        ValueError, match=r"'output.weight' must have shape \(10, 12\), but has \(3, 3\)"
    ):
        net(batch()[0])


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "pickle"],
)
def test_copies(copier: Callable[[nsn.Network], nsn.Network]) -> None:
    net = network()
    net.hidden1.weight.requires_grad_(False)
    net.eval()
    state = torch.get_rng_state()
    other = copier(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.description == net.description and not other.training
    assert not other.hidden1.weight.requires_grad and other.hidden2.weight.requires_grad
    x, _ = batch()
    assert torch.equal(net(x), other(x))
    with torch.no_grad():
        other.output.bias += 1
    assert not torch.equal(net(x), other(x))


def test_copies_keep_function_rules() -> None:
    net = network(merge=nsn.merge.function(mean_of_two, "mean_of_two"))
    x, y = batch()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        step(net, x, y)
        step(other, x, y)
        for key, gradient in gradients(net).items():
            assert torch.equal(gradient, gradients(other)[key])


def mean_of_two(lanes: list[nsn.merge.LaneGradient]) -> Tensor:
    return (lanes[0].gradient + lanes[-1].gradient) / 2


def test_torch_save_and_load_of_the_module() -> None:
    net, file = network(), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    x, _ = batch()
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_to_dtype(dtype: torch.dtype) -> None:
    net = network()
    view = net.view("base")
    net.to(dtype)
    x, y = batch(dtype=dtype)
    step(net, x, y)
    assert net(x).dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in net.parameters())
    assert view.stale() and not net.view("base").stale()


def test_to_meta_gives_shapes() -> None:
    net = paper_network(width=12).to("meta")
    outputs = net(torch.empty(4, 12, device="meta"), nsn.ALL)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "base": (4, 10),
        "sub1": (4, 10),
        "sub2": (4, 10),
    }


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_optimizers_do_what_they_do_to_plain_parameters(name: str, kind: dict[str, bool]) -> None:
    if name == "RMSprop" and "fused" in kind:
        kind = {}  # torch has none
    net = network()
    plain = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]
    options = {"lr": 0.01, **({"momentum": 0.9} if name == "SGD" else {}), **kind}
    ours = getattr(torch.optim, name)(net.parameters(), **options)
    theirs = getattr(torch.optim, name)(plain, **options)
    for _ in range(3):
        step(net, *batch())
        for parameter, other in zip(net.parameters(), plain, strict=True):
            other.grad = parameter.grad.clone()
        ours.step()
        theirs.step()
        for parameter, other in zip(net.parameters(), plain, strict=True):
            assert torch.equal(parameter, other)


def test_lbfgs() -> None:
    net = network()
    x, y = batch()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1)
    first = step(net, x, y).item()
    for _ in range(3):
        optimizer.step(lambda: step(net, x, y))
    assert step(net, x, y).item() < first


def test_hooks_on_parameters_see_the_merged_gradient_once() -> None:
    net = network()
    x, y = batch()
    step(net, x, y)
    expected = gradients(net)["output.weight"]
    seen: list[Tensor] = []
    after: list[Tensor] = []
    net.output.weight.register_hook(seen.append)
    net.output.weight.register_post_accumulate_grad_hook(lambda p: after.append(p.grad.clone()))
    step(net, x, y)
    assert len(seen) == len(after) == 1
    assert torch.equal(seen[0], expected) and torch.equal(after[0], expected)


def test_a_hook_may_replace_the_gradient() -> None:
    net = network()
    net.output.weight.register_hook(torch.zeros_like)
    step(net, *batch())
    assert not net.output.weight.grad.any() and net.hidden2.weight.grad.any()


def test_forward_hooks() -> None:
    net = network()
    x, _ = batch()
    calls: list[str] = []
    net.register_forward_pre_hook(lambda module, args: calls.append("before"))
    net.register_forward_hook(lambda module, args, output: {**output, "extra": args[0]})
    outputs = net(x, nsn.ALL)
    assert calls == ["before"] and outputs["extra"] is x


def test_functional_call() -> None:
    net = network()
    x, y = batch()
    given = {key: (p.detach() * 2).requires_grad_() for key, p in net.named_parameters()}
    other = network()
    other.load_state_dict({key: value.detach() for key, value in given.items()})
    outputs = torch.func.functional_call(net, given, (x, nsn.ALL))
    nsn.joint_loss(outputs, y).backward()
    step(other, x, y)
    for key, gradient in gradients(other).items():
        assert torch.equal(given[key].grad, gradient)
    assert not gradients(net)


def test_parametrize() -> None:
    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    net, plain = network(), network()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        plain.hidden2.weight.mul_(2)
    parametrize.register_parametrization(net.hidden2, "weight", Double())
    x, y = batch()
    assert torch.equal(net(x, "sub1"), plain(x, "sub1"))
    assert torch.equal(net.view("sub1")(x), plain(x, "sub1"))
    step(net, x, y)
    step(plain, x, y)
    original = net.hidden2.parametrizations.weight.original
    assert torch.allclose(original.grad, 2 * plain.hidden2.weight.grad)
    groups = nsn.param_groups(net, 1e-4)
    assert any(original is each for group in groups for each in group["params"])


def test_autocast() -> None:
    net = network(merge=nsn.merge.mean())
    x, y = batch(32)
    lanes = {
        "base": ["hidden1", "hidden2", "output"],
        "sub1": ["hidden2", "output"],
        "sub2": ["output"],
    }
    total: dict[str, list[Tensor]] = {}
    for blocks in lanes.values():
        own = {key: p.detach().clone().requires_grad_() for key, p in net.named_parameters()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = x
            for block in blocks:
                h = F.linear(h, own[f"{block}.weight"], own[f"{block}.bias"])
                h = h if block == "output" else F.relu(h)
            loss = F.cross_entropy(h, y)
        loss.backward()
        for key, value in own.items():
            if value.grad is not None:
                total.setdefault(key, []).append(value.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(x, nsn.ALL)
        loss = nsn.joint_loss(outputs, y)
    assert {each.dtype for each in outputs.values()} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    loss.backward()
    for key, gradient in gradients(net).items():
        expected = torch.stack(total[key]).mean(0)
        assert gradient.dtype == torch.float32
        # bfloat16 has 8 bits: two ways of rounding differ by some of the last.
        assert torch.allclose(gradient, expected, rtol=0.05, atol=0.02 * expected.abs().max()), key


def test_second_derivative_under_autocast_is_refused() -> None:
    net = network(merge=nsn.merge.sum())
    x, y = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nsn.joint_loss(net(x, nsn.ALL), y)
    (first,) = torch.autograd.grad(loss, [net.output.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative under autocast"):
        first.sum().backward()


def test_grad_scaler() -> None:
    net, plain = network(), network()
    plain.load_state_dict(net.state_dict())
    x, y = batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler.scale(nsn.joint_loss(net(x, nsn.ALL), y)).backward()
    scaler.step(ours)
    scaler.update()
    step(plain, x, y)
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_gives_the_same_numbers(backend: str) -> None:
    net = network()
    x, y = batch()
    compiled = torch.compile(net, backend=backend)
    step(net, x, y)
    expected = gradients(net)
    step(compiled, x, y)
    for key, gradient in gradients(net).items():
        assert torch.equal(gradient, expected[key])


def test_a_whole_graph_is_refused_with_the_reason() -> None:
    compiled = torch.compile(network(), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="nsn runs its joint pass as one C"):
        compiled(batch()[0])


def distributed_worker(rank: int, port: int, lanes: Any, results: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    net = network()
    x, y = batch(8)
    mine = slice(4 * rank, 4 * rank + 4)
    parallel = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    nsn.joint_loss(parallel(x[mine], lanes), y[mine]).backward()
    results[rank] = {key: value.numpy() for key, value in gradients(net).items()}
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("lanes", [nsn.ALL, ["sub2", "sub1"]], ids=["all", "two"])
def test_ddp_gives_the_gradient_of_the_joined_batch(lanes: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.Manager().dict()
    torch.multiprocessing.start_processes(
        distributed_worker, (port, lanes, results), nprocs=2, start_method="spawn"
    )
    torch.manual_seed(0)
    net = network()
    x, y = batch(8)
    nsn.joint_loss(net(x, lanes), y).backward()
    for key, gradient in gradients(net).items():
        for rank in range(2):
            assert torch.allclose(torch.from_numpy(results[rank][key]), gradient, atol=1e-6), key


def test_accelerate() -> None:
    from accelerate import Accelerator

    torch.manual_seed(1)
    net, plain = network(), network()
    plain.load_state_dict(net.state_dict())
    x, y = batch(32)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    accelerator = Accelerator(cpu=True)
    model, optimizer, batches = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), lr=0.1), loader
    )
    for images, labels in batches:
        optimizer.zero_grad()
        accelerator.backward(nsn.joint_loss(model(images, nsn.ALL), labels))
        optimizer.step()
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    for images, labels in loader:
        step(plain, images, labels)
        other.step()
    for a, b in zip(accelerator.unwrap_model(model).parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_of_torch_func_are_refused(transform: str) -> None:
    net = network()
    x, _ = batch()

    def total(x: Tensor) -> Tensor:
        return net(x).sum()

    with pytest.raises(RuntimeError, match=r"transforms of torch.func .* do not pass nsn"):
        if transform == "grad":
            torch.func.grad(total)(x)
        elif transform == "vmap":
            torch.func.vmap(lambda each: net(each))(x.unsqueeze(1))
        else:
            torch.func.jvp(total, (x,), (x,))


def test_forward_mode_is_refused() -> None:
    net = network()
    x, _ = batch()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match="forward-mode automatic differentiation"):
            net(dual)


def test_empty_batch() -> None:
    net = network()
    outputs = net(torch.empty(0, 12), nsn.ALL)
    assert all(output.shape == (0, 10) for output in outputs.values())
    sum(output.sum() for output in outputs.values()).backward()
    assert all(not parameter.grad.any() for parameter in net.parameters())


def test_masks_do_not_depend_on_threads() -> None:
    net = paper_network(width=784)
    x = torch.rand(256, 784)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(7)
            # The products may round by threads; what dropout zeroed may not.
            mask = net._core.dropout_mask(nsn._C.draw_seed(), "base", "hidden1", 0.2, [256, 784])
            torch.manual_seed(7)
            outputs.append((mask, net(x, nsn.ALL)))
            if count == 2:
                assert torch.__config__.parallel_info().count("at::get_num_threads() : 2") == 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0][0], outputs[1][0])
    for name in net.subnetworks:
        assert torch.allclose(outputs[0][1][name], outputs[1][1][name], atol=1e-5)


def test_the_gil_is_released() -> None:
    net = nsn.Network(input=(2000,), blocks={f"b{i}": nsn.Dense(2000, 2000) for i in range(6)})
    x = torch.rand(2000, 2000)
    longest = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    with torch.no_grad():
        net(x)
    took = time.perf_counter() - started
    done.set()
    watcher.join()
    # A watcher that had to wait for the GIL would have slept through nearly all of the call.
    assert longest < 0.5 * took


def test_repr_and_describe() -> None:
    text = repr(network())
    assert "(hidden1): Dense(12, 12, activation=relu)" in text
    assert "sub1: hidden2 -> output, 286 parameters" in text
    assert "merge: two_smallest_mean" in text


def test_example_gives_the_same_weights_in_both_languages(tmp_path: Path) -> None:
    import subprocess
    import sys

    from safetensors.torch import load_file

    from conftest import ROOT

    programs = {
        "cpp": [str(ROOT / "build/examples/cpp/train_mnist")],
        "python": [sys.executable, str(ROOT / "examples/python/train_mnist.py")],
    }
    weights = {}
    for name, program in programs.items():
        path = tmp_path / f"{name}.safetensors"
        arguments = [str(ROOT / "build/data/mnist"), "1", "3", "30", str(path)]
        subprocess.run([*program, *arguments], check=True, timeout=300)
        weights[name] = load_file(path)
    assert weights["cpp"].keys() == weights["python"].keys()
    for key, value in weights["cpp"].items():
        assert torch.equal(value, weights["python"][key]), key


def test_compiled_autograd_is_refused_with_the_remedy() -> None:
    from torch._dynamo import compiled_autograd

    net = network()
    x, _ = batch()
    with (
        compiled_autograd._enable(torch.compile(backend="eager")),
        pytest.raises(RuntimeError, match=r"compiled_autograd = False, or train net\.extract"),
    ):
        net(x, nsn.ALL)
    net(x, nsn.ALL)["base"].sum().backward()


@pytest.mark.parametrize("what", ["network", "frozen", "view", "pack"])
def test_the_old_exporter_of_onnx_is_refused(what: str, tmp_path: Path) -> None:
    """It would write the outputs for one input as constants."""
    net = network().eval()
    if what == "frozen":
        net.requires_grad_(False)
    handles = {"view": net.view("sub1"), "pack": net.pack().view("sub1")}

    class Runs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return handles[what](x) + x.sum()

    module = Runs() if what in handles else net
    x, _ = batch()
    with pytest.raises(RuntimeError, match=r"Trace net\.extract\(name\)"):
        torch.onnx.export(module, (x,), str(tmp_path / "net.onnx"), dynamo=False)


def test_importing_brings_nothing_that_torch_does_not() -> None:
    """torch._dynamo takes as long as all of torch."""
    program = (
        "import sys, torch\nbefore = set(sys.modules)\nimport nsn\n"
        "print(*(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    brought = result.stdout.split()
    foreign = [name for name in brought if name.split(".")[0] not in ("nsn", "_cython_3_2_4")]
    assert "nsn.network" in brought
    assert len(foreign) < 20 and not any("dynamo" in name for name in foreign), foreign
