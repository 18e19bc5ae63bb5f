"""Try the whole library on every architecture of the installed transformers that can be built tiny.

    pip install hf_cyclprune
    python examples/scan_architectures.py SCAN.jsonl [MODEL_TYPE ...]

For each one: find targets, train 8 steps in two cycles to a sparsity of 50 %, count zeros, save and
load with stock transformers, resume, load the model of an earlier checkpoint, pack, load the packed
folder. Each adds one line to SCAN.jsonl; those that are there are not tried again. At the end
the outcomes are counted, and everything but success is listed with its reason. No network is used.
"""

import argparse
import inspect
import json
import multiprocessing
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hf_cyclprune import PruningConfig, PruningTrainer, SparsityReport, find_targets, pack

SIZES = [  # the first expression that is found in the name of an option decides; None keeps it
    (r"dropout|eps|_std|ratio|factor|theta|token_type|type_vocab|_bias$", None),
    (r"token_(id|index)$|_id$", 1),
    (r"layers?$|layers_|depth$", 2),
    (r"head_(dim|size)|d_head|d_kv|kv_channels|qk_.*dim|v_head|lora_rank", 16),
    (r"heads?$|heads_|num_groups?$|n_group$|topk_group$", 2),
    (r"experts_per|top_?k|shared_experts", 2),
    (r"experts$|num_codebooks|n_codes", 4),
    (r"vocab", 64),
    (r"intermediate|ffn|d_ff|inner|mlp_dim|fc_size", 64),
    (r"image_size|img_size|crop_size", 32),
    (r"patch_size", 8),
    (r"num_mel|feature_size", 16),
    (r"position|max_.*len|context_len|seq_len", 64),
    (r"hidden|d_model|n_embd|embed|dim$|width|channels_out|bottleneck|_size$", 32),
]
MOST_PARAMETERS = 5_000_000
STEPS = 8


def shrink(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a config with smaller numbers, also in the configs inside of it."""
    small: dict[str, Any] = {}
    depths = {v for k, v in values.items() if type(v) is int and re.search(r"layers?$", k)}
    for name, value in values.items():
        if isinstance(value, dict):
            small[name] = shrink(value)
        elif isinstance(value, list) and len(value) > 2 and len(value) in depths:
            small[name] = value[:2]  # one entry for each layer
        elif type(value) is int and value > 1:
            size = next((size for regex, size in SIZES if re.search(regex, name)), None)
            small[name] = value if size is None else min(value, size)
        else:
            small[name] = value
    left_out = ("transformers_version", "architectures", "model_type", "dtype")
    return {name: value for name, value in small.items() if name not in left_out}


def build(model_type: str) -> PreTrainedModel:
    """Return a tiny model with random weights, the same at every call."""
    cls: type[PreTrainedConfig] = getattr(transformers, CONFIG_MAPPING_NAMES[model_type])
    config = cls(**shrink(cls().to_dict()))
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in AutoModel.from_config(config).parameters())
    if num_parameters > MOST_PARAMETERS:
        raise ValueError(f"{num_parameters} parameters are too many for a scan")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config)
    return model


def make_rows(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Return 16 random inputs of a model for text, pictures or sound."""
    config, name = model.config, model.main_input_name
    text, vision = (getattr(config, part, config) for part in ("text_config", "vision_config"))
    num_ids = min(getattr(c, "vocab_size", 64) for c in (config, text))
    size, channels = getattr(vision, "image_size", 32), getattr(vision, "num_channels", 3)
    shapes = {
        "pixel_values": (channels, *(size if isinstance(size, list | tuple) else (size, size))),
        "input_values": (2000,),
        "input_features": (
            getattr(config, "num_mel_bins", 16),
            2 * getattr(config, "max_source_positions", 50),
        ),
    }
    generator = torch.Generator().manual_seed(1)

    def draw() -> dict[str, Tensor]:
        ids = torch.randint(2, num_ids, (8,), generator=generator)
        row = {"input_ids": ids, "attention_mask": torch.ones(8, dtype=torch.long)}
        if name in shapes:
            row = {name: torch.randn(shapes[name], generator=generator)}
        elif name != "input_ids":
            raise ValueError(f"no inputs are known for '{name}'")
        elif vision is not config and "pixel_values" in signature:
            row["pixel_values"] = torch.randn(shapes["pixel_values"], generator=generator)
        return row | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})

    signature = inspect.signature(model.forward).parameters
    return [draw() for _ in range(16)]


class ScanTrainer(PruningTrainer):
    """Trains towards outputs of zero, since a model without a head has no loss."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        return sum(tensor.float().square().mean() for tensor in floats_in(outputs.to_tuple()))


def floats_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the floating-point tensors of an output that gradients flow to."""
    for value in values:
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.requires_grad:
                yield value
        elif isinstance(value, list | tuple):
            yield from floats_in(value)


