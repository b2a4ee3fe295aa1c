"""One outer step of MAML, Reptile and ProtoNet in NumPy, written from the papers.

Nothing here uses JAX. The network is `softmax(tanh(x W + b) V + c)`, parameters are a
list `[W, b, V, c]`, gradients are derived by hand, Hessian products are differences of
them.
"""

import numpy as np


def forward(params, x):
    w, b, v, c = params
    hidden = np.tanh(x @ w + b)
    return hidden, hidden @ v + c


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def loss(params, x, y):
    return -np.log(softmax(forward(params, x)[1])[np.arange(len(y)), y]).mean()


def gradient(params, x, y):
    """Back-propagation of the mean cross-entropy."""
    hidden, logits = forward(params, x)
    delta = softmax(logits)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    back = (delta @ params[2].T) * (1 - hidden**2)
    return [x.T @ back, back.sum(0), hidden.T @ delta, delta.sum(0)]


def hessian_product(params, x, y, vector, step=1e-5):
    """`H v` by central differences of the gradient."""
    up = gradient([p + step * v for p, v in zip(params, vector)], x, y)
    down = gradient([p - step * v for p, v in zip(params, vector)], x, y)
    return [(a - b) / (2 * step) for a, b in zip(up, down)]


def adapt(params, x, y, rate, steps):
    """All iterates of gradient descent, the first being `params`."""
    path = [params]
    for _ in range(steps):
        grads = gradient(path[-1], x, y)
        path.append([p - rate * g for p, g in zip(path[-1], grads)])
    return path


def maml_gradient(params, tasks, rate, steps, first_order=False):
    """Finn et al. 2017, algorithm 1: `prod_k (I - rate H_k) grad L(phi_K; query)`."""
    total = [np.zeros_like(p) for p in params]
    for xs, ys, xq, yq in tasks:
        path = adapt(params, xs, ys, rate, steps)
        vector = gradient(path[-1], xq, yq)
        for point in reversed(path[:-1] if not first_order else []):
            product = hessian_product(point, xs, ys, vector)
            vector = [v - rate * h for v, h in zip(vector, product)]
        total = [t + v / len(tasks) for t, v in zip(total, vector)]
    return total


def reptile_step(params, tasks, rate, steps, epsilon):
    """Nichol et al. 2018, algorithm 2: `theta + epsilon mean(phi - theta)`."""
    ends = []
    for xs, ys, xq, yq in tasks:
        x, y = np.concatenate([xs, xq]), np.concatenate([ys, yq])
        ends.append(adapt(params, x, y, rate, steps)[-1])
    mean = [np.mean(leaves, axis=0) for leaves in zip(*ends)]
    return [p + epsilon * (m - p) for p, m in zip(params, mean)]


def protonet_gradient(w, tasks, ways):
    """Snell et al. 2017, equations 1 and 2, for the encoder `tanh(x w)`."""
    total = np.zeros_like(w)
    for xs, ys, xq, yq in tasks:
        support, query = np.tanh(xs @ w), np.tanh(xq @ w)
        means = np.stack([support[ys == k].mean(0) for k in range(ways)])
        distances = ((query[:, None] - means) ** 2).sum(-1)
        delta = softmax(-distances)
        delta[np.arange(len(yq)), yq] -= 1
        delta /= len(yq)  # derivative by the logits, which are -distances
        apart = query[:, None] - means
        d_query = (-2 * delta[..., None] * apart).sum(1)
        d_means = (2 * delta[..., None] * apart).sum(0)
        d_support = np.stack([d_means[k] / (ys == k).sum() for k in ys])
        total += xs.T @ (d_support * (1 - support**2)) / len(tasks)
        total += xq.T @ (d_query * (1 - query**2)) / len(tasks)
    return total
