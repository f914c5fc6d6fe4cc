import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from oct_hf import Preprocessing
from oct_hf.data import stream
from oct_hf.data.encoded import Encoded
from oct_hf.data.oct import builder_of, prepare
from oct_hf.data.pixels import Pixels
from oct_hf.data.prepared import write_prepared
from oct_hf.data.stream import StreamedPixels
from oct_hf.data.transforms import Augmentation
from oct_hf.errors import DataError
from oct_hf.training.trainer import collate

SIZE = Preprocessing(32, 32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """320 phantoms in several shards, class after class, so that only shuffling mixes them."""
    out = tmp_path_factory.mktemp("shards")
    builder = builder_of("phantom", patients=40, scans=2, height=64, width=64)
    write_prepared(builder, str(out), 1, shard_bytes=330_000)
    assert len(list(out.rglob("*.parquet"))) == 4
    return out


@pytest.fixture(scope="module")
def index(shards):
    return prepare("parquet", shards, stream=True)[0]


def epoch_of(data: StreamedPixels, epoch: int, workers: int, batch_size: int) -> list[tuple[bytes, int]]:
    """Pictures and labels in the order in which batches bring them."""
    data.set_epoch(epoch)
    batches = list(DataLoader(data, batch_size=batch_size, num_workers=workers, collate_fn=collate))
    assert len(batches) == -(-len(data) // batch_size)
    assert all(len(batch["labels"]) == batch_size for batch in batches[:-1])
    return [(x.numpy().tobytes(), int(y)) for b in batches for x, y in zip(b["pixel_values"], b["labels"], strict=True)]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("batch_size", [7, 32])
def test_an_epoch_gives_each_picture_once_with_its_label(index, workers, batch_size):
    some = np.flatnonzero(np.arange(len(index)) % 3 != 1)
    rows = index.select(np.random.default_rng(1).permutation(some))  # a split's rows may be in any order
    data = StreamedPixels(rows, SIZE, seed=3, batch_size=batch_size)
    plain = Pixels.from_dataset(rows, SIZE)
    expected = sorted((plain[n]["pixel_values"].tobytes(), int(plain[n]["labels"])) for n in range(len(plain)))
    seen = epoch_of(data, 1, workers, batch_size)
    assert sorted(seen) == expected and seen != expected


def test_epochs_differ_and_repeat_exactly(index):
    data, again = (StreamedPixels(index, SIZE, Augmentation("light", 1), 5, 8) for _ in range(2))
    first = epoch_of(data, 0, 0, 8)
    assert epoch_of(again, 0, 0, 8) == first
    assert [label for _, label in epoch_of(data, 1, 0, 8)] != [label for _, label in first]
    other = StreamedPixels(index, SIZE, Augmentation("light", 1), 6, 8)
    assert [label for _, label in epoch_of(other, 0, 0, 8)] != [label for _, label in first]


def test_worker_processes_that_stay_follow_the_epoch(index):
    data = StreamedPixels(index, SIZE, seed=1, batch_size=16)
    loader = DataLoader(data, 16, num_workers=2, persistent_workers=True, collate_fn=collate)
    orders = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        orders.append(torch.cat([batch["labels"] for batch in loader]).tolist())
    assert orders[0] == orders[2] != orders[1]


def test_an_image_is_augmented_as_it_is_without_streaming(index):
    augmentation = Augmentation("strong", 2)
    plain = Pixels.from_dataset(index, SIZE, augmentation)
    expected = sorted(plain[3, n]["pixel_values"].tobytes() for n in range(len(plain)))
    data = StreamedPixels(index, SIZE, augmentation, 0, 10)
    assert sorted(picture for picture, _ in epoch_of(data, 3, 0, 10)) == expected


def test_batches_mix_what_lies_beside_each_other(tmp_path, monkeypatch):
    """Class after class in the shards, and a buffer of a tenth: still no batch is of one class."""
    for label, value in (("A", 30), ("B", 220)):
        for number in range(600):
            place = tmp_path / "files" / label / f"P{number}"
            place.mkdir(parents=True)
            picture = np.full((16, 16), value, np.uint8)
            picture[0, :2] = divmod(number, 256)
            Image.fromarray(picture).save(place / "0.png")
    write_prepared(builder_of("folder", tmp_path / "files"), str(tmp_path / "out"), 1, shard_bytes=8_000)
    monkeypatch.setattr(stream, "_BUFFER", 240)
    data = StreamedPixels(prepare("parquet", tmp_path / "out", stream=True)[0], Preprocessing(16, 16), batch_size=32)
    labels = np.array([label for _, label in epoch_of(data, 0, 0, 32)][:1_184]).reshape(-1, 32)
    assert labels.mean(1).min() > 0 and labels.mean(1).max() < 1 and abs(labels[:19].mean() - 0.5) < 0.15


def test_shards_that_change_under_way_are_noticed(tmp_path):
    builder = builder_of("phantom", patients=3, scans=2, height=64, width=64)
    write_prepared(builder, str(tmp_path / "a"), 1)
    index = prepare("parquet", tmp_path / "a", stream=True)[0]
    fewer = builder_of("phantom", patients=1, scans=1, height=64, width=64)
    write_prepared(fewer, str(tmp_path / "b"), 1)
    next((tmp_path / "b").rglob("*.parquet")).replace(next((tmp_path / "a").rglob("*.parquet")))
    with pytest.raises(DataError, match="was changed since it was listed"):
        list(StreamedPixels(index, SIZE))
    with pytest.raises(DataError, match="was changed since it was listed"):
        Encoded(index)[len(index) - 1]
