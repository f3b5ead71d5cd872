"""What a sub-network is by itself: narrowed blocks, and where their tensors come from."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nsn
from random_networks import random_description, random_input
from reference import Document


def assembled(net: nsn.Network, name: str) -> nsn.Network:
    """A network of the extracted blocks and their own tensors alone."""
    blocks = net.description.extract(name)
    table = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    state = {
        f"{block['name']}.{parameter['name']}": cut(table, net, parameter)
        for block in blocks
        for parameter in block["parameters"]
    }
    whole = json.loads(net.description.to_json())
    document = {
        "nsn": 1,
        "input": whole["input"],
        "blocks": [json.loads(block["document"]) for block in blocks],
    }
    own = nsn.Network(nsn.Description.from_json(json.dumps(document))).double()
    own.load_state_dict({key: state[key] for key in own.state_dict()})
    return own


def cut(table: dict[str, Tensor], net: nsn.Network, parameter: dict[str, Any]) -> Tensor:
    name, is_buffer = net.description.parameters[parameter["place"]]
    assert is_buffer == parameter["is_buffer"]
    tensor = table[name].detach().view(parameter["view"])
    return tensor[tuple(slice(kept) for kept in parameter["kept"])].reshape(parameter["shape"])


def check(document: Document, seed: int) -> None:
    torch.manual_seed(seed)
    net = nsn.Network(nsn.Description.from_json(json.dumps(document))).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.1, 0.5)
        for buffer in net.buffers():  # as if it had been trained
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
            else:
                buffer.fill_(1)
    x = random_input(document, 3)
    for name in net.description.names:
        expected = net.view(name)(x)
        scale = max(1.0, float(expected.abs().max()))
        difference = (assembled(net, name).view("base")(x) - expected).abs().max()
        assert float(difference) <= 1e-11 * scale, name


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_a_network_of_the_extracted_blocks_does_what_the_view_does(seed: int) -> None:
    check(random_description(seed), seed)


def test_a_tied_output_without_its_embedding_is_a_dense_block() -> None:
    document = {
        "nsn": 1,
        "input": {"shape": [4], "dtype": "int64"},
        "blocks": [
            {"name": "tokens", "type": "Embedding", "num_embeddings": 6, "embedding_dim": 4},
            {"name": "others", "type": "Embedding", "num_embeddings": 6, "embedding_dim": 4},
            {
                "name": "output",
                "type": "TiedOutput",
                "embedding": "tokens",
                "num_embeddings": 6,
                "embedding_dim": 4,
            },
        ],
        "subnetworks": [
            {"name": "base", "blocks": ["tokens", "output"]},
            {"name": "other", "blocks": ["others", "output"]},
        ],
    }
    check(document, 0)
    description = nsn.Description.from_json(json.dumps(document))
    types = [json.loads(block["document"])["type"] for block in description.extract("other")]
    assert types == ["Embedding", "Dense"]


def test_an_unknown_subnetwork_is_refused() -> None:
    description = nsn.Description(input=(2,), blocks={"output": nsn.Dense(2, 2)})
    with pytest.raises(ValueError, match="there is no sub-network 'sub'"):
        description.extract("sub")
