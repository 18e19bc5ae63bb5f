"""The Hub of the tests, as the real clients see it."""

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hf_cyclprune.glue.tasks import TASKS
from tests.hub.repos import add_tiny_bert, add_tiny_glue, write_tiny_glue
from tests.hub.server import READ_TOKEN, STRANGER_TOKEN, WRITE_TOKEN, HubServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def client(tmp_path):
    """Runs Python code in a process of its own and returns what it printed last, as JSON."""

    def run(hub, code, token=WRITE_TOKEN, **environment):
        command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)]
        options = {"capture_output": True, "text": True, "check": False, "timeout": 120}
        environment = hub.environment(tmp_path, token, **environment)
        done = subprocess.run(command, cwd=tmp_path, env=environment, **options)
        assert done.returncode == 0, done.stderr
        assert "malformed" not in done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


PREAMBLE = """
import json
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

api = HfApi()

def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, response.status_code if response is not None else None]
    return ["nothing", 200]
"""

ROUND_TRIP = """
folder = Path("folder")
(folder / "sub").mkdir(parents=True)
(folder / "README.md").write_text("---\\ntags: [pruned]\\nlicense: apache-2.0\\n---\\nA card.")
(folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
(folder / "sub" / "a file.txt").write_text("some text")
(folder / "empty.txt").touch()
url = api.create_repo("lab/pruned", private=True)
again = api.create_repo("lab/pruned", exist_ok=True)
first = api.upload_folder(repo_id="lab/pruned", folder_path=folder, commit_message="Upload")
second = api.upload_folder(repo_id="lab/pruned", folder_path=folder, commit_message="Again")
api.create_branch("lab/pruned", branch="side")
api.create_tag("lab/pruned", tag="v1")
api.delete_file("empty.txt", "lab/pruned")
api.upload_file(path_or_fileobj=b"more", path_in_repo="sub/b.txt", repo_id="lab/pruned")
snapshot = Path(snapshot_download("lab/pruned", revision="v1"))
info = api.model_info("lab/pruned", files_metadata=True)
refs = api.list_repo_refs("lab/pruned")
entries = api.list_repo_tree("lab/pruned", recursive=True, expand=True)
print(json.dumps({
    "urls": [url, again],
    "same": first.oid == second.oid == refs.tags[0].target_commit,
    "files": {p: (snapshot / p).read_bytes() == (folder / p).read_bytes()
              for p in api.list_repo_files("lab/pruned", revision="side") if p[0] != "."},
    "titles": [commit.title for commit in api.list_repo_commits("lab/pruned")],
    "sha": info.sha,
    "tags": info.tags,
    "sizes": {s.rfilename: s.size for s in info.siblings},
    "branches": [branch.name for branch in refs.branches],
    "tree": {entry.path: entry.last_commit.title for entry in entries},
    "paths": [p.path for p in api.get_paths_info("lab/pruned", ["sub", "sub/b.txt", "none"])],
    "name": api.whoami()["name"],
    "private": info.private,
    "public": error_of(api.update_repo_settings, "lab/pruned", private=False),
}))
"""


@pytest.mark.parametrize("lfs_threshold", [None, 5000])
def test_a_folder_goes_up_and_comes_down_as_it_was(lfs_threshold, client):
    with HubServer(lfs_threshold=lfs_threshold) as hub:
        seen = client(hub, ROUND_TRIP)
        assert seen["urls"] == [f"{hub.url}/lab/pruned"] * 2
        assert seen["same"]
        assert seen["files"] == dict.fromkeys(
            ["README.md", "empty.txt", "model.safetensors", "sub/a file.txt"], True
        )
        assert seen["titles"][-2:] == ["Upload", "initial commit"]
        assert len(seen["titles"]) == 4
        assert seen["sha"] == hub.commits("lab/pruned")[0].oid
        assert seen["tags"] == ["pruned", "license:apache-2.0"]
        assert seen["sizes"]["model.safetensors"] == 256 * 64
        assert seen["branches"] == ["main", "side"]
        assert seen["tree"]["sub"] == seen["tree"]["sub/b.txt"] == seen["titles"][0]
        assert seen["tree"]["sub/a file.txt"] == "Upload"
        assert seen["paths"] == ["sub", "sub/b.txt"]
        assert seen["name"] == "tester"
        assert (seen["private"], seen["public"]) == (True, ["nothing", 200])
        assert not hub.is_private("lab/pruned")
        assert "empty.txt" not in hub.files("lab/pruned")
        assert "empty.txt" in hub.files("lab/pruned", "side")
        assert hub.files("lab/pruned")["sub/b.txt"] == b"more"
        large = [request for request in hub.requests if request.path.startswith("/lfs/")]
        assert len(large) == (0 if lfs_threshold is None else 1)
        assert not any(r.has_token for r in hub.requests if r.path.startswith("/cdn/"))
        assert hub.find(WRITE_TOKEN) == []
        assert any("/commit/main" in place for place in hub.find("some text"))


