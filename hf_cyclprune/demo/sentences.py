"""A task made of English sentences from the user's own Python: is the word order intact?

The sentences come from the docstrings, help topics and messages in the standard library's .py
files, which are parsed and never imported. After its parentheses and inline markup are removed, a
sentence is kept if it has MIN_WORDS to MAX_WORDS plain words between a capital and a full stop, and
if no earlier sentence has the same words in any order.

In half of the sentences the first word is swapped with another. The task has the form of CoLA
(Warstadt et al. 2019, https://arxiv.org/abs/1805.12471), acceptable or not, but is easier: knowing
which words begin a sentence gives an accuracy of 0.75 (on Python 3.11). No sentence is in both
splits, in whatever order, because each is kept once and every module belongs to one split.

The same release of Python always gives the same data.
"""

import ast
import random
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

MIN_WORDS, MAX_WORDS = 6, 16
LABELS = ["swapped", "intact"]

WORD = re.compile(r"[A-Za-z]+(?:['-][a-z]+)*")
SENTENCE = re.compile(rf"[A-Z][a-z]*(?:['-][a-z]+)*(?:[,;]? {WORD.pattern})+\.")
PARENTHESES = re.compile(r" \([^()]*\)")
MARKUP = re.compile(r"(?<!\w)[`*\"']+([A-Za-z]+)[`*\"']+(?!\w)")  # *word*, ``word``, "word"
TEST_FOLDERS = {"test", "tests", "idle_test"}


def make_task(num_train: int, num_validation: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Make a training and a validation set with the columns text and label (0 swapped, 1 intact).

    Labels alternate, so both sets are balanced. With the same seed a smaller set is the beginning
    of a larger one.

    Raises:
        ValueError: the standard library holds fewer sentences than that.
    """
    train: list[str] = []
    validation: list[str] = []
    for module, sentences in load_sentences().items():
        (validation if is_held_out(module) else train).extend(sentences)
    return (
        _make_split("num_train", train, num_train, seed),
        _make_split("num_validation", validation, num_validation, seed),
    )


def is_held_out(module: str) -> bool:
    """Return whether a top-level module is for validation, by a hash of its name."""
    return zlib.crc32(module.encode()) % 4 == 2


@cache
def load_sentences() -> dict[str, list[str]]:
    """Return the sentences of every top-level module, in a fixed order and each of them once.

    Tests are left out. A Python without .py files (a zipped library) has no sentences.
    """
    seen: set[tuple[str, ...]] = set()
    sentences: dict[str, list[str]] = {}
    for module in sorted(sys.stdlib_module_names):
        for sentence in _read_module(module):
            words = tuple(sorted(WORD.findall(sentence.lower())))
            if words not in seen:
                seen.add(words)
                sentences.setdefault(module, []).append(sentence)
    return sentences


def find_sentences(text: str) -> Iterator[str]:
    """Yield the plain sentences of a text, without code, lists, tables and headings.

    >>> list(find_sentences("Return the *default* value (or None) of the given key. See x.y."))
    ['Return the default value of the given key.']
    """
    for paragraph in re.split(r"\n\s*\n", text):
        line = PARENTHESES.sub("", " ".join(paragraph.split()))
        for sentence in re.split(r"(?<=[.!?]) ", MARKUP.sub(r"\1", line)):
            if SENTENCE.fullmatch(sentence):
                words = WORD.findall(sentence.lower())
                if len(set(words)) >= MIN_WORDS and len(words) <= MAX_WORDS:
                    yield sentence


def swap_first_word(sentence: str, generator: random.Random) -> str:
    """Swap the first word of a sentence with a different one; the capital stays in front.

    >>> swap_first_word("Return a list, not a tuple.", random.Random(1))
    'List a return, not a tuple.'
    """
    words = WORD.findall(sentence)
    first = words[0].lower()
    i = generator.choice([i for i, word in enumerate(words) if word.lower() != first])
    words[0], words[i] = words[i][0].upper() + words[i][1:], first
    in_order = iter(words)
    return WORD.sub(lambda _: next(in_order), sentence)


def _read_module(module: str) -> Iterator[str]:
    """Yield the sentences in the string literals of a top-level module's sources."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]:
        if path.is_file() and TEST_FOLDERS.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from find_sentences(node.value)


def _make_split(argument: str, sentences: list[str], num_rows: int, seed: int) -> Dataset:
    """Shuffle the sentences, take the first `num_rows`, and swap two words in every other one."""
    if not 1 <= num_rows <= len(sentences):
        raise ValueError(
            f"{argument} must be in [1, {len(sentences)}], since this Python's standard library "
            f"has no more sentences; got {num_rows}. Ask for fewer."
        )
    generator = random.Random(seed)
    texts = generator.sample(sentences, len(sentences))[:num_rows]
    texts[::2] = [swap_first_word(text, generator) for text in texts[::2]]
    features = Features(text=Value("string"), label=ClassLabel(names=LABELS))
    labels = [i % 2 for i in range(num_rows)]
    return Dataset.from_dict({"text": texts, "label": labels}, features)
