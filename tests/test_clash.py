"""Another distribution with the same import name is named, not mixed in."""

import pytest

from metalearn._clash import refuse_mixed_installation


def _install(folder, name):
    (folder / "metalearn").mkdir(exist_ok=True)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


@pytest.mark.parametrize("name", ["metalearn", "parallel-metalearn"])
def test_names_the_other_distribution(tmp_path, monkeypatch, name):
    _install(tmp_path, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=f"'{name}' is installed.*pip uninstall {name}"):
        refuse_mixed_installation(tmp_path / "metalearn")


def test_another_place_does_not_matter(tmp_path, monkeypatch):
    _install(tmp_path, "parallel-metalearn")
    monkeypatch.syspath_prepend(tmp_path)
    refuse_mixed_installation(tmp_path / "elsewhere")
