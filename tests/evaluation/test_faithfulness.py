import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from oct_hf.data.phantom import draw
from oct_hf.errors import DataError
from oct_hf.evaluation.explain import blurred
from oct_hf.evaluation.faithfulness import (
    MarkedBScan,
    best_method,
    chance,
    deletion_insertion,
    descending,
    energy_inside,
    iou_at_equal_area,
    marked_phantoms,
    measure_faithfulness,
    pointing_game,
    probabilities,
    randomised,
    rank_correlation,
)
from oct_hf.images import Preprocessing


def test_the_pointing_game_asks_for_the_highest_point_with_a_tolerance():
    mask = np.zeros((100, 100), bool)
    mask[40:60, 40:60] = True
    heat = np.zeros((100, 100), np.float32)
    for column, hit in ((50, 1), (37, 1), (36, 0), (10, 0)):  # a tolerance of 3 of 100 pixels
        heat[:] = 0
        heat[50, column] = 1
        assert pointing_game(heat, mask) == hit
    heat[50, 50] = 1  # with the one at column 10: one of two highest points hits
    assert pointing_game(heat, mask) == 0.5


def test_energy_and_iou_by_hand():
    mask = np.array([[1, 1, 0], [0, 0, 0]], bool)
    heat = np.array([[0.6, 0.2, 0.4], [0.0, 0.3, 0.5]], np.float32)
    assert energy_inside(heat, mask) == pytest.approx(0.8 / 2.0)
    # The two highest points are 0.6, inside, and 0.5, outside: one of three in the union.
    assert iou_at_equal_area(heat, mask) == pytest.approx(1 / 3)
    assert iou_at_equal_area(mask.astype(np.float32), mask) == 1
    assert chance(mask)["energy"] == pytest.approx(1 / 3) and chance(mask)["iou"] == pytest.approx(0.2)


def test_a_map_that_shows_nothing_gets_what_chance_gives():
    mask = np.zeros((100, 100), bool)
    mask[:20, :50] = True
    blank = np.zeros((100, 100), np.float32)
    by_chance = chance(mask)
    assert pointing_game(blank, mask) == pytest.approx(by_chance["pointing_game"])
    assert energy_inside(blank, mask) == pytest.approx(by_chance["energy"]) == pytest.approx(0.1)
    drawn = np.mean([iou_at_equal_area(blank, mask, seed) for seed in range(30)])
    assert drawn == pytest.approx(by_chance["iou"], abs=0.005)


def test_points_go_from_hot_to_cold_and_equal_ones_in_no_order_of_place():
    heat = np.zeros((10, 10), np.float32)
    heat[3, 4], heat[7, 1] = 1, 0.5
    order = descending(heat)
    assert list(order[:2]) == [34, 71] and sorted(order) == list(range(100))
    assert abs(np.corrcoef(order[2:], np.arange(98))[0, 1]) < 0.3 and np.array_equal(order, descending(heat))


class Left(nn.Module):
    """Two logits, 0 and `gain` times the mean of the left half of the first channel."""

    def __init__(self, gain=4.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, pixels):
        value = self.gain * pixels[:, 0, :, : pixels.shape[3] // 2].mean((1, 2))
        return torch.stack([torch.zeros_like(value), value], 1)


def _half_bright():
    """An image whose first channel is noise of mean 1 on the left, and the map of that half from left to right."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, 3, 32, 32), np.float32)
    image[0, 0, :, :16] = rng.uniform(0.5, 1.5, (32, 16))
    return image, np.broadcast_to(np.linspace(1, 0, 32, dtype=np.float32), (1, 32, 32))


def test_deletion_and_insertion_of_a_linear_model_by_hand():
    image, heat = _half_bright()
    without, steps = blurred(image), 4
    # A quarter of the map's order is eight whole columns: what is left is known at each step.
    deletion, insertion = [], []
    for taken in (0, 8, 16, 24, 32):
        inside = np.arange(32) < taken
        for curve, now in (
            (deletion, np.where(inside, without, image)),
            (insertion, np.where(inside, image, without)),
        ):
            curve.append(1 / (1 + np.exp(-4 * now[0, 0, :, :16].mean())))
    found = deletion_insertion(Left(), image, heat, [1], steps)
    for area, curve in zip(found, (deletion, insertion), strict=True):
        assert area[0] == pytest.approx((curve[0] / 2 + sum(curve[1:4]) + curve[4] / 2) / 4, abs=1e-6)


def test_a_true_map_deletes_fast_and_inserts_fast():
    image, heat = _half_bright()
    true, false = (deletion_insertion(Left(), image, one, [1]) for one in (heat, heat[:, :, ::-1]))
    assert true[0] < false[0] and true[1] > false[1]


def test_shuffled_weights_answer_differently_and_the_model_keeps_its_own():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(8, 3)).eval()
    image = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    before = probabilities(network, image)
    copy = randomised(network, image)
    assert np.array_equal(before, probabilities(network, image)) and not copy.training
    assert not np.allclose(before, probabilities(copy, image), atol=1e-3)
    for one, other in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one.flatten().sort()[0], other.flatten().sort()[0])
    features = copy[0](torch.from_numpy(image))
    assert torch.allclose(copy[1].running_mean, features.mean((0, 2, 3)), atol=1e-5)
    assert np.array_equal(probabilities(copy, image), probabilities(randomised(network, image), image))


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, (2, 3, 8, 8)).astype(np.float32)
    other[2] = 0
    found = rank_correlation(one, other)
    for index in (0, 1):
        assert found[index] == pytest.approx(spearmanr(one[index].ravel(), other[index].ravel()).statistic)
    assert found[2] is None


def test_phantoms_stand_for_the_labels_a_model_knows():
    targets = {one.group.split("-")[0]: one.target for one in marked_phantoms(["NORMAL", "AMD", "DME"], 6)}
    assert targets == {"CNV": 1, "DRUSEN": 1, "DME": 2}
    assert marked_phantoms(["ERM", "NO"]) == [] and marked_phantoms(["NORMAL"]) == []
    first, again = (marked_phantoms(["DME", "NORMAL"], 2) for _ in range(2))
    assert all(one.mask.any() and np.array_equal(one.image, two.image) for one, two in zip(first, again, strict=True))


class Brightest(nn.Module):
    """Looks at how bright the brightest cells are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 8, stride=8)
        self.head = nn.Linear(16, 3)

    def forward(self, pixels):
        return self.head(self.conv(pixels).relu().amax((2, 3)))


