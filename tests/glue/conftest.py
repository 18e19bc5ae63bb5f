"""Fixtures: a tiny BERT with a tokenizer and a few made-up rows of every task, on disk."""

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from tests.hub.repos import save_tiny_bert, write_tiny_glue


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    write_tiny_glue(folder, num_rows=24)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_bert")
    save_tiny_bert(folder)
    return folder


@pytest.fixture
def flags(glue_folder, tiny_folder, tmp_path):
    """Return the flags of a short run of a task into tmp_path/out; `more` flags override them."""

    def build(task, *more, model=tiny_folder):
        return [
            *("--task_name", task, "--model_name_or_path", str(model)),
            *("--dataset_dir", str(glue_folder), "--cache_dir", str(glue_folder / "cache")),
            *("--output_dir", str(tmp_path / "out"), "--max_seq_length", "32"),
            *("--per_device_train_batch_size", "4", "--max_steps", "12", "--save_steps", "6"),
            *("--learning_rate", "1e-3", "--report_to", "none", "--use_cpu"),
            *map(str, more),
        ]

    return build
