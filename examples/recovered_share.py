"""Measure how many of the weights that return at an edge stay, with MiniLM on SST-2.

    pip install "hf_cyclprune[demo]"
    python examples/recovered_share.py FOLDER [--num_cycles 4] [--learning_rate 3e-4] [--bf16]

FOLDER holds your own copy of SST-2: train.parquet and validation.parquet with the columns of
nyu-mll/glue, sst2.
"""

import argparse
import tempfile

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    TrainingArguments,
)

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.demo.model import find_model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", metavar="FOLDER", help="folder with SST-2 as parquet")
    parser.add_argument("--num_cycles", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--max_steps", type=int, default=1500)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    options = parse()
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    files = {split: f"{options.folder}/{split}.parquet" for split in ("train", "validation")}
    data = load_dataset("parquet", data_files=files).map(
        lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=32),
        batched=True,
        remove_columns=["sentence"],
    )
    torch.manual_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(find_model(), num_labels=2)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=options.max_steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=options.learning_rate,
            seed=options.seed,
            bf16=options.bf16,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=100,
            save_strategy="no",
            report_to=[],
        )
        trainer = PruningTrainer(
            model,
            args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            compute_metrics=accuracy,
            pruning_config=PruningConfig(
                method="cyclical", sparsity=options.sparsity, num_cycles=options.num_cycles
            ),
        )
        trainer.train()
        print(f"accuracy {trainer.evaluate()['eval_accuracy']:.4f}")
        print(trainer.sparsity_report())


if __name__ == "__main__":
    main()
