"""Memory of packing, unpacking, loading and accelerating a model of 1 GB: its peak, and at the end.

    python examples/packed_memory.py [--num_layers 18]

Each step runs in a process of its own that samples its anonymous memory (RssAnon in
/proc/self/status: Linux) every 2 ms; pages of mapped files, which the system can drop, are not
counted. The model is randomly initialised, pruned to 90 %.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STEPS = {
    "import only": "pass",
    "pack": "hf_cyclprune.pack(folder + '/dense', folder + '/packed')",
    "unpack": "hf_cyclprune.unpack(folder + '/packed', folder + '/again')",
    "from_pretrained, packed": "model = AutoModel.from_pretrained(folder + '/packed')",
    "load_packed": "model = hf_cyclprune.load_packed(folder + '/packed')",
    "the same, accelerate_": "model = AutoModel.from_pretrained(folder + '/packed')\n"
    "accelerate_(model, measure=False)",
    "from_pretrained, dense": "model = AutoModel.from_pretrained(folder + '/dense')\n"
    "for p in model.parameters(): p.data = p.data.clone()",
}


def make(folder: str, num_layers: int) -> None:
    import torch
    from transformers import BertConfig, BertModel

    from hf_cyclprune import PruningConfig, prune_

    torch.manual_seed(0)
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    model = BertModel(BertConfig(num_hidden_layers=num_layers, **shape))
    prune_(model, PruningConfig(sparsity=0.9))
    model.save_pretrained(folder + "/dense")


def run(code: str, folder: str) -> None:
    from transformers import AutoModel
    from transformers.utils import logging

    import hf_cyclprune
    from hf_cyclprune.inference import accelerate_

    logging.disable_progress_bar()
    peak, is_done = [0], threading.Event()

    def measure() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("RssAnon")]
        return int(line.split()[1])

    def sample() -> None:
        while not is_done.is_set():
            peak[0] = max(peak[0], measure())
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    known = {"AutoModel": AutoModel, "hf_cyclprune": hf_cyclprune, "accelerate_": accelerate_}
    kept = known | {"folder": folder}
    exec(code, kept)  # which then holds the model
    is_done.set()
    sampler.join()
    print(f"{peak[0] / 1e6:.2f} {measure() / 1e6:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_layers", type=int, default=18)
    parser.add_argument("--step")
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.step:
        run(STEPS[options.step], options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(folder, options.num_layers)
        for name in ("dense", "packed"):
            if name == "packed":
                print(f"{'':<26}GB of anonymous memory, peak and end")
                for step in STEPS:
                    argv = [sys.executable, __file__, "--step", step, "--folder", folder]
                    done = subprocess.run(argv, capture_output=True, text=True, check=True)
                    print(f"{step:<26}{done.stdout.strip().splitlines()[-1]}", flush=True)
            files = Path(folder, name).glob("*.safetensors")
            print(f"{name}: {sum(file.stat().st_size for file in files) / 1e9:.3f} GB", flush=True)


if __name__ == "__main__":
    main()
