"""Meta-training, its resumption and its judgement."""
