"""A pytest plugin: transformers' own Trainer tests, with `PruningTrainer` instead of `Trainer`.

"Without a config it changes nothing" is tested best by the tests that transformers has. They come
with its repository, in neither wheel nor sdist. Inside a checkout of the installed version:

    PYTHONPATH=<this folder> python -m pytest -p upstream_trainer tests/trainer/test_trainer.py

Run them without `-p upstream_trainer` too and compare test by test: several need the Hub or a GPU
and fail with transformers' own class as well.

The swap happens in `pytest_configure`, so importing this file (as `--doctest-modules` does) changes
nothing. `Seq2SeqTrainer` stays a subclass of transformers' class, as it is for our users.

The closing lines count the constructions by class. A session fails if none was a PruningTrainer,
or if one was still a `Trainer`: a test that never met our class proves nothing about it. Processes
that a test starts, and the workers of xdist, are not counted, so run without `-n`.
"""

import functools
import sys
from collections import Counter

import pytest
import transformers
import transformers.trainer
import transformers.trainer_seq2seq  # before the swap: its base class is to stay

from hf_cyclprune import PruningTrainer

(_STOCK,) = PruningTrainer.__bases__
_OURS, _SEQ2SEQ, _LEFT = "PruningTrainer", "Seq2SeqTrainer", "still Trainer"
_constructions: Counter[str] = Counter()


def pytest_configure(config):
    assert _STOCK is transformers.trainer.Trainer, "the swap was made twice"
    _count_constructions()
    transformers.Trainer = PruningTrainer  # lazy: may not be in its module's namespace yet
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "transformers" and vars(module).get("Trainer") is _STOCK:
            module.Trainer = PruningTrainer


def _count_constructions():
    """Wrap the one constructor through which all three kinds go."""
    construct = _STOCK.__init__

    @functools.wraps(construct)
    def counted(self, *args, **kwargs):
        _constructions[_kind(self)] += 1
        construct(self, *args, **kwargs)

    _STOCK.__init__ = counted


def _kind(trainer):
    if isinstance(trainer, PruningTrainer):
        return _OURS
    return _SEQ2SEQ if isinstance(trainer, transformers.Seq2SeqTrainer) else _LEFT


def _complaint(config):
    """Why this session proves nothing; None if it proves something, or ran no test on request."""
    if config.option.collectonly:
        return None
    if _constructions[_LEFT]:
        return f"{_constructions[_LEFT]} constructions escaped the swap"
    return None if _constructions[_OURS] else "no test constructed a PruningTrainer"


def pytest_sessionfinish(session):
    if _complaint(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    counts = ", ".join(f"{_constructions[kind]} {kind}" for kind in (_OURS, _SEQ2SEQ, _LEFT))
    terminalreporter.section("upstream_trainer")
    terminalreporter.line(f"transformers {transformers.__version__}, constructions: {counts}")
    if _complaint(config):
        terminalreporter.line(f"FAILED: {_complaint(config)}", red=True)
