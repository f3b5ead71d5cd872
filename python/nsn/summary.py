"""What sub-networks and packs are, in numbers."""

from typing import Any, TypedDict


class Summary(list[dict[str, Any]]):
    """One dict for each sub-network, ``base`` first, as JSON would have it.

    Each has ``name``, ``parameters`` (elements that it reads, a tied one once),
    ``private_parameters`` (those that it alone reads), ``bytes`` (of the parameters, in the
    description's dtype), ``flops`` (of one sample: two for each multiply-add of products,
    convolutions and attention, as ``torch.utils.flop_counter`` counts), ``shared`` (name of each
    other sub-network to the elements that both read) and ``blocks``: in order, each with ``name``,
    ``type``, ``widths`` (named dimension to ``kept`` and ``full``), ``output`` (shape of one
    sample), ``parameters``, ``private_parameters`` and ``flops``. Printed, it is a text for people.
    """

    def __str__(self) -> str:
        lines = []
        for each in self:
            lines.append(
                f"{each['name']}: {each['parameters']:,} parameters "
                f"({each['private_parameters']:,} its own alone), {each['bytes']:,} bytes, "
                f"{each['flops']:,} FLOPs a sample"
            )
            for block in each["blocks"]:
                widths = "".join(f" {text}" for text in width_texts(block))
                lines.append(
                    f"  {block['name']} ({block['type']}){widths} -> {tuple(block['output'])}, "
                    f"{block['parameters']:,} parameters, {block['flops']:,} FLOPs"
                )
            lines += [
                f"  shares {count:,} with {name}" for name, count in each["shared"].items() if count
            ]
        return "\n".join(lines)


def width_texts(block: dict[str, Any]) -> list[str]:
    """Each named dimension of a block's dict: "out 16", "heads 2 of 4"."""
    return [
        f"{name} {width['kept']}"
        + (f" of {width['full']}" if width["kept"] != width["full"] else "")
        for name, width in block["widths"].items()
    ]


class PackEntry(TypedDict):
    """One copy of one slice of one parameter."""

    #: "hidden1.weight"; of a batch norm its running mean.
    parameter: str
    #: The extents of the widest slice that it serves.
    shape: tuple[int, ...]
    #: "product" or "convolution" (panels), "norm" (scale and shift) or "copy".
    form: str
    bytes: int
    #: The sub-networks that use it.
    subnetworks: list[str]
