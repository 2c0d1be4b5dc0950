"""How griffe reads this package for the reference: an extension, named in mkdocs.yml."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> )\S.*\n?)*)+", re.MULTILINE)
_OPTION = re.compile(r" +# doctest: .*")


class Reading(griffe.Extension):
    """Finds the tokenizers, and keeps examples in docstrings apart from the text."""

    def on_module_instance(self, *, mod: griffe.Module, **_: Any) -> None:
        """Give `var` its folder of tokenizers, which must have no `__init__.py`."""
        if mod.path == "var":
            home = [mod.filepath.parent / "tokenizers"]
            where = {"lines_collection": mod.lines_collection}
            where["modules_collection"] = mod.modules_collection
            mod.set_member("tokenizers", griffe.Module("tokenizers", filepath=home, **where))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of a docstring, which Markdown would take for quotations."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    return f"```pycon\n{_OPTION.sub('', found[0]).rstrip()}\n```\n"
