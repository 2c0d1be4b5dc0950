"""The codebook, against the obvious definition of nearest."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from var.tokenizers.codebook import Codebook


@given(seed=st.integers(0, 10_000), normalised=st.booleans())
def test_the_nearest_code_is_the_one_at_least_distance(seed: int, normalised: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    book = Codebook(size=17, channels=5, normalised=normalised)
    book.weight.data = torch.randn(17, 5, generator=rng, dtype=torch.float64)
    z = torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)
    a, b = z[..., None, :], book.weight.detach()
    if normalised:
        a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    assert torch.equal(book.nearest(z), (a - b).square().sum(-1).argmin(-1))


def test_many_rows_give_the_ids_of_few() -> None:
    book = Codebook(size=8, channels=3)
    torch.nn.init.normal_(book.weight)
    z = torch.randn(9000, 3)
    assert torch.equal(book.nearest(z)[5000:5010], book.nearest(z[5000:5010]))
