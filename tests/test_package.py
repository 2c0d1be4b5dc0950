"""The package as it is imported: light, and with the names that it promises."""

import subprocess
import sys

import pytest

import var


def test_importing_var_is_light() -> None:
    code = "import sys, var; assert not {'torch', 'hydra', 'PIL'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there() -> None:
    assert all(getattr(var, name) is not None for name in var.__all__)
    assert set(dir(var)) == set(var.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = var.nothing
