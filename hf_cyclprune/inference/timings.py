"""What was measured of a model's speed, and the file inference_times.json that keeps it."""

import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_cyclprune.checks import reason_of
from hf_cyclprune.files import BENCH_NAME, read_json, write_json


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one batch: the median, and the quartiles around it."""

    name: str
    median: float
    low: float
    high: float
    megabytes: float | None
    """Of weights in memory, where that is known."""


@dataclass(frozen=True)
class Bench:
    """What was measured, and where."""

    model: str
    processor: str
    num_threads: int
    batch_size: int
    seq_length: int
    layers: str
    """What `accelerate_` says of the layers."""
    timings: list[Timing]
    """The first one is of the dense model."""
    missing: dict[str, str]
    """Runtime -> why it has no time."""
    versions: dict[str, str]
    """Of hf_cyclprune, torch and the runtimes that are installed."""
    fingerprint: int
    """Checksum of the weights that were timed."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON would hold it."""
        return asdict(self)

    def save(self, folder: str | Path) -> Path:
        """Write inference_times.json into `folder`; return its path."""
        return write_json(Path(folder) / BENCH_NAME, self.to_dict())

    def speed_of(self, timing: Timing) -> float:
        """Return how many times as fast as the dense model a timing is."""
        return self.timings[0].median / timing.median

    def __str__(self) -> str:
        head = (
            f"{self.model} on {self.processor}, threads: {self.num_threads}, batch: "
            f"{self.batch_size} x {self.seq_length} tokens\n{self.layers}\n\n"
            f"{'':18} {'ms':>8} {'quartiles':>17} {'MB':>7} {'speed':>6}"
        )
        rows = [
            f"{t.name:18} {t.median:8.2f} {f'{t.low:.2f} to {t.high:.2f}':>17} "
            f"{'' if t.megabytes is None else f'{t.megabytes:.0f}':>7} {self.speed_of(t):6.2f}"
            for t in self.timings
        ]
        gaps = [f"{name:18} no time: {reason}" for name, reason in self.missing.items()]
        return "\n".join([head, *rows, *gaps])


def load_bench(folder: str | Path) -> Bench:
    """Return what inference_times.json in `folder` holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged.
    """
    remedy = bench_remedy(folder)
    values = read_json(Path(folder) / BENCH_NAME, remedy)
    try:
        bench = Bench(**{**values, "timings": [Timing(**timing) for timing in values["timings"]]})
        fault = _find_fault(bench)
    except (KeyError, TypeError, AttributeError) as error:
        fault = reason_of(error)
    if fault is not None:
        raise ValueError(
            f"{BENCH_NAME} in '{folder}' is not one that hf_cyclprune wrote, or it is damaged: "
            f"{fault}. {remedy}"
        )
    return bench


def bench_remedy(folder: str | Path) -> str:
    """Return the sentence with the command that times the model in `folder`."""
    place = shlex.quote(str(folder))
    return f"Run `hf-cyclprune bench {place} --output_dir {place}` first."


def _find_fault(bench: Bench) -> str | None:
    """Return what is wrong with values from a file."""
    texts: list[object] = [bench.model, bench.processor, bench.layers]
    texts += [timing.name for timing in bench.timings]
    texts += [text for named in (bench.missing, bench.versions) for text in sum(named.items(), ())]
    counts = [bench.num_threads, bench.batch_size, bench.seq_length]
    spreads = [(timing.low, timing.median, timing.high) for timing in bench.timings]
    sizes = [timing.megabytes for timing in bench.timings if timing.megabytes is not None]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "a name is empty, or not a text"
    if not all(type(value) is int for value in (*counts, bench.fingerprint)) or min(counts) < 1:
        return "a count is not a positive integer"
    if not spreads or not all(map(_is_positive, [*sum(spreads, ()), *sizes])):
        return "a time or a size is missing, or not a positive number"
    names = [timing.name for timing in bench.timings]
    if names[0] != "dense" or len(set(names)) < len(names):
        return "the first time is not that of the dense model, or a name is there twice"
    if any(sorted(spread) != list(spread) for spread in spreads):
        return "a median does not lie between its quartiles"
    return None


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]