class Weights(TrainerCallback):
    """Keeps the weights of every checkpoint in memory."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Tensor]] = {}

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.at[state.global_step] = {k: t.clone() for k, t in model.state_dict().items()}


def train(model_type: str, folder: Path, resume: Path | None = None) -> tuple[Any, Weights]:
    """Train a tiny model for 8 steps, from the start or a checkpoint."""
    model, weights = build(model_type), Weights()
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        save_steps=2,
        save_strategy="steps",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
    )
    trainer = ScanTrainer(
        model,
        args,
        train_dataset=make_rows(model),
        pruning_config=PruningConfig(sparsity=0.5, scope="layer", num_cycles=2),
        callbacks=[weights],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, weights


def find_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that differs; NaNs are equal."""
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return name
        if not torch.equal(one[name].nan_to_num(7.0), other[name].nan_to_num(7.0)):
            return name
    return None


def scan(model_type: str, folder: Path) -> dict[str, str]:
    """Return what became of one architecture: an outcome, and its reason where it is no success."""

    def attempt(outcome: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # whatever an architecture raises is the result of the scan
            lines = str(error).strip().splitlines() or [""]
            raise OutcomeError(outcome, f"{type(error).__name__}: {lines[0][:200]}") from error

    try:
        model = attempt("not built", lambda: build(model_type))
        targets = attempt("no targets", lambda: find_targets(model))
        rows = attempt("no inputs", lambda: make_rows(model))
        batch = {name: torch.stack([row[name] for row in rows[:2]]) for name in rows[0]}
        outputs = attempt("no forward pass", lambda: model.train()(**batch).to_tuple())
        attempt("no forward pass", lambda: sum(t.sum() for t in floats_in(outputs)).backward())
        if any(weight.grad is None for weight in targets.values()):
            raise OutcomeError("no forward pass", "not every target gets a gradient")
        trainer, weights = attempt("training failed", lambda: train(model_type, folder / "run"))
        whole = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        for name, weight in targets.items():
            if int((whole[name] == 0).sum()) != round(0.5 * weight.numel()):
                raise OutcomeError("wrong sparsity", name)
        checkpoint = folder / "run" / "checkpoint-6"
        resumed, _ = attempt("resume failed", lambda: train(model_type, folder / "run", checkpoint))
        check("resume differs", whole, resumed.model.state_dict())
        trainer.state.best_model_checkpoint = str(folder / "run" / "checkpoint-4")
        attempt("best model failed", trainer._load_best_model)
        check("best model differs", weights.at[4], trainer.model.state_dict())
        resumed.save_model(str(folder / "saved"))
        cls = type(resumed.model)
        loaded = attempt("loading failed", lambda: cls.from_pretrained(folder / "saved"))
        check("loaded model differs", whole, loaded.state_dict())
        attempt("packing failed", lambda: pack(folder / "saved", folder / "packed"))
        loaded = attempt("loading failed", lambda: cls.from_pretrained(folder / "packed"))
        check("packed model differs", whole, loaded.state_dict())
    except OutcomeError as ended:
        return {"model_type": model_type, "outcome": ended.args[0], "reason": ended.args[1]}
    report = SparsityReport.measure(loaded)
    covered = report.num_weights / (report.num_parameters or 1)
    return {"model_type": model_type, "outcome": "exact", "reason": f"{covered:.1%} are targets"}


class OutcomeError(Exception):
    """Ends the scan of one architecture with an outcome and its reason."""


def check(outcome: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """End the scan if tensors differ."""
    name = find_difference(expected, found)
    if name is not None:
        raise OutcomeError(outcome, name)


def run(model_type: str, out: Path) -> None:
    """Scan one architecture, and note the result."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        result = scan(model_type, Path(folder))
    with out.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(f"{result['model_type']}: {result['outcome']} ({result['reason']})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, metavar="SCAN.jsonl")
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one architecture")
    options = parser.parse_args()
    wanted = options.model_types or [n for n in MODEL_MAPPING_NAMES if n in CONFIG_MAPPING_NAMES]
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    done = {result["model_type"] for result in map(json.loads, lines)}
    fork = multiprocessing.get_context("fork")  # a crash or a hang ends one architecture only
    for model_type in [name for name in wanted if name not in done]:
        process = fork.Process(target=run, args=(model_type, options.out))
        process.start()
        process.join(options.timeout)
        if process.exitcode != 0:
            process.kill()
            result = {"model_type": model_type, "outcome": "crashed or hung"}
            with options.out.open("a") as file:
                file.write(json.dumps({**result, "reason": f"exit {process.exitcode}"}) + "\n")
    results = [json.loads(line) for line in options.out.read_text().splitlines()]
    for outcome, number in Counter(r["outcome"] for r in results).most_common():
        print(f"{number:4d} {outcome}")
    for result in results:
        if result["outcome"] not in ("exact", "not built", "no inputs", "no forward pass"):
            print(f"{result['model_type']}: {result['outcome']}: {result['reason']}")


if __name__ == "__main__":
    main()
