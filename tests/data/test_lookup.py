"""Names of sets and the folders of their files are found by one function, or told."""

from __future__ import annotations

import pytest

from metalearn.data.lookup import check_name, place_of


def place(data_dir, files=("a.csv", "b.csv"), **rest):
    return place_of("the set 'x'", data_dir, files, within=("x", "y"), **rest)


def test_files_lie_together_in_the_folder_or_in_one_of_its_own(tmp_path):
    for folder in (tmp_path, tmp_path / "y"):
        folder.mkdir(exist_ok=True)
        (folder / "a.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"\(a.csv, b.csv\): they are not together"):
        place(tmp_path)
    (tmp_path / "b.csv").touch()
    assert place(str(tmp_path)) == tmp_path
    (tmp_path / "y" / "b.csv").touch()
    assert place(tmp_path) == tmp_path / "y"


def test_other_files_may_do_instead(tmp_path):
    (tmp_path / "c").mkdir()
    assert place(tmp_path, folders=("c",)) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"\(tables\): no data_dir.*DIR/x holds"):
        place(None, told="tables")


@pytest.mark.parametrize("name", ["cira", None, ["cora"]])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown graph .* one of cora, own\."):
        check_name("graph", name, ("cora", "own"))
