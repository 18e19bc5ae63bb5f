"""Every engine on two real ranks: exact zeros, the masks of one process, and resuming."""

import inspect
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from hf_cyclprune import METHODS

ROOT = Path(__file__).parent.parent.parent
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is optional: pip install deepspeed"
)
ENGINES = [
    "ddp",
    "fsdp2",
    *(pytest.param(f"zero{stage}", marks=needs_deepspeed) for stage in (1, 2, 3)),
]
SAVES = {"save_strategy": "steps", "save_steps": 3}
STATEFUL = {"method": "swap"}  # values of pruned weights, gradients, second moments, protection
AVERAGED = {"ema_decay": 0.9, "ramp_ratio": 0.3, "recompute": "climb", "num_cycles": 1}


def run_job(engine, cases, folder, timeout=240):
    """Run cases on two ranks ("one": on one); return what they printed if a rank has failed."""
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable]
    if engine != "one":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = Path(__file__).with_name("job.py")
    command += [str(job), engine, str(folder), str(folder / "cases.json")]
    ranks = [folder / f"{engine}-{rank}.done" for rank in range(1 if engine == "one" else 2)]
    for path in ranks:
        path.unlink(missing_ok=True)
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = f"hung for {timeout} s\n{process.communicate()[0]}"
    return "" if all(path.is_file() for path in ranks) else output


def assert_same(folder, engine, one, other):
    whole, resumed = (load_file(folder / f"{engine}-{name}.safetensors") for name in (one, other))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def resuming(engine, name, config, **options):
    """A run that saves in its middle, and one that goes on from there."""
    first = {"name": name, "output_dir": f"{name}-run", "args": {**SAVES, **options}}
    then = {"name": f"{name}-resumed", "resume": f"{name}-run/checkpoint-3", "args": options}
    return [{**first, "config": config}, {**then, "config": config}]


def can_resume(engine):
    """Whether the Trainer can: that of transformers 5.0 loads no optimizer to the CPU of a rank."""
    is_mended = "device.type" in inspect.getsource(Trainer._load_optimizer_and_scheduler)
    return engine != "ddp" or is_mended


def cases_of(engine):
    """All methods, the criteria that no method has, patterns, kinds of models, and resuming."""
    names = [m for m in METHODS if m != "hold"]
    if engine in ("zero1", "zero2"):  # one code for both: each trains with half of the methods
        names = names[engine == "zero2" :: 2]
    methods = [{"name": m, "config": {"method": m}} for m in names]
    criteria = [
        {"name": c, "config": {"criterion": c, "recompute": "always", "interval_steps": 1}}
        for c in ("taylor", "gradient", "random", "benefit")
    ]
    patterns = {
        "2:4": {"pattern": "2:4", "recompute": "always"},
        "1:4 fisher": {"pattern": "1:4", "method": "fisher"},
        "min_density": {"scope": "global", "min_density": 0.1, "recompute": "always"},
        "erk": {"scope": "erk"},
        "reset_momentum": {"reset_momentum": True},
    }
    kinds = ["gpt2", "llama", "t5"]
    models = [
        {"name": f"{kind} {pattern}", "model": kind, "config": config}
        for kind in kinds
        for pattern, config in [("global", {"scope": "global"}), ("2:4", {"pattern": "2:4"})]
    ]
    resumed = []
    if can_resume(engine):
        resumed += resuming(engine, "stateful", STATEFUL)
        resumed += resuming(engine, "averaged", AVERAGED)
    if engine == "fsdp2":
        parts = {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
        resumed += resuming(engine, "in parts", STATEFUL, **parts)
        # An evaluation leaves the whole weights in the group that it ends with: here all of them.
        undivided = {"fsdp_config": {"auto_wrap_policy": "NO_WRAP"}}
        evaluated = {**undivided, "eval_strategy": "steps", "eval_steps": 1}
        resumed += [
            {"name": "quiet", "config": {"method": "greg"}, "args": undivided},
            {"name": "evaluated", "config": {"method": "greg"}, "args": evaluated},
        ]
    half = [{"name": "bf16", "args": {"bf16": True}}]
    if engine == "ddp":
        half += [{"name": "diverging", "diverges_at": 3, "raises": "must have the same masks"}]
    return [
        {"name": "parts", "kind": "parts"},
        {"name": "loop", "kind": "loop"},
        *methods,
        *criteria,
        *({"name": name, "config": config} for name, config in patterns.items()),
        *models,
        *half,
        *resumed,
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_prunes_as_one_process_and_resumes_bit_for_bit(engine, tmp_path):
    cases = cases_of(engine)
    output = run_job(engine, cases, tmp_path)
    assert not output, output[-6000:]
    if can_resume(engine):
        assert_same(tmp_path, engine, "stateful", "stateful-resumed")
        assert_same(tmp_path, engine, "averaged", "averaged-resumed")
    if engine == "fsdp2":
        assert_same(tmp_path, engine, "in parts", "in parts-resumed")
        assert_same(tmp_path, engine, "quiet", "evaluated")


def test_a_checkpoint_is_resumed_by_another_engine(tmp_path):
    engines = ["ddp", "fsdp2"]
    if find_spec("deepspeed") is not None:
        engines += ["zero1", "zero3"]
    cases = []
    for i, engine in enumerate([*engines, "one"], start=1):
        case = {"name": "across", "engine": engine, "output_dir": engine, "config": STATEFUL}
        case |= {"args": {"save_strategy": "steps", "save_steps": i}, "stop_at": i}
        if cases:
            case["resume"] = f"{cases[-1]['engine']}/checkpoint-{i - 1}"
        cases.append(case)
    cases[-1]["stop_at"] = 6
    for together, some in (("+".join(engines), cases[:-1]), ("one", cases[-1:])):
        output = run_job(together, some, tmp_path, timeout=120)
        assert not output, output[-6000:]
    assert (tmp_path / "one-across.safetensors").is_file()


def test_a_failing_rank_ends_the_job(tmp_path):
    output = run_job("ddp", [{"name": "failing", "fails_at": 3}], tmp_path, timeout=60)
    assert "rank 1 fails" in output
    assert "hung" not in output
