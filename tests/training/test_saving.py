import pytest
import transformers

from hf_cyclprune.training import saving
from hf_cyclprune.training.saving import find_weights, saved_whole


@pytest.fixture
def folder(tiny_bert, tmp_path):
    tiny_bert(0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def bias(folder):
    return transformers.AutoModel.from_pretrained(folder).embeddings.LayerNorm.bias[0].item()


def save(model, folder, **options):
    with saved_whole(folder) as new:
        model.save_pretrained(new, **options)


def test_a_new_model_takes_the_place_of_the_old_one(folder, tiny_bert):
    other = tiny_bert(1)
    other.bert.embeddings.LayerNorm.bias.data.fill_(7.0)
    save(other, folder)
    assert bias(folder) == 7.0
    save(other, folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert bias(folder) == 7.0
    save(other, folder)
    assert sorted(path.name for path in folder.glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_whenever_it_is_killed_there_is_a_whole_model(is_sharded, folder, tiny_bert, monkeypatch):
    """The new model is one file, or several shards."""
    other = tiny_bert(1)
    other.bert.embeddings.LayerNorm.bias.data.fill_(7.0)
    options = {"max_shard_size": "20KB"} if is_sharded else {}
    move, seen = saving.os.replace, []
    for last in range(20):
        left = iter(range(last))

        def killed(*args, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            move(*args)

        monkeypatch.setattr(saving.os, "replace", killed)
        try:
            save(other, folder, **options)
        except KeyboardInterrupt:
            seen.append(bias(folder))
        else:
            break
    assert find_weights(folder)
    assert set(seen) <= {0.0, 7.0}
    assert len(seen) >= 2
    assert bias(folder) == 7.0


def test_what_fails_changes_nothing_and_leaves_nothing(folder, tiny_bert):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = tiny_bert(1)

    def half(place):
        (place / "model.safetensors").write_bytes(b"half of")
        raise OSError("full")

    model.save_pretrained = half
    with pytest.raises(OSError, match="full"):
        save(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "_saving-of-one-that-was-killed").mkdir()
    save(tiny_bert(1), folder)
    assert not list(folder.glob("_*"))
