import os

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors import SafetensorError

from hf_cyclprune.hub.errors import PushError, explain, explained


def number(code):
    return OSError(code, os.strerror(code), "/some/file")


def test_errors_say_what_to_do():
    said = {
        TimeoutError("late"): "cannot be reached for the push to 'a/b': TimeoutError (late).",
        LocalTokenNotFoundError("x"): "a valid token for the Hub: none was found. Run `hf auth",
        number(28): "No space left on device at /some/file. Your files are intact",
        SafetensorError("I/O error: File too large (os error 27)"): "File too large. Your files",
    }
    for error, words in said.items():
        assert words in explain("a/b", error)
        with pytest.raises(PushError, match="a/b"), explained("a/b"):
            raise error
    wrapped = RuntimeError("Error while uploading 'x'")
    wrapped.__cause__ = TimeoutError("late")
    assert explain("a/b", wrapped) == explain("a/b", TimeoutError("late"))
    other = explain("a/b", FileNotFoundError("x"))
    assert other.startswith("The push to 'a/b' failed: FileNotFoundError (x).")


@pytest.mark.parametrize(
    "error", [ValueError("v"), RuntimeError("r"), FileNotFoundError(2, "f"), KeyboardInterrupt()]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, explained("a/b"):
        raise error
    assert raised.value is error
