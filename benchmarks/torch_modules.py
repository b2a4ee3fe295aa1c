"""The MAML workloads with PyTorch modules: TorchOpt, higher, and clone/adapt by hand.

Written as the documentation of each does it; clone/adapt is the style of learn2learn, whose
package no longer installs. The norm is written out, see `torch_peers`.
"""

from __future__ import annotations

import threading

import torch
from torch import nn

from benchmarks._harness import Contender
from benchmarks.torch_peers import as_tensors, device
from benchmarks.workloads import Workload


class Norm(nn.Module):
    """Batch norm by batch statistics."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(f(width)) for f in (torch.ones, torch.zeros))

    def forward(self, x):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        variance = centred.square().mean((0, 2, 3), keepdim=True)
        x = centred * torch.rsqrt(variance + 1e-5) * self.scale[:, None, None]
        return x + self.shift[:, None, None]


def network(work: Workload) -> nn.Module:
    """The network of a workload."""
    with _SEEDED:  # the generator of the first weights is that of the process
        return _network(work)


_SEEDED = threading.Lock()


def _network(work: Workload) -> nn.Module:
    torch.manual_seed(0)
    if work.kind == "sine":
        sizes = ((1, 40), (40, 40))
        layers = [layer for s in sizes for layer in (nn.Linear(*s), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(40, 1)).to(device())
    layers = []
    for channels in (work.channels, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), Norm(64), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    flat = 64 * (work.side // 16) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, work.ways)).to(device())


def torchopt(work: Workload) -> Contender:
    """TorchOpt: a differentiable optimiser that writes into the module."""

    def setup():
        import torchopt

        net, batch = network(work), as_tensors(work)
        loss_fn = _loss_fn(work)
        inner = torchopt.MetaSGD(net, lr=work.inner_rate)
        outer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def step() -> None:
            outer.zero_grad()
            start = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
            inner_start = torchopt.extract_state_dict(inner, by="reference")
            for sx, sy, qx, qy in _tasks(batch):
                for _ in range(work.inner_steps):
                    inner.step(loss_fn(net(sx), sy))
                (loss_fn(net(qx), qy) / work.tasks).backward()
                torchopt.recover_state_dict(net, start)
                torchopt.recover_state_dict(inner, inner_start)
            outer.step()

        step()
        return step

    return Contender(setup)


def higher(work: Workload) -> Contender:
    """higher: a functional copy of the module and a differentiable optimiser."""

    def setup():
        import higher

        net, batch = network(work), as_tensors(work)
        loss_fn = _loss_fn(work)
        inner = torch.optim.SGD(net.parameters(), lr=work.inner_rate)
        outer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def step() -> None:
            outer.zero_grad()
            for sx, sy, qx, qy in _tasks(batch):
                with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as pair:
                    fast, differentiable = pair
                    for _ in range(work.inner_steps):
                        differentiable.step(loss_fn(fast(sx), sy))
                    (loss_fn(fast(qx), qy) / work.tasks).backward()
            outer.step()

        step()
        return step

    return Contender(setup)


def clone_adapt(work: Workload) -> Contender:
    """A clone of the module for each task, adapted by gradients that keep their graph."""

    def setup():
        net, batch = network(work), as_tensors(work)
        loss_fn = _loss_fn(work)
        outer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def step() -> None:
            outer.zero_grad()
            for sx, sy, qx, qy in _tasks(batch):
                fast = {name: p.clone() for name, p in net.named_parameters()}
                for _ in range(work.inner_steps):
                    loss = loss_fn(torch.func.functional_call(net, fast, (sx,)), sy)
                    grads = torch.autograd.grad(
                        loss, list(fast.values()), create_graph=True
                    )
                    fast = {
                        name: p - work.inner_rate * g
                        for (name, p), g in zip(fast.items(), grads, strict=True)
                    }
                query = loss_fn(torch.func.functional_call(net, fast, (qx,)), qy)
                (query / work.tasks).backward()
            outer.step()

        step()
        return step

    return Contender(setup)


def _loss_fn(work: Workload):
    return nn.functional.mse_loss if work.kind == "sine" else nn.functional.cross_entropy


def _tasks(batch):
    parts = ("support_x", "support_y", "query_x", "query_y")
    return zip(*(batch[part] for part in parts), strict=True)
