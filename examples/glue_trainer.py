"""Fine-tune and prune on SST-2 with PruningTrainer, as `hf-cyclprune glue` does.

    python examples/glue_trainer.py google-bert/bert-base-uncased OUT [FOLDER]

FOLDER holds train.parquet and validation.parquet; without it the data come from the Hub.
"""

import sys

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_cyclprune import PruningArguments, PruningTrainer
from hf_cyclprune.glue.metrics import GlueMetric
from hf_cyclprune.training.device import has_accelerator


def main(name: str, out: str, folder: str | None = None, **options) -> dict[str, float]:
    files = {split: f"{folder}/{split}.parquet" for split in ("train", "validation")}
    source = ("parquet", None) if folder else ("nyu-mll/glue", "sst2")
    data = load_dataset(*source, data_files=files if folder else None)
    tokenizer = AutoTokenizer.from_pretrained(name)
    data = data.map(lambda rows: tokenizer(rows["sentence"], truncation=True), batched=True)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    metric = GlueMetric("sst2")

    args = PruningArguments(out, sparsity=0.8, use_cpu=not has_accelerator(), **options)
    # trainer = Trainer(
    trainer = PruningTrainer(
        model,
        args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=lambda p: metric.compute(
            predictions=p.predictions.argmax(-1), references=p.label_ids
        ),
    )
    trainer.train()
    trainer.save_model()
    print(trainer.sparsity_report())
    return trainer.evaluate()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
