"""English sentences from the user's own Python, and a task made of them: is the word order intact?

The source is the prose in the standard library's .py files: docstrings, help topics, messages. The
files are parsed, never imported. A sentence is kept exactly if, once parentheses and inline markup
are off, it is MIN_WORDS to MAX_WORDS plain words between a capital and a full stop, and no earlier
one has the same words in any order.

In half of the sentences the first word and another trade places. This has the form of CoLA
(Warstadt et al. 2019, https://arxiv.org/abs/1805.12471), acceptable or not, but is easier: to know
which words begin a sentence goes a long way (0.75 by that rule alone, on Python 3.11), the rest
takes reading. No sentence, in any order, is in both splits, since each is kept once and whole
modules go to one split or the other.

The same Python gives the same data, always; another release has other sentences.
"""

import ast
import random
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
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
    """Training and validation set, with the columns text and label (0 = swapped, 1 = intact).

    Labels alternate, so both sets are balanced. With the same seed a smaller set is the beginning
    of a larger one.

    Raises:
        ValueError: the standard library holds fewer sentences than were asked for.
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
    """Whether a top-level module is for validation; by a hash of its name, so always the same."""
    return zlib.crc32(module.encode()) % 4 == 2


def load_sentences() -> dict[str, list[str]]:
    """Top-level module -> its sentences, names in order, files in order; no sentence comes twice.

    Sources of tests are left out. A Python without .py files (a zipped library) has no sentences.
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
    """Plain sentences of a text; code, lists, tables and headings do not look like one.

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
    """The sentence with its first word and a different one exchanged; the capital stays in front.

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
    """Sentences in the string literals of a top-level module's sources."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]:
        if path.is_file() and TEST_FOLDERS.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from find_sentences(node.value)


def _make_split(argument: str, sentences: list[str], num_rows: int, seed: int) -> Dataset:
    """The first `num_rows` of the shuffled sentences, the even ones with two words swapped."""
    if not 1 <= num_rows <= len(sentences):
        raise ValueError(
            f"{argument} must lie in [1, {len(sentences)}], the sentences found in this Python's "
            f"standard library; got {num_rows}. Ask for fewer."
        )
    generator = random.Random(seed)
    texts = generator.sample(sentences, len(sentences))[:num_rows]
    texts[::2] = [swap_first_word(text, generator) for text in texts[::2]]
    features = Features(text=Value("string"), label=ClassLabel(names=LABELS))
    labels = [i % 2 for i in range(num_rows)]
    return Dataset.from_dict({"text": texts, "label": labels}, features)
