"""A small decoder-only transformer as the model of an inner loop."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from metalearn.inner import Implicit, unroll


class Decoder(nn.Module):
    """Pre-norm blocks of causal attention and an MLP; logits of the next token.

    Attributes:
      vocabulary: Number of tokens.
      width: Of the residual stream.
      depth: Blocks.
      heads: Of the attention.
    """

    vocabulary: int = 256
    width: int = 192
    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, tokens):
        length = tokens.shape[-1]
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = x + nn.Embed(length, self.width)(jnp.arange(length))[None]
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
        for _ in range(self.depth):
            normed = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(normed, mask=causal)
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


def meta_gradient(differentiation, num_steps: int, *, rate: float = 1e-3):
    """`(params, batches [S + 1, B, L]) -> gradient` of the last batch's loss after S steps.

    Adam inside, the initialisation as meta-parameters, a fresh batch each step; for
    `Implicit` with a proximal term.
    """
    model = Decoder()
    opt = optax.adam(rate, eps_root=1e-8)

    def loss_on(params, tokens):
        logits = model.apply(params, tokens)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    def objective(params, batches):
        def loss(adapted, step):
            value = loss_on(adapted, batches[step])
            if isinstance(differentiation, Implicit):  # what ties its end to its start
                apart = jax.tree.map(jnp.subtract, adapted, params)
                value += 0.5 * optax.tree.norm(apart, squared=True)
            return value, {}

        found = unroll(
            loss,
            params,
            opt,
            num_steps=num_steps,
            differentiation=differentiation,
        )
        return loss_on(found.params, batches[-1])

    return jax.grad(objective)


def arguments(num_steps: int, *, batch: int = 4, length: int = 256):
    """Parameters and batches for `meta_gradient`."""
    key = jax.random.key(0)
    tokens = jax.random.randint(key, (num_steps + 1, batch, length), 0, 256)
    return Decoder().init(key, tokens[0]), tokens
