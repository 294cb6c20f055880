"""How many tokens a batch may hold: from the memory that is free, not by trial.

A forward without padding keeps nothing per sequence and drops each layer's values with the layer,
so its peak grows with the tokens alone. What no model foresees, such as another process, is left
to the engine, which splits a batch when memory runs out.
"""

# the rest is for fragments, kernels' own workspaces and whoever else uses the device
SHARE_OF_FREE = 0.6
STEP = 1024


def token_budget(free: int, bytes_per_token: int, *, most: int) -> int:
    """Tokens that a batch may hold: at most `most`, whole thousands (1024), at least one."""
    fitting = int(SHARE_OF_FREE * free / bytes_per_token) // STEP * STEP
    return max(STEP, min(most, fitting))


def bytes_per_token(hidden: int, inner: int, *, inner_copies: int, bytes_each: int) -> int:
    """Bytes that a token takes at a layer's peak, which is inside its feed-forward part.

    There the residual, what was made of it, and `inner_copies` of the widened vector are alive at
    once. Attention has about eight vectors of `hidden` alive, which is less where `inner` is four
    times `hidden` or more, as in all BGE rerankers.
    """
    return max(2 * hidden + inner_copies * inner, 8 * hidden) * bytes_each
