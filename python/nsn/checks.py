"""Arguments held against what a function takes: the one form of message for a wrong kind."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor


def kind_of(value: object) -> str:
    """What a value is, for a message: never its contents, which may be a whole tensor."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def shown(value: object) -> str:
    """A value in a message: numbers and texts as they are, cut where they are long."""
    if isinstance(value, (str, bytes, int, float, complex)) or value is None:
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return kind_of(value)


def expect(
    argument: str, value: object, kinds: type | tuple[type, ...], expected: str, remedy: str = ""
) -> None:
    """Refuses a value of another kind.

    Args:
        argument: of which function and which, "nsn.load: only".
        value: what was given.
        kinds: what it may be.
        expected: the same in words, "a sub-network's name".
        remedy: a sentence.

    Raises:
        TypeError: where it is none of them.
    """
    if not isinstance(value, kinds):
        remedy = f" {remedy}" if remedy else ""
        raise TypeError(f"{argument} must be {expected}, but is {kind_of(value)}.{remedy}")


def expect_callable(argument: str, value: object, expected: str) -> None:
    """Refuses what cannot be called, as ``expect`` does."""
    if not callable(value):
        raise TypeError(f"{argument} must be {expected}, but is {kind_of(value)}.")


def expect_name(argument: str, value: object) -> None:
    """Refuses what is no sub-network's name."""
    expect(argument, value, str, "a sub-network's name, a str")


def numbers_of(argument: str, each: str, value: object) -> dict[str, float]:
    """A dict of sub-networks' names and numbers.

    Args:
        argument: of which function and which, "nsn.joint_loss: weights".
        each: what a number is, "the weight".
        value: what was given.

    Raises:
        TypeError: where it is none.
    """
    expect(argument, value, Mapping, "a dict of names and numbers", 'Write {"base": 1.0, ...}.')
    numbers_by_name = cast(Mapping[Any, Any], value)
    for name, number in numbers_by_name.items():
        expect_name(f"{argument}: each name", name)
        expect(f"{argument}: {each} of '{name}'", number, numbers.Real, "a number")
    return {name: float(number) for name, number in numbers_by_name.items()}


def names_of(
    argument: str, value: Any, of: str = "sub-networks", may_be_all: bool = False
) -> list[str]:
    """Several sub-networks' names, or names of blocks, as a list.

    Raises:
        TypeError: where they are none.
    """
    remedy = "Write ['base', ...]" if of == "sub-networks" else "Write ['hidden', ...]"
    remedy += ", or nsn.ALL where all are meant." if may_be_all else "."
    expected = f"{argument} must be a list of {of}' names, but"
    if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Tensor):
        raise TypeError(f"{expected} is {kind_of(value)}. {remedy}")
    names = list(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{expected} has {kind_of(name)} in it. {remedy}")
    return names


def expect_batch(where: str, value: object) -> None:
    """Refuses an input that is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{where}: expected a batch as a torch.Tensor, but got {kind_of(value)}. Convert it "
            f"with torch.as_tensor."
        )


def refuse_tracing() -> None:
    """Where torch records operations, nsn's own would become constants.

    Raises:
        RuntimeError: while tracing or exporting, and under make_fx.
    """
    proxy = torch._C._TorchDispatchModeKey.PROXY
    if (
        torch._C._get_tracing_state() is not None
        or torch.compiler.is_exporting()
        or torch._C._get_dispatch_mode(proxy) is not None
        or (
            torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
            and torch._ops._get_dispatch_mode_pre_dispatch(proxy) is not None
        )
    ):
        raise RuntimeError(
            "nsn: a network, view, pack or session runs as one C++ operation, which "
            "torch.jit.trace, torch.onnx.export, torch.export and make_fx cannot see: the graph "
            "would hold its result as a constant. Trace net.extract(name), a plain torch module, "
            "or use nsn.export."
        )


def expect_functions(argument: str, value: object) -> None:
    """Refuses what is no dict of merge functions by name."""
    expect(argument, value, Mapping, "a dict of merge functions by name")
    for name, function in cast(Mapping[Any, Any], value).items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(
                f"{argument} must be a dict of merge functions by name, but {shown(name)} stands "
                f"for {kind_of(function)}. Give the function itself, as to nsn.merge.function."
            )
