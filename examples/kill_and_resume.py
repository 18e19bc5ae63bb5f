"""Kill a training run at random moments, resume it, and check that nothing is lost.

    python examples/kill_and_resume.py [--num_kills 50] [--seed 0]

A forked process prunes a small BERT and saves after every second step. It is killed (SIGKILL) at a
random moment, which may be in the middle of saving, and a new process resumes the run until it is
done. This is repeated with new runs until there were --num_kills kills. Every run must end with the
weights of an uninterrupted one. For each kill the script prints the last step that was reached and
the step from which the next process continues. It needs os.fork: Linux or macOS.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from hf_cyclprune import PruningConfig, PruningTrainer, verify
from hf_cyclprune.training.damage import newest_checkpoint

MAX_STEPS, SAVE_STEPS = 120, 2


class Progress(TrainerCallback):
    """Write the first and the last step of this process to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps([self.start, state.global_step]))
        os.replace(temporary, self.file)


def train(folder: Path, is_resumed: bool) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(num_attention_heads=2, **shape))
    ids = torch.randint(0, 30000, (64, 16))
    args = TrainingArguments(
        str(folder),
        max_steps=MAX_STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = PruningTrainer(
        model,
        args,
        train_dataset=[{"input_ids": row, "labels": int(row[0]) % 2} for row in ids],
        callbacks=[Progress(folder.with_suffix(".progress"))],
        pruning_config=PruningConfig(sparsity=0.8, num_cycles=3),
    )
    trainer.train(resume_from_checkpoint=is_resumed)
    trainer.save_model(str(folder / "final"))


def fork(folder: Path, is_resumed: bool) -> int:
    """Start a training and return its process id."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            train(folder, is_resumed)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return process


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_kills", type=int, default=50, help="end after so many kills")
    parser.add_argument("--seed", type=int, default=0, help="for the moments of the kills")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        start = time.perf_counter()
        assert os.waitpid(fork(whole, False), 0)[1] == 0
        seconds = time.perf_counter() - start
        num_kills, num_runs, num_damaged, most_lost = 0, 0, 0, 0
        while num_kills < options.num_kills:
            folder = Path(temporary) / f"run{num_runs}"
            progress = folder.with_suffix(".progress")
            while True:
                checkpoint = newest_checkpoint(folder)
                process = fork(folder, checkpoint is not None)
                time.sleep(draw.uniform(0.05, 0.5) * seconds)
                is_done, status = os.waitpid(process, os.WNOHANG)
                if is_done:
                    assert status == 0, "a run failed"
                    break
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                num_kills += 1
                first, last = json.loads(progress.read_text()) if progress.exists() else (0, 0)
                newest = get_last_checkpoint(str(folder)) if folder.exists() else None
                kept = newest_checkpoint(folder)
                num_damaged += newest is not None and newest != kept
                kept_step = int(kept.rpartition("-")[2]) if kept else 0
                most_lost = max(most_lost, last - kept_step)
                print(f"kill {num_kills}: from step {first} to {last}; next from {kept_step}")
            difference = verify(whole / "final", folder / "final")
            assert difference is None, difference
            num_runs += 1
            shutil.rmtree(folder)
    print(
        f"{num_kills} kills of {num_runs} runs, {num_damaged} in the middle of a checkpoint; every "
        f"run ended with the weights of the whole one; at most {most_lost} steps were done again "
        f"(a checkpoint every {SAVE_STEPS})."
    )


if __name__ == "__main__":
    main()
