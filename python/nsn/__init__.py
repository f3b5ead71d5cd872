"""One set of weights, several networks: train together, switch at run time.

A :class:`Network` is a ``torch.nn.Module`` together with smaller networks that live inside it::

    net = nsn.Network(
        input=(784,),
        blocks={
            "hidden": nsn.Dense(784, 784, activation="relu", dropout=0.2),
            "output": nsn.Dense(784, 10),
        },
        subnetworks={"small": ["output"]},
        merge=nsn.merge.mean(),
    )
    outputs = net(images, nsn.ALL)                # base and small, from one pass
    nsn.joint_loss(outputs, labels).backward()    # merged gradients
    logits = net.view("small")(images)            # zero-copy, for inference
"""

from pathlib import Path

import torch

from nsn import _build_info

__version__ = _build_info.VERSION
_BUILT_WITH = _build_info.TORCH_VERSION

if torch.__version__.split(".")[:2] != _BUILT_WITH.split(".")[:2]:
    raise ImportError(
        f"nsn {__version__} was built against torch {_BUILT_WITH}, but torch {torch.__version__} "
        f"is installed, and a build fits one minor version of torch. Install torch "
        f"{'.'.join(_BUILT_WITH.split('.')[:2])}, or build nsn again beside this torch."
    )

from nsn import merge, schedule, teach
from nsn._C import cpu_level, cpu_levels
from nsn.blocks import (
    Activation,
    Attention,
    AvgPool1d,
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    LayerNorm,
    MaxPool1d,
    MaxPool2d,
    PositionEmbedding,
    Residual,
    RMSNorm,
    Sequence,
    TiedOutput,
    Transformer,
    Upsample,
)
from nsn.checkpoint import load, load_metadata, load_rest, save
from nsn.description import Depths, Description, Subnetwork, Widths
from nsn.exporting import Export, export
from nsn.functional import joint_loss, share
from nsn.network import ALL, Network
from nsn.optim import average_fn, bound_row_norms, param_groups
from nsn.pack import Pack, PackedView
from nsn.summary import PackEntry
from nsn.view import View

cpu_level()  # throws where NSN_CPU_LEVEL names another level than there is

#: Where CMake finds the C++ library inside this package: ``-DCMAKE_PREFIX_PATH=...``.
cmake_prefix_path = str(Path(__file__).resolve().parent)

__all__ = [
    "ALL",
    "Activation",
    "Attention",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Dense",
    "Depths",
    "Description",
    "Dropout",
    "Embedding",
    "Export",
    "Flatten",
    "GlobalAvgPool",
    "GroupNorm",
    "LayerNorm",
    "MaxPool1d",
    "MaxPool2d",
    "Network",
    "Pack",
    "PackEntry",
    "PackedView",
    "PositionEmbedding",
    "RMSNorm",
    "Residual",
    "Sequence",
    "Subnetwork",
    "TiedOutput",
    "Transformer",
    "Upsample",
    "View",
    "Widths",
    "__version__",
    "average_fn",
    "bound_row_norms",
    "cmake_prefix_path",
    "cpu_level",
    "cpu_levels",
    "export",
    "joint_loss",
    "load",
    "load_metadata",
    "load_rest",
    "merge",
    "param_groups",
    "save",
    "schedule",
    "share",
    "teach",
]
