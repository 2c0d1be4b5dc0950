"""Compiled code is kept for each model by itself."""

from var.nn.compiling import own_code


def scaled(x: float, factor: float = 2.0, *, shift: float = 0.0) -> float:
    return x * factor + shift


def test_a_function_with_code_of_its_own_does_the_same() -> None:
    twin = own_code(scaled)
    assert twin(3.0) == 6.0 and twin(3.0, 3.0, shift=1.0) == 10.0
    assert twin.__code__ is not scaled.__code__
