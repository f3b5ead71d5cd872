"""Random descriptions of networks, small and valid by docs/description.md and docs/blocks.md."""

import random
from typing import Any

import torch
from torch import Tensor

import reference
from nsn._C import merge as _merge
from reference import Document, RefusedError, dimensions

KINDS = ["mlp", "cnn", "sequence"]
RULES = [name for name, _, _, is_linear in _merge.rules() if is_linear]
#: Rare: these are refused by lane, and for tied parameters.
OTHER_RULES = [
    name for name, _, takes, is_linear in _merge.rules() if takes == "nothing" and not is_linear
]
_PLAIN = list(reference.ACTIVATIONS)
_ANY = [*_PLAIN, *reference.GATES]
_VOCABULARY = 6


def random_description(seed: int, kind: str | None = None) -> Document:
    """A description of one of ``KINDS``, float64 or, for sequences, int64."""
    return _Maker(random.Random(seed), kind).document


def refused_descriptions(seed: int) -> list[tuple[Document, str]]:
    """Descriptions that came up on the way, each with one sub-network that does not fit, and why."""
    return _Maker(random.Random(seed), None).refused


def random_input(document: Document, batch: int) -> Tensor:
    """``(batch, *input)``, by torch's generator."""
    shape = (batch, *document["input"]["shape"])
    if document["input"]["dtype"] == "int64":
        return torch.randint(_VOCABULARY, shape)
    return torch.randn(shape, dtype=torch.float64)


def trace(document: Document, name: str) -> reference.Lane:
    """A sub-network on parameters of its own, for its shapes and uses.

    Raises:
        RefusedError: where the sub-network does not fit together.
    """
    try:
        return reference.run(document, name, _invented, _invented, random_input(document, 1))
    except (RuntimeError, IndexError) as error:  # torch's own, for shapes that do not fit
        raise RefusedError(str(error)) from None


def _invented(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, 0.1, dtype=torch.float64)


