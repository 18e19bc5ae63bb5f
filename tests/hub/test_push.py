"""`hf-cyclprune push`, and the page that a stranger finds on the Hub afterwards."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace as replace_fields
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.cli import main
from hf_cyclprune.packing.verification import verify
from hf_cyclprune.packing.weights import fingerprint
from tests.hub.connect import connect
from tests.hub.pages import check_page, contents
from tests.hub.repos import add_tiny_bert, add_tiny_glue, make_tokenizer
from tests.hub.server import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, HubServer
from tests.inference.times import BENCH

REPO = "tester/pruned"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a pruned run, evaluated, and of a dense one."""
    place = tmp_path_factory.mktemp("runs")
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **sizes)
    data = [{"input_ids": torch.arange(8) + i, "labels": i % 2} for i in range(16)]
    for name, pruning in (("pruned", PruningConfig(sparsity=0.8, num_cycles=2)), ("dense", None)):
        torch.manual_seed(0)
        options = {"max_steps": 12, "save_steps": 4, "report_to": [], "disable_tqdm": True}
        trainer = PruningTrainer(
            model=BertForSequenceClassification(config),
            args=TrainingArguments(str(place / name), use_cpu=True, logging_steps=2, **options),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
            pruning_config=pruning,
        )
        trainer.train()
        metrics = {**trainer.evaluate(), "eval_samples": 16}
        trainer.save_metrics("eval", metrics)
        trainer.save_model()
        trainer.save_state()
        if pruning is not None:
            trainer.create_model_card(metrics=metrics)
    return place


