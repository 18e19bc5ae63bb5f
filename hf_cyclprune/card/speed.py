"""What a card says of the times that were measured of its weights."""

import shlex

from hf_cyclprune.card.card import Card
from hf_cyclprune.card.text import known_texts
from hf_cyclprune.inference.timings import Bench, Timing
from hf_cyclprune.reporting.rows import Rows


def describe_speed(card: Card) -> dict[str, object]:
    """Return what the template needs; the section is left out where nothing was measured."""
    bench = card.bench
    if bench is None:
        return {"speed": [], "speed_names": set(), "bench_versions": {}}
    names = {timing.name for timing in bench.timings}
    size = f"--batch_size {bench.batch_size} --seq_length {bench.seq_length}"
    place = shlex.quote(card.place)
    return {
        "speed": _rows(bench),
        "speed_names": names,
        "has_sparse": "sparse" in names,
        "has_int8": any("int8" in name for name in names),
        "bench_versions": known_texts(bench.versions),
        "bench_command": f"hf-cyclprune bench {place} {size} --threads {bench.num_threads}",
    }


def _rows(bench: Bench) -> Rows:
    return [_row(bench, timing) for timing in bench.timings]


def _row(bench: Bench, timing: Timing) -> dict[str, str | None]:
    size = timing.megabytes
    return {
        "runtime": timing.name,
        "median ms": f"{timing.median:,.2f}",
        "quartiles": f"{timing.low:,.2f} to {timing.high:,.2f}",
        "MB of weights": None if size is None else f"{size:,.1f}",
        "times as fast as dense": f"{bench.speed_of(timing):,.2f}",
    }
