"""Classifiers among embeddings in PyTorch, each as its users write it: batched over tasks.

A head is a function `(params, support [..., N, D], support_y [..., N], query [..., Q, D],
ways) -> logits [..., Q, W]`. Leading axes are tasks, and all of a step are handled at once.
The numbers are those of the learners here at their own settings;
`tests/test_torch_peers.py` compares both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Head(NamedTuple):
    """A head, and the shapes of its parameters: `(features, ways, support) -> shapes`."""

    logits: Callable
    shapes: Callable[[int, int, int], dict[str, tuple[int, ...]]]


def _members(y, ways, like):
    return F.one_hot(y, ways).to(like.dtype)


def prototypes(params, support, y, query, ways):
    """Prototypical networks."""
    members = _members(y, ways, support)
    means = members.mT @ support / members.sum(-2).unsqueeze(-1)
    return -torch.cdist(query, means).square()


def matching(params, support, y, query, ways, scale=10.0):
    """Matching networks without context."""
    scores = scale * F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT
    shares = torch.softmax(scores, -1) @ _members(y, ways, support)
    return torch.log(shares)


def r2d2(params, support, y, query, ways, regularisation=50.0):
    """R2-D2 by the smaller of its two systems, with a column of ones."""
    ones = torch.ones_like(support[..., :1])
    x, num = torch.cat([support, ones], -1), support.shape[-2]
    eye = torch.eye(num, dtype=x.dtype, device=x.device)
    system = x @ x.mT + num * regularisation * eye
    weights = x.mT @ torch.linalg.solve(system, _members(y, ways, x))
    scores = query @ weights[..., :-1, :] + weights[..., -1:, :]
    return params["scale"] * scores + params["offset"]


KEYS, VALUES, FILTERS = (64, 256, 512), (32, 128, 256), 128


def _snail_shapes(features, ways, support):
    depth, size = support.bit_length(), features + ways
    found = {}
    for i, (keys, values) in enumerate(zip(KEYS, VALUES, strict=True)):
        if i:
            for j in range(depth):
                found[f"convolution_{i}_{j}"] = (2 * size, 2 * FILTERS)
                size += FILTERS
        widths = {"query": keys, "key": keys, "value": values}
        found |= {f"{name}_{i}": (size, width) for name, width in widths.items()}
        size += values
    return found | {"logits": (size, ways)}


def snail(params, support, y, query, ways):
    """SNAIL: every query is the last step of a sequence of its own."""
    num, queries = support.shape[-2], query.shape[-2]
    steps = torch.cat([support, _members(y, ways, support)], -1)
    steps = steps.unsqueeze(-3).expand(*query.shape[:-1], *steps.shape[-2:])
    last = torch.cat([query, torch.zeros_like(query[..., :ways])], -1).unsqueeze(-2)
    u = torch.cat([steps, last], -2)  # [..., Q, N + 1, D + W]
    later = torch.ones(num + 1, num + 1, dtype=torch.bool, device=u.device).triu(1)

    def linear(name, x):
        return x @ params[name] + params[f"{name}_bias"]

    for i in range(len(KEYS)):
        if i:
            for j in range(num.bit_length()):
                earlier = F.pad(u, (0, 0, 2**j, 0))[..., : num + 1, :]
                both = linear(f"convolution_{i}_{j}", torch.cat([earlier, u], -1))
                value, gate = both.chunk(2, -1)
                u = torch.cat([u, torch.tanh(value) * torch.sigmoid(gate)], -1)
        asked, keys, values = (linear(f"{n}_{i}", u) for n in ("query", "key", "value"))
        scores = (asked @ keys.mT / math.sqrt(KEYS[i])).masked_fill(later, -math.inf)
        u = torch.cat([u, torch.softmax(scores, -1) @ values], -1)
    assert u.shape[-3] == queries
    return linear("logits", u[..., -1, :])


HEADS = {
    "protonet": Head(prototypes, lambda features, ways, support: {}),
    "matching": Head(matching, lambda features, ways, support: {}),
    "r2d2": Head(r2d2, lambda features, ways, support: {"scale": (), "offset": ()}),
    "snail": Head(snail, _snail_shapes),
}


def params_of(name: str, features: int, ways: int, support: int) -> dict[str, torch.Tensor]:
    """First parameters of a head; a matrix has its bias beside it."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for part, shape in HEADS[name].shapes(features, ways, support).items():
        if not shape:
            found[part] = torch.tensor(10.0 if part == "scale" else 0.0)
            continue
        found[part] = torch.randn(shape, generator=generator) / shape[0] ** 0.5
        found[f"{part}_bias"] = torch.zeros(shape[-1])
    return {name: value.requires_grad_() for name, value in found.items()}
