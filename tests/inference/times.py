"""Times to test with."""

from hf_cyclprune.inference.timings import Bench, Timing

DENSE, SPARSE = Timing("dense", 8.0, 7.5, 9.0, 438.0), Timing("sparse", 2.0, 1.5, 2.5, 142.0)
BENCH = Bench(
    model="out",
    processor="Some CPU",
    num_threads=2,
    batch_size=1,
    seq_length=128,
    layers="72 Linear layers are sparse now, 2 stayed dense.",
    timings=[DENSE, SPARSE],
    missing={"OpenVINO": "it is not installed"},
    versions={"hf_cyclprune": "0.1.0", "torch": "2.13.0"},
    fingerprint=12,
)