class _Maker:
    def __init__(self, pick: random.Random, kind: str | None) -> None:
        self.pick = pick
        self.kind = kind or pick.choice(KINDS)
        self.document: Document = {"nsn": 1, "input": {}, "blocks": [], "subnetworks": []}
        self.counts: dict[str, int] = {}
        self.refused: list[tuple[Document, str]] = []
        getattr(self, self.kind)()
        self.trunk = [block["name"] for block in self.document["blocks"]]
        self.lanes = [trace(self.document, "base")]
        for number in range(pick.randint(1, 4)):
            self.subnetwork(f"s{number}")
        if len(self.trunk) < len(self.document["blocks"]) or pick.random() < 0.2:
            self.document["subnetworks"].insert(0, {"name": "base", "blocks": self.trunk})
        self.merge()

    def chance(self, probability: float) -> bool:
        return self.pick.random() < probability

    def name(self, stem: str) -> str:
        self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}{self.counts[stem]}"

    # ---- blocks ----

    def add(self, block: Document) -> bool:
        """Appends a block to the trunk if it fits there."""
        self.document["blocks"].append(block)
        try:
            self.dims()
        except RefusedError:
            self.document["blocks"].pop()
            return False
        return True

    def dims(self, name: str = "base") -> list[reference.Extent]:
        return trace(self.document, name).dims

    def some(self, **options: Any) -> Document:
        """Options, each left to its default now and then."""
        return {key: value for key, value in options.items() if self.chance(0.6)}

    def private(self, *parts: str) -> Document:
        chosen = [part for part in parts if self.chance(0.3)]
        return {"per_subnetwork": chosen} if chosen or self.chance(0.2) else {}

    def probability(self) -> float:
        return self.pick.choice([0.0, 0.0, 0.3, 1.0])

    def dense(self, inputs: int, outputs: int, stem: str = "dense") -> Document:
        block = {
            "name": self.name(stem),
            "type": "Dense",
            "in_features": inputs,
            "out_features": outputs,
            **self.some(
                bias=self.chance(0.7),
                scale=self.chance(0.5),
                activation=self.pick.choice(_ANY),
                dropout=self.probability(),
                weight_init=self.pick.choice(["kaiming_uniform", "xavier_uniform"]),
            ),
        }
        return {**block, **self.finish(block)}

    def finish(self, block: Document) -> Document:
        """bias_init and per_subnetwork, of the parts that there are."""
        parts = ["bias"] if block.get("bias", True) else []
        result = {"bias_init": 0.1} if parts and self.chance(0.2) else {}
        if block.get("scale", False):
            parts.append("scale")
        return result | self.private(*parts)

    def norm(self, features: int, batch: bool) -> Document:
        kind = self.pick.choice(["LayerNorm", "RMSNorm", *(["BatchNorm"] * 2 if batch else [])])
        return self.norm_of(kind, features)

    def norm_of(self, kind: str, features: int) -> Document:
        block = {
            "name": self.name("norm"),
            "type": kind,
            "features": features,
            "eps": self.pick.choice([0.01, 0.1]),  # small ones amplify rounding
            **self.some(affine=self.chance(0.8)),
        }
        parts = ["affine"] if block.get("affine", True) else []
        if kind == "LayerNorm":
            block |= self.some(bias=self.chance(0.5))
        if kind == "BatchNorm":
            parts.append("statistics")
            block |= self.some(momentum=self.pick.choice([0.1, 0.5]), track=self.chance(0.8))
        return block | self.private(*parts)

    def group(self, blocks: list[Document], residual: bool) -> Document:
        kind = "Residual" if residual else "Sequence"
        return {"name": self.name(kind.lower()), "type": kind, "blocks": blocks}

    def activation(self) -> Document:
        return {
            "name": self.name("act"),
            "type": "Activation",
            "function": self.pick.choice(_PLAIN),
        }

    def dropout(self) -> Document:
        return {"name": self.name("drop"), "type": "Dropout", "p": self.probability()}

    def around(self, block: Document) -> list[Document]:
        """A block, with what may stand beside it in a Residual or Sequence."""
        before = [self.activation()] if self.chance(0.3) else []
        return [*before, block, *([self.dropout()] if self.chance(0.2) else [])]

    def mlp_group(self, width: int, hidden: int, batch: bool, residual: bool) -> Document:
        blocks = [self.norm(width, batch)] if self.chance(0.5) else []
        if self.chance(0.7):
            blocks += [self.dense(width, hidden), *self.around(self.dense(hidden, width))]
        else:
            blocks += self.around(self.dense(width, width))
        if self.chance(0.2):
            blocks.insert(0, self.mlp_group(width, hidden, batch, self.chance(0.5)))
        return self.group(blocks, residual)

    # ---- kinds ----

    def mlp(self) -> None:
        pick = self.pick
        width, hidden = pick.randint(2, 8), pick.randint(2, 8)
        rows = [] if self.chance(0.7) else [pick.randint(1, 3)]
        flat = not rows
        self.document["input"] = {"shape": [*rows, width], "dtype": "float64"}
        for _ in range(pick.randint(1, 4)):
            at = self.dims()[-1].full_width if self.document["blocks"] else width
            choice = pick.choice(
                ["dense", "dense", "move", "norm", "act", "drop", "residual", "sequence"]
            )
            if choice == "dense":
                self.add(self.dense(at, at))
            elif choice == "move":
                self.add(self.dense(at, hidden if at == width else width))
            elif choice == "norm":
                self.add(self.norm(at, flat))
            elif choice == "act":
                self.add(self.activation())
            elif choice == "drop":
                self.add(self.dropout())
            else:
                self.add(self.mlp_group(at, hidden, flat, choice == "residual"))
        at = self.dims()[-1].full_width if self.document["blocks"] else width
        if rows and self.chance(0.5):
            self.add({"name": self.name("flatten"), "type": "Flatten"})
            at *= rows[0]
        self.add(self.dense(at, pick.randint(2, 4), "output"))

    def cnn(self) -> None:
        pick = self.pick
        spatial = pick.choice([1, 2])
        shape = [pick.choice([1, 2, 4]), *(pick.randint(3, 6) for _ in range(spatial))]
        self.document["input"] = {"shape": shape, "dtype": "float64"}
        self.add(self.conv(shape[0], pick.choice([2, 4, 6, 8]), spatial))
        for _ in range(pick.randint(1, 5)):
            self.add(self.cnn_block(self.channels(), spatial))
        self.head(self.channels(), "output")

    def channels(self) -> int:
        return (
            self.dims()[0].full_width
            if self.document["blocks"]
            else self.document["input"]["shape"][0]
        )

    def head(self, channels: int, stem: str) -> None:
        """Flatten or the mean over all positions, and Dense blocks."""
        if self.chance(0.5):
            self.add({"name": self.name("flatten"), "type": "Flatten"})
        else:
            self.add({"name": self.name("mean"), "type": "GlobalAvgPool"})
        at = self.dims()[0].full_width
        if self.chance(0.3) and at < 40:
            self.add(self.norm(at, True))
        if self.chance(0.4):
            self.add(self.dense(at, 4))
            at = 4
        self.add(self.dense(at, self.pick.randint(2, 4), stem))

    def cnn_block(self, channels: int, spatial: int) -> Document:
        pick = self.pick
        choices = [
            "conv",
            "conv",
            "depthwise",
            "same",
            "batch",
            "group",
            "pool",
            "act",
            "drop",
            "residual",
        ]
        choice = pick.choice([*choices, *(["up", "transpose"] if spatial == 2 else [])])
        if choice == "conv":
            return self.conv(channels, pick.choice([2, 4, 6, 8]), spatial)
        if choice == "same":
            return self.conv(channels, channels, spatial, same=True)
        if choice == "depthwise":
            return self.conv(channels, channels, spatial, groups=channels)
        if choice == "batch":
            return self.norm_of("BatchNorm", channels)
        if choice == "group":
            return self.group_norm(channels)
        if choice == "act":
            return self.activation()
        if choice == "drop":
            return self.dropout()
        if choice == "pool":
            kind = pick.choice(["MaxPool", "AvgPool"]) + f"{spatial}d"
            size = pick.choice([2, 3] if spatial == 1 else [2, 3, [2, 1]])
            options = self.some(stride=pick.choice([1, 2]), padding=pick.choice([0, 1]))
            if size == [2, 1]:
                options.pop("padding", None)
            return {"name": self.name("pool"), "type": kind, "kernel_size": size, **options}
        if choice == "up":
            options = self.some(mode=pick.choice(["nearest", "bilinear"]))
            return {"name": self.name("up"), "type": "Upsample", "scale_factor": 2, **options}
        if choice == "transpose":
            return self.transpose(channels, pick.choice([2, 4]))
        hidden = pick.choice([2, 4])
        blocks = [self.conv(channels, hidden, spatial, same=True, groups=1)]
        if self.chance(0.3):
            blocks.append(self.conv(hidden, hidden, spatial, groups=hidden))
        if self.chance(0.5):
            blocks.append(pick.choice([self.norm_of("BatchNorm", hidden), self.activation()]))
        blocks.append(self.conv(hidden, channels, spatial, same=True, groups=1))
        if self.chance(0.3):
            blocks.append(self.norm_of("BatchNorm", channels))
        return self.group(blocks, True)

    def group_norm(self, channels: int) -> Document:
        divisors = [each for each in (1, 2, 3, 4) if channels % each == 0]
        block = {
            "name": self.name("norm"),
            "type": "GroupNorm",
            "groups": self.pick.choice(divisors),
            "channels": channels,
            "eps": self.pick.choice([0.01, 0.1]),
            **self.some(affine=self.chance(0.8)),
        }
        return block | self.private(*(["affine"] if block.get("affine", True) else []))

    def conv(
        self, inputs: int, outputs: int, spatial: int, same: bool = False, groups: int | None = None
    ) -> Document:
        pick = self.pick
        common = [each for each in (1, 1, 2, 2, 4) if inputs % each == outputs % each == 0]
        groups = groups or pick.choice(common)
        depthwise = groups == inputs == outputs
        block: Document = {
            "name": self.name("conv"),
            "type": f"Conv{spatial}d",
            "in_channels": inputs,
            "out_channels": outputs,
        }
        if same or depthwise:
            block |= {"kernel_size": 3, "padding": 1} if self.chance(0.7) else {"kernel_size": 1}
        elif spatial == 2 and self.chance(0.3):
            block["kernel_size"] = [pick.choice([1, 2]), 2]
            block |= self.some(stride=[1, 2], padding=[0, 1], dilation=[2, 1])
        else:
            block["kernel_size"] = pick.randint(1, 3)
            block |= self.some(
                stride=pick.choice([1, 2]), padding=pick.randint(0, 2), dilation=pick.choice([1, 2])
            )
        if spatial == 1 and self.chance(0.4):
            block |= {"causal": True, "padding": 0}
        if groups > 1 or self.chance(0.3):
            block["groups"] = groups
        block |= self.some(
            bias=self.chance(0.7),
            scale=self.chance(0.5),
            activation=pick.choice(_ANY if groups == 1 else _PLAIN),
            dropout=self.probability(),
            weight_init=pick.choice(["kaiming_uniform", "xavier_uniform"]),
        )
        return block | self.finish(block)

    def transpose(self, inputs: int, outputs: int) -> Document:
        pick = self.pick
        block = {
            "name": self.name("up"),
            "type": "ConvTranspose2d",
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": pick.choice([2, 3, [1, 2]]),
            **self.some(
                bias=self.chance(0.7), activation=pick.choice(_PLAIN), dropout=self.probability()
            ),
        }
        if self.chance(0.5):
            block |= {
                "stride": 2,
                "output_padding": pick.choice([0, 1]),
                "padding": pick.choice([0, 1]),
            }
        elif self.chance(0.3):
            block["dilation"] = pick.choice([2, [1, 2]])
        return block | self.private(*(["bias"] if block.get("bias", True) else []))

    def sequence(self) -> None:
        pick = self.pick
        length, heads = pick.randint(2, 5), pick.choice([1, 2, 3])
        features = heads * pick.choice([1, 2, 4])
        self.document["input"] = {"shape": [length], "dtype": "int64"}
        embedding = {
            "name": self.name("tokens"),
            "type": "Embedding",
            "num_embeddings": _VOCABULARY,
            "embedding_dim": features,
            **self.some(std=0.5, dropout=self.probability()),
        }
        self.add(embedding)
        if self.chance(0.7):
            self.add(
                {
                    "name": self.name("positions"),
                    "type": "PositionEmbedding",
                    "length": length + pick.choice([0, 0, 2]),
                    "features": features,
                    **self.some(std=0.5, dropout=self.probability()),
                }
            )
        for _ in range(pick.randint(1, 3)):
            choice = pick.choice(["transformer"] * 3 + ["attention", "dense", "norm", "residual"])
            if choice == "transformer":
                self.add(self.transformer(features, heads))
            elif choice == "attention":
                self.add(self.attention(features, heads))
            elif choice == "dense":
                self.add(self.dense(features, features))
            elif choice == "norm":
                self.add(self.norm(features, False))
            else:
                inner = [self.norm(features, False), self.attention(features, heads)]
                self.add(self.group(inner, True))
        end = pick.choice(["tied", "dense", "flatten"])
        if end == "tied":
            block = {
                "name": self.name("output"),
                "type": "TiedOutput",
                "embedding": embedding["name"],
                "num_embeddings": _VOCABULARY,
                "embedding_dim": features,
                **self.some(bias=self.chance(0.7)),
            }
            self.add(block | self.private(*(["bias"] if block.get("bias", False) else [])))
        elif end == "dense":
            self.add(self.dense(features, _VOCABULARY, "output"))
        else:
            self.add({"name": self.name("flatten"), "type": "Flatten"})
            if self.chance(0.4):
                self.add(self.norm(length * features, True))
            self.add(self.dense(length * features, 3, "output"))

    def attention(self, features: int, heads: int) -> Document:
        block = {
            "name": self.name("attention"),
            "type": "Attention",
            "features": features,
            "heads": heads,
            **self.some(
                head_dim=self.pick.choice([1, 3]),
                causal=self.chance(0.5),
                bias=self.chance(0.7),
                dropout=self.probability(),
            ),
        }
        return block | self.private(*(["bias"] if block.get("bias", True) else []))

    def transformer(self, features: int, heads: int) -> Document:
        block = {
            "name": self.name("block"),
            "type": "Transformer",
            "features": features,
            "heads": heads,
            "ffn": self.pick.randint(2, 8),
            **self.some(
                head_dim=self.pick.choice([1, 3]),
                causal=self.chance(0.5),
                bias=self.chance(0.7),
                activation=self.pick.choice(_ANY),
                dropout=self.probability(),
                norm=self.pick.choice(["layer", "rms"]),
            ),
        }
        return block | self.private("affine", *(["bias"] if block.get("bias", True) else []))

    # ---- sub-networks ----

    def subnetwork(self, name: str) -> None:
        """Adds one, with a head or adapter of its own now and then; none if all tries are refused."""
        for _ in range(20):
            before = list(self.document["blocks"])
            cut = self.pick.randint(1, len(self.trunk))
            own = self.pick.choice(["none", "none", "exit", "adapter"])
            try:
                if own == "none":
                    found = self.keep(name, self.trunk)
                elif self.kind == "sequence" and self.chance(0.2):
                    found = self.own_embedding(name)
                else:
                    found = self.branch(name, cut, own == "exit")
                self.document["subnetworks"].append(found)
                self.name_what_changes_the_output(found)
                lanes = [*self.lanes, trace(self.document, name)]
                for parameter in lanes[-1].uses:
                    reference.check_together(
                        [use for lane in lanes for use in lane.uses.get(parameter, [])]
                    )
                for path in lanes[-1].statistics:
                    norm = reference.flattened(self.document)[path]
                    shares = "statistics" not in norm.get("per_subnetwork", [])
                    if norm.get("track", True) and shares:
                        passing = [each.statistics for each in lanes if path in each.statistics]
                        reference.check_together([own[path][2] for own in passing])
                self.lanes = lanes
                return
            except RefusedError as error:
                rest = self.document["subnetworks"]
                if rest and rest[-1]["name"] == name:
                    failed = rest.pop()
                    base = {"name": "base", "blocks": self.trunk}
                    used = {*self.trunk, *failed["blocks"]}
                    blocks = [each for each in self.document["blocks"] if each["name"] in used]
                    if not isinstance(error, reference.SilentError):
                        again = {**self.document, "blocks": blocks, "subnetworks": [base, failed]}
                        self.refused.append((again, str(error)))
                self.document["blocks"] = before

    def name_what_changes_the_output(self, subnetwork: Document) -> None:
        """A width that changes the output's shape must name its dimension."""
        given = subnetwork.get("width", {})
        named = {block: width for block, width in given.items() if isinstance(width, dict)}
        found = {block["name"]: block for block in self.document["blocks"]}
        shapes = []
        for width in (given, named):
            document = {**self.document, "subnetworks": [{**subnetwork, "width": width}]}
            try:
                shapes.append(trace(document, subnetwork["name"]).output.shape)
            except RefusedError:
                return
        if shapes[0] != shapes[1]:
            subnetwork["width"] = {
                block: width if isinstance(width, dict) else {dimensions(found[block])[0]: width}
                for block, width in given.items()
            }

    def keep(self, name: str, blocks: list[str]) -> Document:
        """Some of the blocks, some of them narrower, with dropout of its own."""
        found = {block["name"]: block for block in self.document["blocks"]}
        always = 0.6 if self.kind == "mlp" else 0.85
        kept = [
            each for each in blocks if self.chance(always) or found[each]["type"] == "Embedding"
        ]
        if not kept:
            raise RefusedError("keeps nothing")
        width = {}
        narrow = self.pick.choice([0.0, 0.3, 0.6, 0.9])
        for each in kept:
            narrowed = {
                key: self.width(found[each], key)
                for key in dimensions(found[each])
                if self.chance(narrow)
            }
            if narrowed:
                single = len(dimensions(found[each])) == 1 and self.chance(0.6)
                width[each] = next(iter(narrowed.values())) if single else narrowed
        dropout = {
            each: self.pick.choice([0.0, 0.5])
            for each in kept
            if _drops(found[each]) and self.chance(0.25)
        }
        result: Document = {"name": name, "blocks": kept}
        return (
            result | ({"width": width} if width else {}) | ({"dropout": dropout} if dropout else {})
        )

    def own_embedding(self, name: str) -> Document:
        """In place of the trunk's, which a TiedOutput still uses."""
        block = self.document["blocks"][0] | {"name": self.name("own")}
        self.document["blocks"] = [*self.document["blocks"], block]
        rest = self.document["blocks"][:-1]
        result = self.keep(name, [block["name"], *self.trunk[1:]])
        self.document["blocks"] = [block, *rest]
        return result

    def width(self, block: Document, dimension: str) -> float:
        full, step = full_width(block, dimension)
        if self.chance(0.5):
            return step * self.pick.randint(1, full // step)
        return self.pick.choice([0.25, 0.5, 0.75, 1.0, 0.1])

    def branch(self, name: str, cut: int, leaves: bool) -> Document:
        """Blocks of its own behind some of the trunk's, at the end or in the midst."""
        result = self.keep(name, self.trunk[:cut])
        probe = {**self.document, "subnetworks": [result]}
        dims = trace(probe, name).dims
        exact = self.chance(0.5)
        read = dims[-1].width if exact else dims[-1].full_width
        own: list[Document] = []
        if len(dims) > 1 and self.kind == "cnn":
            if not leaves:
                raise RefusedError("an adapter for feature maps")
            own.append({"name": self.name("mean"), "type": "GlobalAvgPool"})
            read = dims[0].width if exact else dims[0].full_width
        own.append(
            self.dense(read, self.pick.randint(2, 4) if leaves else dims[-1].full_width, "own")
        )
        names = [block["name"] for block in self.document["blocks"]]
        place = names.index(self.trunk[cut - 1]) + 1
        self.document["blocks"] = [
            *self.document["blocks"][:place],
            *own,
            *self.document["blocks"][place:],
        ]
        result["blocks"] = result["blocks"] + [block["name"] for block in own]
        if not leaves:
            rest = self.keep(name, self.trunk[cut:]) if cut < len(self.trunk) else {"blocks": []}
            for key in ("width", "dropout"):
                if key in rest:
                    result[key] = result.get(key, {}) | rest[key]
            result["blocks"] = result["blocks"] + rest["blocks"]
        return result

    # ---- merge rules ----

    def merge(self) -> None:
        everyone = reference.subnetworks(self.document)
        if self.chance(0.9):
            self.document["merge"] = self.rule(list(everyone))
        for block in self.document["blocks"]:
            # The owner's rule merges what is tied.
            if self.chance(0.2) and block["type"] != "TiedOutput":
                ties = [
                    each["name"]
                    for each in self.document["blocks"]
                    if each.get("embedding") == block["name"]
                ]
                users = [
                    name
                    for name, each in everyone.items()
                    if {block["name"], *ties} & set(each["blocks"])
                ]
                block["merge"] = self.rule(users)

    def rule(self, users: list[str]) -> Document:
        rule = self.pick.choice(RULES if self.pick.random() < 0.9 else OTHER_RULES)
        if rule != "weighted":
            return {"rule": rule}
        weights = {name: self.pick.choice([0.0, 1.0, -0.5, 2.0]) for name in users}
        return {"rule": rule, "weights": weights}


def full_width(block: Document, dimension: str) -> tuple[int, int]:
    """A dimension's full count, and the step in which it is kept."""
    head, _, rest = dimension.partition(".")
    if rest:
        (inner,) = [each for each in block["blocks"] if each["name"] == head]
        return full_width(inner, rest)
    if dimension != "out":
        return block[dimension], 1
    keys = {"Dense": "out_features", "Embedding": "embedding_dim"}
    return block[keys.get(block["type"], "out_channels")], block.get("groups", 1)


def _drops(block: Document) -> bool:
    kinds = "Dense Conv1d Conv2d ConvTranspose2d Embedding PositionEmbedding Dropout Attention Transformer"
    return block["type"] in kinds.split() or any(map(_drops, block.get("blocks", [])))
