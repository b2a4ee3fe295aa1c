"""The same workloads in PyTorch, each written as its users would at its best.

Where second derivatives are taken, batch norm is written out with batch statistics: the
double backward of the fused kernel is slow on a CPU. Elsewhere it is the fused kernel.
Neither torch.compile nor channels-last layouts were tried.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks._harness import Contender
from benchmarks.torch_heads import HEADS, params_of
from benchmarks.workloads import RESNET12_WIDTHS, Workload, arrays


def device() -> torch.device:
    """The card, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(precision: str) -> None:
    """Sets the precision of float32 products on a card: "tf32" or "float32"."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True  # its own search, as the other side has one


def waited(contender: Contender) -> Contender:
    """The contender, each of whose steps waits for the card."""
    if not torch.cuda.is_available():
        return contender

    def setup():
        step = contender.setup()

        def wait() -> None:
            step()
            torch.cuda.synchronize()

        wait()
        return wait

    return Contender(setup, contender.steps)


def loop(work: Workload) -> Contender:
    """A Python loop over tasks with `autograd.grad(create_graph=True)`."""

    def setup():
        params, batch = _params(work), as_tensors(work)
        outer = torch.optim.Adam(params, lr=1e-3)

        def step() -> None:
            outer.zero_grad()
            for i in range(work.tasks):
                fast = params
                for _ in range(work.inner_steps):
                    loss = _loss(work, fast, batch["support_x"][i], batch["support_y"][i])
                    grads = torch.autograd.grad(loss, fast, create_graph=True)
                    fast = [
                        p - work.inner_rate * g for p, g in zip(fast, grads, strict=True)
                    ]
                query = _loss(work, fast, batch["query_x"][i], batch["query_y"][i])
                (query / work.tasks).backward()
            outer.step()

        step()
        return step

    return Contender(setup)


def vmap(work: Workload) -> Contender:
    """`torch.func.vmap` over tasks of `torch.func.grad`."""

    def setup():
        params, batch = _params(work), as_tensors(work)
        outer = torch.optim.Adam(params, lr=1e-3)

        def task_loss(params, sx, sy, qx, qy):
            fast = params
            for _ in range(work.inner_steps):
                grads = torch.func.grad(lambda p: _loss(work, p, sx, sy))(fast)
                fast = _sgd(fast, grads, work.inner_rate)
            return _loss(work, fast, qx, qy)

        mapped = torch.func.vmap(task_loss, in_dims=(None, 0, 0, 0, 0))

        def step() -> None:
            outer.zero_grad()
            losses = mapped(
                params,
                batch["support_x"],
                batch["support_y"],
                batch["query_x"],
                batch["query_y"],
            )
            losses.mean().backward()
            outer.step()

        step()
        return step

    return Contender(setup)


def adapt_and_predict(work: Workload):
    """A call that adapts to the first task and predicts its queries, no graph kept."""
    params, batch = _params(work), as_tensors(work)
    sx, sy, qx = (batch[name][0] for name in ("support_x", "support_y", "query_x"))

    def call() -> torch.Tensor:
        fast = params
        for _ in range(work.inner_steps):
            grads = torch.autograd.grad(_loss(work, fast, sx, sy, fused=True), fast)
            fast = [
                (p - work.inner_rate * g).detach().requires_grad_()
                for p, g in zip(fast, grads, strict=True)
            ]
        with torch.no_grad():
            found = _logits(work, fast, qx, fused=True)
        if found.is_cuda:
            torch.cuda.synchronize()
        return found

    return call


def embeddings(work: Workload, *, batched: bool) -> Contender:
    """A learner that embeds: a loop over tasks, or all images in one convolution.

    The second keeps the statistics of each task apart, as the others do: tasks times
    channels are the channels of its norm.
    """

    def setup():
        params, batch = _params(work)[:16], as_tensors(work)
        width = 64 * (work.side // 16) ** 2
        head = HEADS[work.head].logits
        made = params_of(work.head, width, work.ways, work.support)
        of_head = {k: v.detach().to(device()).requires_grad_() for k, v in made.items()}
        outer = torch.optim.Adam([*params, *of_head.values()], lr=1e-3)
        x = torch.cat([batch["support_x"], batch["query_x"]], 1)

        def loss(embedded, support_y, query_y):
            support, query = embedded.split([work.support, work.query], -2)
            logits = head(of_head, support, support_y, query, work.ways)
            return F.cross_entropy(logits.flatten(0, -2), query_y.flatten())

        def step() -> None:
            outer.zero_grad()
            if batched:
                features = _features_by_task(params, x)
                loss(features, batch["support_y"], batch["query_y"]).backward()
            else:
                for i in range(work.tasks):
                    features = _features(params, x[i], fused=True)
                    found = loss(features, batch["support_y"][i], batch["query_y"][i])
                    (found / work.tasks).backward()
            outer.step()

        step()
        return step

    return Contender(setup)


def _features_by_task(params, x):
    tasks, num = x.shape[:2]
    x = x.flatten(0, 1)
    for i in range(4):
        kernel, bias, scale, shift = params[4 * i : 4 * i + 4]
        x = F.conv2d(x, kernel, bias, padding=1)
        size = x.shape[1:]
        x = x.unflatten(0, (tasks, num)).transpose(0, 1).flatten(1, 2)
        x = _fused_norm(x, scale.repeat(tasks), shift.repeat(tasks))
        x = x.unflatten(1, (tasks, size[0])).transpose(0, 1).flatten(0, 1)
        x = F.max_pool2d(F.relu(x), 2)
    return x.flatten(1).unflatten(0, (tasks, num))


def _fused_norm(x, scale, shift):
    return F.batch_norm(x, None, None, scale, shift, True, 0.0, 1e-5)


def _sgd(params, grads, rate):
    return [p - rate * g for p, g in zip(params, grads, strict=True)]


def as_tensors(work: Workload) -> dict[str, torch.Tensor]:
    """The arrays of a workload, channels first."""
    batch = {}
    for name, value in arrays(work).items():
        tensor = torch.from_numpy(value)
        if work.kind != "sine":
            tensor = tensor.long() if name.endswith("_y") else tensor.movedim(-1, 2)
        batch[name] = tensor.contiguous().to(device())
    return batch


def _params(work: Workload) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)  # others are set up in other threads
    shapes: list[tuple[int, ...]] = []
    if work.kind == "sine":
        for fan_in, fan_out in ((1, 40), (40, 40), (40, 1)):
            shapes += [(fan_out, fan_in), (fan_out,)]
    elif work.network == "resnet12":
        before = work.channels
        for width in RESNET12_WIDTHS:
            for inputs, side in ((before, 1), (before, 3), (width, 3), (width, 3)):
                shapes += [(width, inputs, side, side), (*SCALE, width), (width,)]
            before = width
        shapes += [(work.ways, before), (work.ways,)]
    else:
        for channels in (work.channels, 64, 64, 64):
            shapes += [(64, channels, 3, 3), (64,), (*SCALE, 64), (64,)]
        shapes += [(work.ways, 64 * (work.side // 16) ** 2), (work.ways,)]
    params = []
    for shape in shapes:
        if shape[0] == SCALE[0]:
            value = torch.ones(shape[1:])
        elif len(shape) == 1:
            value = torch.zeros(shape)
        else:
            value = (
                torch.randn(shape, generator=generator)
                / max(1, torch.Size(shape[1:]).numel()) ** 0.5
            )
        params.append(value.to(device()).requires_grad_())
    return params


# First entry of the shape of a norm's scale, which starts at one.
SCALE = (-1,)


def _features(params, x, *, fused: bool = False):
    for i in range(4):
        kernel, bias, scale, shift = params[4 * i : 4 * i + 4]
        x = _norm(F.conv2d(x, kernel, bias, padding=1), scale, shift, fused=fused)
        x = F.max_pool2d(F.relu(x), 2)
    return x.flatten(1)


def _residual_features(params, x, *, fused: bool = False):
    leaves = iter(params)

    def conv_norm(x):
        kernel, scale, shift = (next(leaves) for _ in range(3))
        x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return _norm(x, scale, shift, fused=fused)

    for _ in RESNET12_WIDTHS:
        skip = conv_norm(x)
        x = F.leaky_relu(conv_norm(x), 0.1)
        x = F.leaky_relu(conv_norm(x), 0.1)
        x = F.leaky_relu(conv_norm(x) + skip, 0.1)
        x = F.max_pool2d(x, 2)
    return x.mean((2, 3))


def _norm(x, scale, shift, *, fused: bool):
    if fused:
        return _fused_norm(x, scale, shift)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    x = centred * torch.rsqrt(variance + 1e-5) * scale[:, None, None]
    return x + shift[:, None, None]


def _loss(work: Workload, params, x, y, *, fused: bool = False):
    if work.kind == "sine":
        for i in range(0, 4, 2):
            x = F.relu(F.linear(x, params[i], params[i + 1]))
        return F.mse_loss(F.linear(x, params[4], params[5]), y)
    return F.cross_entropy(_logits(work, params, x, fused=fused), y)


def _logits(work: Workload, params, x, *, fused: bool = False):
    features = _residual_features if work.network == "resnet12" else _features
    return F.linear(features(params[:-2], x, fused=fused), params[-2], params[-1])
