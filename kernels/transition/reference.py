"""How a module changes each token: ratio of norms and cosine between what goes in and what comes out."""

from torch import Tensor


def transition(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """before, after [..., D] -> (|after| / |before|, cosine), each [...] in fp32; 0 where a norm is 0."""
    x, y = before.float(), after.float()
    dot = (x * y).sum(dim=-1)
    norm_x, norm_y = x.norm(dim=-1), y.norm(dim=-1)
    tiny = 1e-12
    return norm_y / norm_x.clamp(min=tiny), dot / (norm_x * norm_y).clamp(min=tiny)
