"""Names of classes from a file, whatever its layout."""

from pathlib import Path

import pytest

from tests.data.odd import picture
from var.data.folder import image_folder
from var.data.names import class_names
from var.errors import UserError

FOLDERS = ["n01", "n02", "n03"]
FILES = {
    "c.csv": "index,synset,name\n7,n02,crane\n8,n01,cat\n9,n03,crane\n5,n09,dog\n",
    "c.txt": "n02 crane\n\nn01 cat\nn03  crane\n",
    "c.json": '{"n03": "crane", "n02": "crane", "n01": "cat"}',
}


@pytest.mark.parametrize("name", FILES)
def test_classes_get_their_names_and_shared_ones_are_told_apart(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8-sig")
    names = class_names(tmp_path / name, FOLDERS)
    assert names == ["cat", "crane (n02)", "crane (n03)"]
    for folder in FOLDERS:
        (tmp_path / "images" / folder).mkdir(parents=True)
        picture().save(tmp_path / "images" / folder / "0.png")
    data = image_folder(root=tmp_path / "images", train=True, size=16, names=tmp_path / name)
    assert data.classes == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "synset,name\nn01,cat\nn02,dog\n", "c.csv lacks n03: add it"),
        ("c.csv", "synset,words\nn01,cat\n", "lacks a column `name`"),
        ("c.csv", "", "lacks a column `name`"),
        ("c.txt", "n01 cat\nn03 dog\n", "c.txt lacks n02: add it"),
        ("c.json", "[1, 2]", "cannot read data.names=.*c.json.*class to name"),
        ("c.json", "{", "cannot read data.names=.*c.json"),
    ],
)
def test_a_file_at_fault_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        class_names(tmp_path / name, FOLDERS)
    with pytest.raises(UserError, match="cannot read data.names=.*none"):
        class_names(tmp_path / "none", FOLDERS)