@pytest.fixture
def folder(runs, tmp_path):
    return Path(shutil.copytree(runs / "pruned", tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer(lfs_threshold=30_000) as server:
        connect(server, monkeypatch, tmp_path / "home")
        yield server


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def push(capsys, folder):
    """Run the verb on the folder, which must not change it; return the URL or the error."""

    def run(*flags, source=None, repo=REPO, succeeds=True):
        before = snapshot(folder)
        capsys.readouterr()
        code = main(["push", str(source or folder), repo, *map(str, flags)])
        out, err = capsys.readouterr()
        assert snapshot(folder) == before
        assert WRITE_TOKEN not in out + err
        assert code == (0 if succeeds else 1), err
        if succeeds:
            return out.strip()
        (line,) = [line for line in err.splitlines() if line.startswith("hf-cyclprune: error: ")]
        assert out == ""
        assert "Traceback" not in err
        return line

    return run


def test_the_page_is_whole_and_true(hub, push, tmp_path):
    assert push("--private") == f"{hub.url}/{REPO}"
    assert hub.is_private(REPO)
    files = hub.files(REPO)
    assert check_page(files, tmp_path) == pytest.approx(0.8, abs=1e-3)
    assert {"tokenizer.json", "sparse/tokenizer.json", "pictures/schedule.png"} <= files.keys()
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pth"))]
    assert not [path for path in files if "checkpoint" in path or "state.safetensors" in path]
    assert "POST /api/validate-yaml" in [f"{r.method} {r.path}" for r in hub.requests]
    assert hub.find(WRITE_TOKEN) == []
    push()
    assert len(hub.commits(REPO)) == 2, "the same again is no commit"


def test_a_model_that_packing_does_not_shorten_is_pushed_without_a_packed_copy(
    hub, push, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_cyclprune.packing.file.encode", lambda tensor: None)
    push()
    check_page(hub.files(REPO), tmp_path, has_packed=False)


def test_flags_say_where_and_what(hub, push, runs, tmp_path):
    push("--revision", "side", "--no_packed", "--dense_run", runs / "dense")
    assert hub.files(REPO).keys() == {".gitattributes"}
    files = hub.files(REPO, "side")
    check_page(files, tmp_path, has_packed=False)
    assert "| metric | dense | pruned |" in files["README.md"].decode()
    push(repo="lone")
    assert hub.has_repo("tester/lone")
    assert 'from_pretrained("tester/lone")' in hub.files("tester/lone")["README.md"].decode()


def test_a_checkpoint_is_pushed_as_what_it_is(hub, push, folder, tmp_path):
    for number in (4, 12):
        push(source=folder / f"checkpoint-{number}")
        check_page(hub.files(REPO), tmp_path)
    card = contents(hub.commits(REPO)[1])["README.md"].decode()
    assert "Training in progress" in card
    assert "step 4 of 12" in " ".join(card.split())


def test_what_is_missing_or_wrong_in_the_folder_is_counted_anew(hub, push, folder, tmp_path):
    for name in ("sparsity_report.json", "pruning_run.json"):
        (folder / name).unlink()
    push()
    before = check_page(hub.files(REPO), tmp_path)
    shutil.copy(folder / "checkpoint-4" / "sparsity_report.json", folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    targets = [name for name in weights if ".layer." in name and weights[name].ndim == 2]
    num_kept, name = max((int(weights[name].count_nonzero()), name) for name in targets)
    weights[name].zero_()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    push()
    num_weights = sum(weights[name].numel() for name in targets)
    after = check_page(hub.files(REPO), tmp_path)
    assert after - before == pytest.approx(num_kept / num_weights)
    assert num_kept > 10


def test_a_sharded_model_is_pushed_as_it_is(hub, push, folder, tmp_path):
    push()
    model = BertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    push()
    for path, content in hub.files(REPO).items():
        (tmp_path / "found" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "found" / path).write_bytes(content)
    assert not (tmp_path / "found" / "model.safetensors").exists()
    for other in (folder, tmp_path / "found" / "sparse"):
        assert verify(tmp_path / "found", other) is None


def test_nothing_of_the_model_before_stays(hub, push, tmp_path):
    old = ["sparse/config.json", "sparse/model.sparse.safetensors", "pictures/density.png"]
    old.append("model-00001-of-00002.safetensors")
    kept = {"notes.txt": b"mine", "last-checkpoint/model.safetensors": b"a checkpoint"}
    kept["pictures/mine.png"] = b"a cat"
    hub.add_repo(REPO, {**dict.fromkeys(old, b"old"), **kept})
    push("--no_packed")
    files = hub.files(REPO)
    check_page(files, tmp_path, has_packed=False)
    assert not any(files.get(path) == b"old" for path in old)
    assert not {"sparse/config.json", "model-00001-of-00002.safetensors"} & files.keys()
    assert {path: files[path] for path in kept} == kept
    assert len(hub.commits(REPO)) == 2


def test_the_card_of_a_person_stays(hub, push, folder):
    hub.add_repo(REPO, {"README.md": b"# Written on the Hub"})
    push()
    assert hub.files(REPO)["README.md"] == b"# Written on the Hub"
    (folder / "README.md").write_text("# Written here")
    push()
    assert hub.files(REPO)["README.md"] == b"# Written here"


@pytest.fixture
def times(folder):
    """Times of the weights in the folder, as `hf-cyclprune bench` keeps them there."""
    bench = replace_fields(BENCH, fingerprint=fingerprint(folder), model=str(folder))
    bench.save(folder)
    (folder / "inference_times.png").write_bytes(b"picture")
    bench.save(folder / "speed")
    return bench


def test_times_are_on_the_card_if_asked_for_and_their_file_stays_behind(
    hub, push, folder, times, tmp_path
):
    push("--bench")
    files = hub.files(REPO)
    check_page(files, tmp_path)
    card = files["README.md"].decode()
    assert "## Speed" in card
    assert f"Measured on the CPU {times.processor} (threads: 2)" in card
    assert f"hf-cyclprune bench {REPO} --batch_size 1" in card
    assert files["pictures/speed.png"].startswith(b"\x89PNG")
    assert "pictures/speed.png" in card
    assert not any("inference_times" in name for name in files), "they name paths of this machine"
    assert hub.find(str(folder)) == []
    push()
    assert "## Speed" not in hub.files(REPO)["README.md"].decode()
    assert "pictures/speed.png" not in hub.files(REPO)


def test_times_that_are_missing_or_of_other_weights_are_one_sentence(hub, push, folder, times):
    command = f"Run `hf-cyclprune bench {folder} --output_dir {folder}` first."
    (folder / "inference_times.json").write_text('{"processor": 1}')
    assert f"or it is damaged: 'timings'. {command}" in push("--bench", succeeds=False)
    (folder / "inference_times.json").unlink()
    assert f"There is no inference_times.json in '{folder}'. {command}" in push(
        "--bench", succeeds=False
    )
    times.save(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 1
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    line = push("--bench", succeeds=False)
    assert f"is about other weights than those there. {command}" in line
    assert hub.requests == []


FAULTS = {
    "the server is down": (lambda hub: hub.stop(), "The Hub cannot be reached"),
    "500 on the weights": (
        lambda hub: hub.fail_next("PUT", "/lfs/", times=None),
        "The Hub rejected the push",
    ),
    "500 on the commit": (
        lambda hub: hub.fail_next("POST", "/commit/", times=None),
        "The Hub rejected the push",
    ),
    "cut in a file": (
        lambda hub: hub.cut_connection("PUT", "/lfs/", 99, "request", times=None),
        "The Hub cannot be reached",
    ),
    "cut in the commit": (
        lambda hub: hub.cut_connection("POST", "/commit/", 99, "request", times=None),
        "The Hub cannot be reached",
    ),
    "500 on the old card": (
        lambda hub: hub.fail_next(None, "/resolve/", times=None),
        "The Hub rejected the push",
    ),
    "cut in the old card": (
        lambda hub: hub.cut_connection("GET", "/resolve/", 9, times=None),
        "The Hub cannot be reached",
    ),
    "a card that is refused": (
        lambda hub: hub.fail_next("POST", "/validate-yaml", 400, times=None),
        "",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_that_fails_is_one_sentence_and_the_next_one_ends_it(fault, hub, push, tmp_path):
    cause, said = FAULTS[fault]
    push("--no_packed")
    before = len(hub.commits(REPO))
    cause(hub)
    line = push(succeeds=False)
    assert said in line
    assert len(hub.commits(REPO)) == before
    hub.clear_faults()
    hub.start()
    push()
    check_page(hub.files(REPO), tmp_path)


def test_a_repository_that_is_not_ones_own_is_left_alone(hub, push, monkeypatch):
    hub.add_repo("stranger/model", {"a.txt": b"a"})
    for repo in ("stranger/model", "nobody/new"):
        line = push(repo=repo, succeeds=False)
        assert f"may not write to '{repo}': the Hub answered 403" in line
    line = push("--revision", "refs/pr/9", succeeds=False)
    assert "'tester/pruned' has no branch with the name that was given as revision" in line
    assert "the Hub answered 404" in line
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert "a token with the right to write" in push(repo="tester/other", succeeds=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "needs a valid token for the Hub: the Hub answered 401" in push(succeeds=False)
    monkeypatch.setenv("HF_TOKEN", STRANGER_TOKEN)
    assert "may not write to 'tester/pruned': the Hub answered 403" in push(succeeds=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "while HF_HUB_OFFLINE is set" in push(succeeds=False)
    assert {*hub.storage.repositories} == {("model", "stranger/model"), ("model", REPO)}
    assert hub.files("stranger/model") == {"a.txt": b"a"}
    assert len(hub.commits(REPO)) == 1


@pytest.mark.parametrize("is_offline", [False, True])
def test_a_missing_token_is_said_first_of_all(hub, push, runs, monkeypatch, is_offline):
    """Before a model is read, and without a network."""
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    hub.stop()
    line = push(source=runs / "dense", succeeds=False)  # a folder that is refused too
    assert "needs a valid token for the Hub: none was found. Run `hf auth login`" in line
    assert hub.requests == []


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def truncate(name):
    return lambda folder: os.truncate(folder / name, 5_000)


def replace(name, old, new):
    return lambda folder: (folder / name).write_text(
        (folder / name).read_text().replace(old, new, 1)
    )


BAD = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "no pruning": (lambda folder: (folder / "pruning_config.json").unlink(), "pruning_config.json"),
    "pruning torn": (write("pruning_config.json", "{"), "pruning_config.json"),
    "record torn": (write("pruning_run.json", '{"step": 1'), "pruning_run.json in"),
    "record empty": (write("pruning_run.json", "{}"), "pruning_run.json in"),
    "record of another kind": (write("pruning_run.json", "[]"), "pruning_run.json in"),
    "report torn": (write("sparsity_report.json", "{"), "sparsity_report.json"),
    "report empty": (write("sparsity_report.json", "{}"), "sparsity_report.json"),
    "weights torn": (truncate("model.safetensors"), "are not those of the model in its config"),
    "config torn": (write("config.json", "{"), "config.json"),
    "another size": (
        replace("config.json", '"hidden_size": 16', '"hidden_size": 32'),
        "are not those of the model in its config",
    ),
    "unknown class": (replace("config.json", '"BertFor', '"NoFor'), "holds one of ['NoForS"),
}


def test_bad_input_is_one_sentence_and_nothing_is_created(hub, push, runs, tmp_path):
    nowhere = tmp_path / "nowhere"
    (tmp_path / "empty").mkdir()
    assert "config.json" in push(source=nowhere, succeeds=False)
    assert "config.json" in push(source=tmp_path / "empty", succeeds=False)
    assert "pruning_config.json" in push(source=runs / "dense", succeeds=False)
    assert main(["pack", str(runs / "pruned"), str(tmp_path / "packed")]) == 0
    assert "which is packed" in push(source=tmp_path / "packed", succeeds=False)
    for repo in ("a/b/c", "", "a b", ".x", "tester/", "x" * 99):
        assert "REPO must be 'user/name'" in push(repo=repo, succeeds=False)
    shutil.copytree(runs / "dense", tmp_path / "other")
    write("all_results.json", '{"eval_loss": 1.0, "eval_samples": 99}')(tmp_path / "other")
    write("all_results.json", '{"eval_loss": 1.0, "sparsity": 0.5}')(tmp_path / "empty")
    for dense, said in (
        (nowhere, "has no all_results.json"),
        (tmp_path / "other", "other data"),
        (tmp_path / "empty", "a sparsity of 50.00%"),
    ):
        assert said in push("--dense_run", dense, succeeds=False)
    for name, (spoil, said) in BAD.items():
        bad = shutil.copytree(runs / "pruned", tmp_path / name)
        spoil(bad)
        assert said in push(source=bad, succeeds=False), name
    assert hub.requests == []


def fails_half_way(path):
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


FULL_DISK = {
    "hub.page.pack_with": lambda *places: fails_half_way(f"{places[-1]}.x"),
    "reporting.report.SparsityReport.save": lambda _, stage: fails_half_way(stage / "half.json"),
    "files.Path.write_text": lambda path, *_, **__: fails_half_way(path),
}


@pytest.mark.parametrize("name", FULL_DISK)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(name, hub, push, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(f"hf_cyclprune.{name}", FULL_DISK[name])
        line = push(succeeds=False)
    assert "no room for the files of the push to 'tester/pruned': No space left" in line
    assert len(hub.commits(REPO)) == 1
    push()
    check_page(hub.files(REPO), tmp_path)


def process(hub, tmp_path, *argv, token=WRITE_TOKEN, **more):
    environment = {**hub.environment(tmp_path / "home", token), "OMP_NUM_THREADS": "1", **more}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *argv]
    # In the background of a shell Ctrl-C is ignored, by the children too.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_ctrl_c_in_an_upload_is_one_sentence(folder, tmp_path):
    """The client waits for the large files that are on their way; then there is no commit."""
    before = snapshot(folder)
    with HubServer(lfs_threshold=30_000) as hub:
        hub.slow(2, "PUT", "/lfs/")
        argv = ("-m", "hf_cyclprune.cli", "push", str(folder), REPO, "--no_packed")
        child = process(hub, tmp_path, *argv)
        try:
            end = time.monotonic() + 60
            while not any(r.path.startswith("/lfs/") for r in hub.requests):
                assert child.poll() is None, child.communicate()
                assert time.monotonic() < end
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()
            child.wait()
        assert len(hub.commits(REPO)) == 1
    assert child.returncode == 1
    assert out == ""
    (line,) = err.strip().splitlines()[-1:]
    assert line.startswith("hf-cyclprune: error: The push to 'tester/pruned'")
    assert "was interrupted" in line
    assert "Traceback" not in err
    assert snapshot(folder) == before


STRANGER = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from safetensors.torch import load_file
import torch

want = load_file(sys.argv[1] + "/model.safetensors")

def check(model):
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in want.items())
    assert state.keys() == want.keys()

check(AutoModelForSequenceClassification.from_pretrained("tester/pruned"))
assert "hf_cyclprune" not in sys.modules
import hf_cyclprune
for options in ({}, {"subfolder": "sparse"}):
    check(AutoModelForSequenceClassification.from_pretrained("tester/pruned", **options))
    tokenizer = AutoTokenizer.from_pretrained("tester/pruned", **options)
    assert tokenizer("a cat")["input_ids"] == [2, *tokenizer.convert_tokens_to_ids(["a", "cat"]), 3]
"""


def test_a_stranger_loads_the_same_weights_with_and_without_this_library(
    hub, push, folder, tmp_path
):
    push()
    child = process(hub, tmp_path, "-c", STRANGER, str(folder), token=None)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err[-3000:]


GLUE = """
import json, os, shutil, sys
from pathlib import Path
from hf_cyclprune.packing.verification import verify
from hf_cyclprune.cli import main

token, cycles = sys.argv[1], ["--sparsity", "0.8", "--num_cycles", "2"]
common = ["--task_name", "rte", "--model_name_or_path", "google-bert/bert-base-uncased",
          "--max_seq_length", "32", "--do_train", "--do_eval", "--max_steps", "6",
          "--save_steps", "3", "--per_device_train_batch_size", "4", "--use_cpu",
          "--report_to", "tensorboard", "--push_to_hub"]
values = {"hub_token": token, "output_dir": "file", "hub_model_id": "lab/file"}
Path("file.json").write_text(json.dumps(values))
runs = {
    "flag": [*cycles, "--hub_token", token],
    "joined": [*cycles, "--hub-token=" + token],
    "file": cycles,
    "variable": [*cycles, "--dense_run", "dense"],
}
for name in ("dense", *runs):
    if name in ("dense", "variable"):
        os.environ["HF_TOKEN"] = token
    else:
        os.environ.pop("HF_TOKEN", None)
    place = ["file.json"] if name == "file" else []
    place += ["--output_dir", name, "--hub_model_id", "lab/" + name]
    # What the process was called with is what its card tells.
    sys.argv = ["hf-cyclprune", "glue", *place, *common, *runs.get(name, [])]
    assert main(sys.argv[1:]) == 0, name
os.remove("file.json")
for flag in ("--hub_tok=" + token, "--hubtoken=" + token):
    assert main(["glue", *common, "--output_dir", "not", flag]) == 1
try:
    main(["push", "flag", "lab/not", "--token", token])
except SystemExit as stop:
    assert stop.code == 2
"""


def test_a_run_of_glue_pushes_itself_and_keeps_its_token_for_itself(tmp_path):
    pytest.importorskip("datasets", reason="the extra glue is not installed")
    with HubServer(lfs_threshold=30_000) as hub:
        add_tiny_bert(hub)
        add_tiny_glue(hub, 8)
        child = process(hub, tmp_path, "-c", GLUE, WRITE_TOKEN, token=None)
        out, err = child.communicate(timeout=240)
        assert child.returncode == 0, err[-3000:]
        assert WRITE_TOKEN not in out + err
        assert hub.find(WRITE_TOKEN) == []
        for name in ("flag", "joined", "file", "variable"):
            files = hub.files(f"lab/{name}")
            assert check_page(files, tmp_path) == pytest.approx(0.8, abs=1e-3)
            card = files["README.md"].decode()
            assert ("<token>" in card) == (name in ("flag", "joined"))
            assert ("| metric | dense | pruned |" in card) == (name == "variable")
            accuracy = json.loads(files["all_results.json"])["eval_accuracy"]
            assert f"{accuracy:.4f}" in card
            assert any(path.startswith("runs/") for path in files)
        assert "pruning_config.json" not in hub.files("lab/dense")
    shutil.rmtree(tmp_path / "home")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert [path for path in files if WRITE_TOKEN.encode() in path.read_bytes()] == []