def test_what_is_missing_or_forbidden_is_the_clients_exception(hub, client):
    hub.add_repo("lab/secret", {"config.json": b"{}"}, private=True)
    hub.add_repo("lab/open", {"config.json": b"{}"})
    hub.add_repo("other/gated", {"config.json": b"{}"}, gated=True)
    hub.add_alias("open", "lab/open")
    code = """
    write, read, stranger = TOKENS
    def upload(repo_id, token):
        file = {"path_or_fileobj": b"x", "path_in_repo": "x"}
        return error_of(api.upload_file, **file, repo_id=repo_id, token=token)
    print(json.dumps({
        "no repo": error_of(api.model_info, "lab/none"),
        "private": error_of(api.model_info, "lab/secret", token=False),
        "stranger": error_of(api.model_info, "lab/secret", token=stranger),
        "member": error_of(api.model_info, "lab/secret", token=read),
        "no file": error_of(hf_hub_download, "lab/open", "none.json"),
        "no revision": error_of(hf_hub_download, "lab/open", "config.json", revision="none"),
        "gated": error_of(hf_hub_download, "other/gated", "config.json"),
        "bad token": error_of(api.whoami, token="hf_unknown"),
        "bad card": error_of(
            api.upload_file, path_or_fileobj=b"---\\na: [\\n---", path_in_repo="README.md",
            repo_id="lab/open",
        ),
        "old name": error_of(hf_hub_download, "open", "config.json", token=False),
        "exists": error_of(api.create_repo, "lab/open"),
        "foreign": error_of(api.create_repo, "other/mine"),
        "upload, read-only": upload("lab/open", read),
        "upload, stranger": upload("lab/open", stranger),
        "upload, nobody": upload("lab/open", False),
        "upload": upload("lab/open", write),
        "delete": error_of(api.delete_repo, "lab/open"),
        "deleted": error_of(api.delete_repo, "lab/open"),
    }))
    """
    tokens = (WRITE_TOKEN, READ_TOKEN, STRANGER_TOKEN)
    seen = client(hub, code.replace("TOKENS", repr(tokens)))
    assert seen == {
        "no repo": ["RepositoryNotFoundError", 404],
        "private": ["RepositoryNotFoundError", 401],
        "stranger": ["RepositoryNotFoundError", 404],
        "member": ["nothing", 200],
        "no file": ["RemoteEntryNotFoundError", 404],
        "no revision": ["RevisionNotFoundError", 404],
        "gated": ["GatedRepoError", 403],
        "bad token": ["HfHubHTTPError", 401],
        "bad card": ["ValueError", None],
        "old name": ["nothing", 200],
        "exists": ["HfHubHTTPError", 409],
        "foreign": ["HfHubHTTPError", 403],
        "upload, read-only": ["HfHubHTTPError", 403],
        "upload, stranger": ["HfHubHTTPError", 403],
        "upload, nobody": ["RepositoryNotFoundError", 401],
        "upload": ["nothing", 200],
        "delete": ["nothing", 200],
        "deleted": ["RepositoryNotFoundError", 404],
    }


BROKEN = ("RemoteProtocolError", "ReadError", "WriteError")


def test_faults_reach_the_client(hub, client):
    content = bytes(range(256)) * 400
    hub.add_repo("lab/model", {"weights.bin": content, "config.json": b"{}"})
    hub.fail_next("GET", "/api/models/lab/model", status=500)
    hub.fail_next("POST", "/preupload/", status=503)
    hub.cut_connection("POST", "/commit/", after=40, during="request")
    hub.cut_connection("POST", "/commit/", after=5, during="response")
    hub.cut_connection("GET", "/resolve/main/weights.bin", after=70_000)
    hub.slow(0.5, "GET", "/refs", times=1)
    code = """
    import time
    from huggingface_hub import constants
    constants.DOWNLOAD_CHUNK_SIZE = 1000  # What is lost of a download that is cut.
    failed = error_of(api.model_info, "lab/model")
    file = {"path_or_fileobj": b"x" * 99, "path_in_repo": "x", "repo_id": "lab/model"}
    begin = time.monotonic()
    cut = error_of(api.upload_file, **file)
    lost = error_of(api.upload_file, **file)
    api.list_repo_refs("lab/model")
    waited = time.monotonic() - begin
    path = Path(hf_hub_download("lab/model", "weights.bin"))
    print(json.dumps([failed, cut, lost, waited, path.read_bytes() == bytes(range(256)) * 400]))
    """
    failed, cut, lost, waited, is_whole = client(hub, code)
    assert failed == ["HfHubHTTPError", 500]
    assert cut[0] in BROKEN
    assert lost[0] in BROKEN
    assert len(hub.commits("lab/model")) == 2, "the first upload did nothing, the second all"
    assert waited > 1.5, "a second before the second preupload, and the slow answer"
    assert is_whole
    gets = [r for r in hub.requests if r.method == "GET" and "weights.bin" in r.path]
    assert [r.header("Range") for r in gets] == [None, "bytes=70000-"]
    commits = [r for r in hub.requests if "/commit/" in r.path]
    assert len(commits[0].body) == 40 < len(commits[1].body)


