"""Check that a commit on the Hub of the tests describes the weights in it correctly."""

import json
from pathlib import Path

import safetensors.torch
import torch

from hf_cyclprune.packing.weights import PackedWeights, fingerprint

ROOT_FILES = {
    *("README.md", "config.json", "model.safetensors", "pruning_config.json"),
    *("pruning_run.json", "sparsity_report.json"),
}
IN_PROGRESS = "Training in progress"


def contents(commit):
    """Return the files of a commit: path -> bytes."""
    return {path: blob.content for path, blob in commit.files.items()}


def check_page(files, tmp_path, is_final=True, has_packed=True):
    """Recount the zeros; compare report, card and packed copy; return the sparsity."""
    assert files.keys() >= ROOT_FILES
    extras = {path.split("/")[0] for path in files if path.startswith(("sparse/", "pictures/"))}
    has_packed = has_packed and is_final
    assert extras == {"pictures" if is_final else None, "sparse" if has_packed else None} - {None}
    weights = safetensors.torch.load(files["model.safetensors"])
    report = json.loads(files["sparsity_report.json"])
    targets = [weights[target["name"]] for target in report["weights"]]
    assert len(targets) == 12
    zeros, total = sum(int((w == 0).sum()) for w in targets), sum(w.numel() for w in targets)
    assert zeros == sum(target["num_zeros"] for target in report["weights"])
    card = files["README.md"].decode()
    assert f"Of the {total:,} target weights {zeros:,} are zero ({zeros / total:.2%})" in card
    record = json.loads(files["pruning_run.json"])
    (tmp_path / "weights").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "weights" / name).write_bytes(files[name])
    assert record["fingerprint"] == fingerprint(tmp_path / "weights")
    is_known = record["total_steps"] is not None
    assert (IN_PROGRESS in card) == (is_known and record["step"] < record["total_steps"])
    steps = f"after optimizer step {record['weights_step']} of {record['total_steps']}"
    assert (steps in card) == is_known == ("after optimizer step" in card)
    assert ('subfolder="sparse"' in card) == has_packed
    assert ("pictures/" in card) == is_final
    if has_packed:
        check_packed(files, weights, tmp_path / "sparse")
    return zeros / total


def check_packed(files, weights, folder):
    """Check that the copy in sparse/ equals the weights in the root, bit by bit."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for path, content in files.items():
        if path.startswith("sparse/"):
            (folder / Path(path).name).write_bytes(content)
    packed = PackedWeights(folder)
    assert set(packed.names) == set(weights)
    assert all(torch.equal(packed.read(name), weights[name]) for name in weights)
