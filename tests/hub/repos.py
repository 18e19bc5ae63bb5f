"""Small stand-ins for the repositories that users begin with: a BERT, and GLUE."""

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from hf_cyclprune.glue.tasks import TASKS, GlueTask
from tests.hub.server import HubServer

if TYPE_CHECKING:
    from datasets import Dataset, Features

BERT = "google-bert/bert-base-uncased"
GLUE = "nyu-mll/glue"


def _words(text: str) -> list[str]:
    return text.split()


GOOD = _words("bright calm clever fresh gentle happy lovely warm")
BAD = _words("broken cold dull gloomy noisy rusty sour weak")
NOUNS = _words(
    "baker bird boat bridge candle cat clock cloud dog door farmer garden kettle lamp mill "
    "painter river road sailor song spoon stone tower train window"
)
VERBS = _words("builds carries draws finds follows hears keeps likes paints sees")
SMALL = _words("a an and is it no not of on that the this was with")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def add_tiny_bert(hub: HubServer, repo_id: str = BERT) -> None:
    """Add a BERT of two layers and 32 units without a classifier, and its tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_bert(folder)
        hub.add_folder(repo_id, folder)


def save_tiny_bert(folder: str | Path) -> None:
    """Save the same model and tokenizer in a folder."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_bert(len(tokenizer)).save_pretrained(folder)


def make_tokenizer() -> BertTokenizer:
    """A tokenizer that knows the words of the sentences here and spells every other one."""
    pieces = [f"##{character}" for character in CHARACTERS]
    tokens = [*SPECIAL, *CHARACTERS, *".,?!'-:;()", *pieces, *SMALL, *GOOD, *BAD, *NOUNS, *VERBS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=64)


def make_bert(vocab_size: int) -> BertForPreTraining:
    """A BERT with the same weights at every call."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForPreTraining(config)


def write_tiny_glue(folder: str | Path, num_rows: int = 8) -> None:
    """Write all nine tasks as TASK/SPLIT.parquet."""
    for task in TASKS.values():
        (Path(folder) / task.name).mkdir(parents=True, exist_ok=True)
        for split, rows in make_splits(task, num_rows).items():
            rows.to_parquet(str(Path(folder) / task.name / f"{split}.parquet"))


def add_tiny_glue(hub: HubServer, num_rows: int = 8, repo_id: str = GLUE) -> None:
    """Add all nine tasks, laid out as on the Hub."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_glue(folder, num_rows)
        files = {
            _path_on_hub(path.parent.name, path.stem): path.read_bytes()
            for path in sorted(Path(folder).rglob("*.parquet"))
        }
    files["README.md"] = _glue_card(files, num_rows).encode()
    hub.add_repo(repo_id, files, repo_type="dataset")


def make_splits(task: GlueTask, num_rows: int) -> "dict[str, Dataset]":
    """The splits of a task by name; every label occurs in each, but the tests have none."""
    from datasets import Dataset

    names = ("train", *task.validation_splits, *task.test_splits)
    features = make_features(task)
    return {
        name: Dataset.from_dict(_make_rows(task, name, num_rows), features=features)
        for name in names
    }


def make_features(task: GlueTask) -> "Features":
    """The columns of a task: texts, label and index."""
    from datasets import ClassLabel, Features, Value

    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.labels))
    texts = {column: Value("string") for column in task.columns}
    return Features({**texts, "label": label, "idx": Value("int32")})


def _make_rows(task: GlueTask, split: str, num_rows: int) -> dict[str, list[Any]]:
    draw = random.Random(f"{task.name}/{split}")
    num_labels = 6 if task.is_regression else len(task.labels)
    labels = [row % num_labels for row in range(num_rows)]
    columns: dict[str, list[Any]] = {column: [] for column in task.columns}
    for label in labels:
        # The more of the words are good, the higher the label: it can be learned.
        share = label / (num_labels - 1)
        for texts in columns.values():
            texts.append(_make_sentence(draw, share))
    shown = [-1 if split in task.test_splits else label for label in labels]
    kind = float if task.is_regression else int
    return {**columns, "label": [kind(label) for label in shown], "idx": list(range(num_rows))}


def _make_sentence(draw: random.Random, share: float) -> str:
    def thing() -> str:
        return f"{draw.choice(GOOD if draw.random() < share else BAD)} {draw.choice(NOUNS)}"

    return f"The {thing()} {draw.choice(VERBS)} a {thing()}, and it likes the {thing()}."


def _glue_card(files: dict[str, bytes], num_rows: int) -> str:
    """A README.md that lists the files of each split and their columns."""
    configs, infos = [], []
    for task in TASKS.values():
        names = ("train", *task.validation_splits, *task.test_splits)
        sizes = {name: len(files[_path_on_hub(task.name, name)]) for name in names}
        places = [{"split": name, "path": f"{task.name}/{name}-*"} for name in names]
        splits = [
            {"name": name, "num_bytes": size, "num_examples": num_rows}
            for name, size in sizes.items()
        ]
        features = make_features(task)._to_yaml_list()
        total = sum(sizes.values())
        info = {"config_name": task.name, "features": features, "splits": splits}
        infos.append({**info, "download_size": total, "dataset_size": total})
        configs.append({"config_name": task.name, "data_files": places})
    data = {"language": ["en"], "dataset_info": infos, "configs": configs}
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n\n# Tiny sentences in nine tasks\n"


def _path_on_hub(task: str, split: str) -> str:
    return f"{task}/{split}-00000-of-00001.parquet"