def edges(network, pixels, targets):
    """A "method" that never asks the network: the picture's own edges (Adebayo et al. 2018)."""
    gray = pixels.mean(1).numpy()
    return np.hypot(*np.gradient(gray, axis=(1, 2)))


@pytest.fixture(scope="module")
def measured():
    images = [draw(label, 5, patient, height=96, width=96).image for patient in range(3) for label in ("DME", "CNV")]
    marked = [
        MarkedBScan(p.image, p.mask, 0, str(n)) for n in range(3) for p in [draw("DME", 6, n, height=96, width=96)]
    ]
    size = Preprocessing(64, 64)
    methods = {"edges": edges, "hirescam": "hirescam", "occlusion": "occlusion"}
    calls = (Brightest().eval(), size, images, list("aabbcc"), marked, methods)
    first, again = (measure_faithfulness(*calls, slow_images=2, steps=4) for _ in range(2))
    assert first == again
    return first


def test_a_method_whose_maps_ignore_what_was_learned_is_refused(measured):
    assert measured["methods"]["edges"]["sanity"] == {"rho": pytest.approx(1), "n": 6, "passed": False}
    assert measured["methods"]["hirescam"]["sanity"]["passed"] and measured["method"] == "hirescam"


def test_measurements_are_plain_and_have_their_counts(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["methods"]["hirescam"]["n"] == 6 and measured["methods"]["hirescam"]["n_marked"] == 3
    assert measured["methods"]["occlusion"]["n"] == 2 and measured["settings"]["groups"] == 3
    for name in ("edges", "hirescam"):
        for figure in ("deletion", "insertion", "pointing_game", "energy", "iou"):
            one = measured["methods"][name][figure]
            assert 0 <= one["low"] <= one["mean"] <= one["high"] <= 1
    assert set(measured["baselines"]) == {"brightness", "noise", "chance"}


def test_a_model_whose_labels_phantoms_lack_gets_the_curves_alone():
    images = [draw("DME", 5, 0, height=96, width=96).image]
    found = measure_faithfulness(Brightest().eval(), Preprocessing(64, 64), images, methods=["hirescam"], steps=2)
    assert found["methods"]["hirescam"]["energy"] == {"mean": None, "low": None, "high": None}
    assert found["methods"]["hirescam"]["insertion"]["mean"] > 0
    assert found["methods"]["hirescam"]["insertion"]["low"] is None  # one image has no interval
    with pytest.raises(DataError, match="at least one B-scan"):
        measure_faithfulness(Brightest(), Preprocessing(64, 64), [])


def _method(energy, gain, passed=True, n=9):
    return {
        "energy": {"mean": energy},
        "insertion_minus_deletion": {"mean": gain},
        "sanity": {"passed": passed},
        "n": n,
    }


@pytest.mark.parametrize(
    ("methods", "best"),
    [
        ({"a": _method(0.1, 0.2), "b": _method(0.2, 0.3)}, "b"),
        ({"a": _method(0.1, 0.2), "b": _method(0.2, 0.3, passed=False)}, "a"),
        ({"a": _method(0.1, 0.2), "b": _method(0.2, 0.3, n=2)}, "a"),
        ({"a": _method(0.1, 0.3), "b": _method(0.2, 0.2)}, "b"),  # equal ranks: the lesions decide
        ({"a": _method(None, 0.3), "b": _method(None, 0.2)}, "a"),
        ({"a": _method(0.1, 0.3, passed=False)}, None),
        ({}, None),
    ],
)
def test_the_best_method_follows_the_rule(methods, best):
    assert best_method({"methods": methods}) == best