def test_a_server_that_is_down_comes_back_with_everything(hub, client):
    hub.add_repo("lab/model", {"config.json": b"{}"})
    url = hub.url
    code = 'print(json.dumps(error_of(api.model_info, "lab/model")))'
    hub.stop()
    assert client(hub, code) == ["ConnectError", None]
    hub.start()
    assert hub.url == url
    assert client(hub, code) == ["nothing", 200]


def test_a_client_that_dies_in_the_middle_of_an_upload_changes_nothing(hub):
    hub.add_repo("lab/model", {"config.json": b"{}"})
    address = ("127.0.0.1", int(hub.url.rpartition(":")[2]))
    with socket.create_connection(address) as connection:
        head = b"POST /api/models/lab/model/commit/main HTTP/1.1\r\nContent-Length: 500\r\n\r\n"
        connection.sendall(head + b'{"key": "header"')
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert len(hub.commits("lab/model")) == 1
    assert hub.crashes == []


def test_an_error_of_the_server_itself_is_raised():
    hub = HubServer()

    def leave():
        with hub:
            hub.crashes.append("Traceback")

    with pytest.raises(RuntimeError, match="Traceback"):
        leave()


def test_a_request_body_may_come_in_chunks(hub, client):
    code = """
    from huggingface_hub.utils import get_session
    lines = (line.encode() for line in ('{"content": "no metadata"', ', "repoType": "model"}'))
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", content=lines)
    print(json.dumps([response.status_code, response.json()["errors"]]))
    """
    assert client(hub, code) == [200, []]
    (request,) = [r for r in hub.requests if r.path == "/api/validate-yaml"]
    assert request.header("Transfer-Encoding") == "chunked"
    assert request.body == b'{"content": "no metadata", "repoType": "model"}'


def test_the_tiny_bert_and_glue_load_from_the_hub_and_from_a_folder(client, tmp_path):
    pytest.importorskip("datasets", reason="the extra glue is not installed")
    write_tiny_glue(tmp_path / "glue")
    code = """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    load = AutoModelForSequenceClassification.from_pretrained
    model, loaded = load("google-bert/bert-base-uncased", num_labels=3, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
    ids = tokenizer("The happy cat sees a zebra.", return_tensors="pt")
    model.push_to_hub("classifier", private=True)
    tokenizer.push_to_hub("classifier")
    load("tester/classifier")
    from datasets import load_dataset
    from hf_cyclprune.glue.data import load_task
    from hf_cyclprune.glue.tasks import TASKS
    tasks = {}
    for name in TASKS:
        splits = load_dataset("nyu-mll/glue", name)
        kinds = ("train", "validation", "test")
        local, remote = load_task(TASKS[name], kinds, "glue"), load_task(TASKS[name], kinds)
        tasks[name] = {
            "splits": {split: data["label"][:] for split, data in splits.items()},
            "columns": splits["train"].column_names,
            "labels": getattr(splits["train"].features["label"], "names", None),
            "same": all(list(local[s]) == list(remote[s]) for s in splits),
        }
    print(json.dumps({
        "missing": sorted(loaded["missing_keys"]),
        "shape": list(model(**ids).logits.shape),
        "tokens": tokenizer.tokenize("The happy cat sees a zebra."),
        "tasks": tasks,
    }))
    """
    with HubServer(lfs_threshold=5000) as hub:
        add_tiny_bert(hub)
        add_tiny_glue(hub)
        hub.add_alias("bert-base-uncased", "google-bert/bert-base-uncased")
        seen = client(hub, code, PYTHONPATH=str(ROOT))
        assert {"model.safetensors", "tokenizer.json"} <= set(hub.files("tester/classifier"))
    assert seen["missing"] == ["classifier.bias", "classifier.weight"]
    assert seen["shape"] == [1, 3]
    assert seen["tokens"][:6] == ["the", "happy", "cat", "sees", "a", "z"]
    assert "[UNK]" not in seen["tokens"]
    for name, task in TASKS.items():
        found = seen["tasks"][name]
        splits = found["splits"]
        assert set(splits) == {"train", *task.validation_splits, *task.test_splits}
        num_labels = 6 if task.is_regression else len(task.labels)
        assert splits["train"] == [row % num_labels for row in range(8)]
        assert all(set(splits[split]) == {-1} for split in task.test_splits)
        assert found["columns"] == [*task.columns, "label", "idx"]
        assert found["labels"] == (None if task.is_regression else list(task.labels))
        assert found["same"], name
