import json

import pytest

from hf_cyclprune.files import read_json, whole_file, write_json


def test_an_exception_leaves_the_file_as_it_was(tmp_path):
    path = write_json(tmp_path / "new" / "a.json", {"a": 1})
    with pytest.raises(RuntimeError), whole_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half of")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_what_is_written_is_read(tmp_path):
    values = {"b": [1, None, "ü"], "a": 0.1}
    assert read_json(write_json(tmp_path / "a.json", values)) == values


@pytest.mark.parametrize("text", ["[]", "null", "{", "", "[" * 100_000])
def test_anything_but_an_object_is_refused_with_the_remedy(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json in .* cannot be read.* Try again\."):
        read_json(tmp_path / "a.json", "Try again.")


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no a\.json in .* Try again\."):
        read_json(tmp_path / "a.json", "Try again.")
