"""inference_times.json keeps what was measured, and a damaged one is never believed."""

import json
from dataclasses import replace

import pytest

from hf_cyclprune.inference.timings import load_bench
from tests.inference.times import BENCH, DENSE, SPARSE


def test_what_is_saved_is_loaded(tmp_path):
    assert BENCH.save(tmp_path / "new") == tmp_path / "new" / "inference_times.json"
    assert load_bench(tmp_path / "new") == BENCH


def test_speed_is_told_in_times_of_the_dense_model():
    lines = str(BENCH).splitlines()
    assert lines[0] == "out on Some CPU, threads: 2, batch: 1 x 128 tokens"
    assert lines[-2].split() == ["sparse", "2.00", "1.50", "to", "2.50", "142", "4.00"]
    assert lines[-1].split() == ["OpenVINO", "no", "time:", "it", "is", "not", "installed"]


def test_a_missing_file_says_which_command_writes_it(tmp_path):
    place = tmp_path / "a b"
    place.mkdir()
    with pytest.raises(FileNotFoundError) as raised:
        load_bench(place)
    assert str(raised.value) == (
        f"There is no inference_times.json in '{place}'. Run `hf-cyclprune bench '{place}' "
        f"--output_dir '{place}'` first."
    )


DAMAGE = {
    "processor": ["", " ", None, 3],
    "num_threads": [0, True, 1.0, "1"],
    "fingerprint": [None, "12"],
    "timings": [[], None, {}, ["dense"], [{"name": "dense"}]],
    "missing": [None, [], {"x": 1}],
    "versions": ["2.13", {"torch": None}],
}
TIMES = {
    "name": ["", 1, None],
    "median": [0, -1, float("nan"), float("inf"), "8", None, True, 7.4],
    "high": [7.9, None],
    "megabytes": ["438", 0],
}


@pytest.mark.parametrize(
    "values",
    [
        *({**BENCH.to_dict(), name: value} for name, found in DAMAGE.items() for value in found),
        *(
            {**BENCH.to_dict(), "timings": [{**vars(DENSE), name: value}]}
            for name, found in TIMES.items()
            for value in found
        ),
        {**BENCH.to_dict(), "timings": [vars(SPARSE), vars(DENSE)]},  # speeds are against the first
        {**BENCH.to_dict(), "timings": [vars(DENSE), vars(SPARSE), vars(SPARSE)]},
        {name: value for name, value in BENCH.to_dict().items() if name != "seq_length"},
        {**BENCH.to_dict(), "another": 1},
        {},
    ],
)
def test_damage_is_one_sentence_with_the_remedy(values, tmp_path):
    (tmp_path / "inference_times.json").write_text(json.dumps(values))
    with pytest.raises(
        ValueError, match=r"^inference_times\.json in '.*' is not one .* Run `hf-cyclprune"
    ):
        load_bench(tmp_path)


def test_an_unknown_size_is_no_damage(tmp_path):
    bench = replace(BENCH, timings=[DENSE, replace(SPARSE, megabytes=None)])
    bench.save(tmp_path)
    assert load_bench(tmp_path) == bench
