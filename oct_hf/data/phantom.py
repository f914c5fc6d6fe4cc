"""Synthetic B-scans (phantoms) of four macular classes, each with the truth about its layers and lesions.

A B-scan is painted in log-reflectivity as a stack of layers, lesions' spaces among them: a layer of no thickness leaves
no trace, so one painter serves every eye. Speckle and noise come last, in linear intensity, where their physics holds.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from oct_hf.data.speckle import banks, crop, smooth_noise, speckle
from oct_hf.errors import DataError, did_you_mean

LABELS = ("CNV", "DME", "DRUSEN", "NORMAL")
LESIONS = ("drusen", "cnv", "subretinal_fluid", "cyst", "exudate")
SMALLEST_SIDE = 64  # pixels; on a smaller image a druse is thinner than a pixel

# Layers from the vitreous down: microns at the foveola, in the periphery, and gained on the parafoveal rim; then
# display level (0 black, 1 white). Set to resemble clinical Spectralis images; what lesions open is 0 in health.
_LAYERS = {
    "RNFL": (4, 20, 6, 0.40),
    "GCL": (3, 25, 18, 0.35),
    "IPL": (4, 32, 12, 0.36),
    "INL": (12, 33, 6, 0.27),
    "OPL": (14, 24, 2, 0.33),
    "ONL": (98, 62, 6, 0.20),
    "ELM": (7, 7, 0, 0.26),
    "IS": (25, 20, 0, 0.22),
    "EZ": (16, 16, 0, 0.55),
    "OS": (32, 19, 0, 0.43),
    "subretinal_fluid": (0, 0, 0, 0.06),
    "type2_cnv": (0, 0, 0, 0.50),
    "RPE": (24, 23, 0, 0.74),
    "sub_rpe": (0, 0, 0, 0.40),
}
_ROW = {name: row for row, name in enumerate(_LAYERS)}
_TABLE = np.array(list(_LAYERS.values()), np.float32)
_VITREOUS = -0.1  # display level of the vitreous itself; what one sees there is the noise floor
_NEPERS = np.float32(9)  # of intensity between black and white: a display range of 39 dB


@dataclass(frozen=True)
class Phantom:
    """One synthetic B-scan with its ground truth.

    Attributes:
        image: uint8 (height, width), the gray B-scan as a device would export it.
        label: one of LABELS.
        eye: "OD" or "OS"; the nerve fibre layer thickens towards the nose, on the right in OD and on the left in OS.
        lesions: kind of lesion (of LESIONS) -> bool (height, width); only the kinds that are present.
        boundaries: name -> float32 (width,), the row of a layer's upper edge by column: "ILM", the layers from "GCL" to
            "RPE", "BM" (Bruch's membrane) and "CSI" (choroid-sclera interface). Rows may lie outside the image.
    """

    image: np.ndarray
    label: str
    eye: str
    lesions: dict[str, np.ndarray]
    boundaries: dict[str, np.ndarray]

    @property
    def mask(self) -> np.ndarray:
        """Union of the lesions, bool (height, width); all False for NORMAL."""
        return np.any([np.zeros(self.image.shape, bool), *self.lesions.values()], axis=0)


def draw(
    label: str, seed: int = 0, patient: int = 0, scan: int = 0, height: int = 496, width: int = 512, wide: bool = False
) -> Phantom:
    """Draw one B-scan; the same arguments give the same phantom in any process.

    Anatomy, acquisition and the disease's style follow from (seed, patient), the rest from (seed, patient, scan). The
    label decides the lesions and nothing else: phantoms that differ in it alone share anatomy, position and noise.

    Args:
        label: one of LABELS.
        seed, patient, scan: which population, which of its patients, which B-scan of the volume; each 0 or more.
        height, width: size in pixels, SMALLEST_SIDE or more; the field of view doesn't depend on it.
        wide: a patient beyond any that exist, in anatomy and acquisition: to pretrain on, since a network that knows
            many worlds takes the real one for another of them (Tobin et al., "Domain randomization", IROS 2017).

    Raises:
        DataError: the label is unknown or the size too small.
    """
    if label not in LABELS:
        raise DataError(f'no phantom of "{label}": it must be one of {", ".join(LABELS)}{did_you_mean(label, LABELS)}')
    if min(height, width) < SMALLEST_SIDE:
        raise DataError(f"a phantom of {height}x{width} pixels is too small: each side must be {SMALLEST_SIDE} or more")
    # Two streams, so that what a lesion draws doesn't move the noise of a diseased B-scan against its healthy twin's.
    healthy, diseased = np.random.default_rng([seed, patient, 1 + scan]).spawn(2)
    eye = _Eye(np.random.default_rng([seed, patient]))
    if wide:
        eye.widen(np.random.default_rng([seed, patient, 0]))
    bscan = _BScan(eye, healthy, height, width)
    if label != "NORMAL":
        {"CNV": _cnv, "DME": _dme, "DRUSEN": _drusen}[label](bscan, diseased)
    return bscan.render(label)


class _Eye:
    """What the B-scans of one patient share: anatomy (microns), acquisition, and the style of the disease."""

    def __init__(self, rng: np.random.Generator) -> None:
        u = rng.uniform
        self.name = "OD" if u() < 0.5 else "OS"
        self.field = u(5000, 9000), u(1050, 2000)  # width and depth of the image
        self.fovea, self.pit, self.rim, self.nasal_rnfl = u(-800, 800), u(330, 520), u(600, 1000), u(10, 100)
        self.disc = u(3500, 4600)  # from the fovea to the optic disc, where the layers end
        self.thickness = (u(0.88, 1.18) * u(0.92, 1.08, len(_TABLE))).astype(np.float32)
        self.curvature, self.tilt, self.bruch = u(-16, 22), u(-0.05, 0.05), u(0.45, 0.66)
        self.choroid, self.choroid_level, self.choroid_fading = u(150, 400), u(0.38, 0.5), u(0.5, 1.5)
        self.level = (_TABLE[:, 3] * u(0.95, 1.15) + rng.normal(0, 0.02, len(_TABLE))).astype(np.float32)
        self.level[0] += u(0, 0.12)
        self.looks = int(np.exp(u(np.log(2), np.log(25))))
        self.subtracted = u(0.2, 0.9)  # share of the mean noise that the device takes away
        self.noise = u(0.06, 0.12) + 0.13 * self.subtracted
        self.gain, self.rolloff, self.smoothing = u(0.9, 1.25), u(0.0, 0.08), u(-0.8, 0.8)  # pixels; below 0.25 none
        self.severity, self.style = u(), u()

    def widen(self, rng: np.random.Generator) -> None:
        """Makes all but the disease vary more: scan width and depth, course, layers' contrast and number, device."""
        u = rng.uniform
        self.field = u(3500, 9500), u(950, 2400)
        self.curvature = u(-0.2, 0.3) * self.field[1] / (self.field[0] / 2000) ** 2  # of the depth, to the sides
        self.tilt, self.bruch = u(-0.25, 0.25) * self.field[1] / self.field[0], u(0.4, 0.8)
        self.thickness *= u(0.8, 1.25, len(_TABLE)).astype(np.float32)
        middle, contrast = self.level.mean(), np.float32(np.exp(u(-0.5, 0.2)))
        self.level = middle + contrast * (self.level - middle) + rng.normal(0, 0.03, len(_TABLE)).astype(np.float32)
        for row in rng.permutation(np.arange(1, _ROW["EZ"]))[: rng.integers(0, 4)]:
            self.level[row] = self.level[row - 1]  # two layers that look like one
        self.choroid, self.choroid_level, self.choroid_fading = u(80, 450), self.choroid_level + u(-0.1, 0.1), u(0.2, 3)
        self.looks, self.subtracted = int(np.exp(u(np.log(2), np.log(31)))), u(0, 1)
        self.noise = u(0.03, 0.16) + 0.13 * self.subtracted
        self.gain, self.rolloff, self.smoothing = u(0.8, 1.5), u(0, 0.15), u(-0.8, 2)


class _BScan:
    """A B-scan between anatomy and image: layers by column, to which a disease adds its lesions."""

    def __init__(self, eye: _Eye, rng: np.random.Generator, height: int, width: int) -> None:
        self.eye, self.rng, self.height, self.width = eye, rng, height, width
        self.um = eye.field[1] / height, eye.field[0] / width  # microns per row, per column
        mm = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(eye.field[0] / 1000)
        self.x = mm * 1000 - np.float32(eye.fovea + rng.normal(0, 120))  # microns from the fovea
        sag = (
            -eye.curvature * mm**2
            + 1000 * (eye.tilt + rng.normal(0, 0.02)) * mm
            + 6 * smooth_noise(rng, 1, width, 8)[0]
        )
        self.bruch = height * np.float32(eye.bruch + rng.normal(0, 0.02)) + (sag - sag.mean()) / np.float32(self.um[0])
        self.bruch -= max(0.0, self.bruch.max() - 0.93 * height)
        self.thick, self.level = self._healthy_layers()
        self.choroid_gain = 0.015 * smooth_noise(rng, 1, width, 40)[0]  # light that reaches the choroid, by column
        self.spaces: list[tuple] = []  # layer, kind of lesion, height of its space in microns by column
        self.blobs: list[tuple] = []  # kind of lesion, x, depth in the retina 0 to 1, outline in microns, display level
        self.room = max(0.0, self._edges()[0].min() - 300 / self.um[0])  # rows above the retina, even a swollen one

    def _healthy_layers(self) -> tuple[np.ndarray, np.ndarray]:
        """Thickness in microns and display level of every layer, float32 (layers, width) each."""
        eye, rng, layers = self.eye, self.rng, len(_TABLE)
        r = np.hypot(self.x, np.clip(rng.choice((300, 1000)) * rng.normal(), -2200, 2200))
        pit = np.exp(-((r / eye.pit) ** 2))
        rim = np.exp(-(((r - 900) / eye.rim) ** 2)) * (1 - pit)
        foveola, periphery, gain, _ = _TABLE.T[:, :, None]
        thick = (periphery + (foveola - periphery) * pit + gain * rim) * eye.thickness[:, None]
        nasal = self.x if eye.name == "OD" else -self.x
        thick[0] += eye.nasal_rnfl * (1 - pit) / (1 + np.exp((2200 - nasal) / 600))
        level = eye.level[:, None] + 0.015 * smooth_noise(rng, layers, self.width, 30)
        disc = 1 / (1 + np.exp(np.clip((eye.disc - nasal) / 120, -30, 30)))
        thick[1:] *= 1 - 0.9 * disc
        level[_ROW["EZ"] :] -= 0.3 * disc
        level[0] += 0.001 * thick[0]  # a thick nerve fibre layer is also a bright one
        uneven = 1 + 0.05 * smooth_noise(rng, layers, self.width, 20) + 0.06 * smooth_noise(rng, 1, self.width, 4)
        return (thick * uneven).astype(np.float32), level.astype(np.float32)

    def bump(self, centre: float, half_width: float, height: float, power: float = 2.0) -> np.ndarray:
        """A dome by column, microns (width,): a Gaussian for power 2, flatter on top for more."""
        return height * np.exp(-(np.abs((self.x - centre) / half_width) ** power))

    def open_space(self, layer: str, kind: str, dome: np.ndarray, absorbed: float) -> None:
        """Open a lesion's space under the retina; the photoreceptors dim above it and the ONL absorbs a share of it."""
        self.thick[_ROW[layer]] += dome
        self.spaces.append((layer, kind, dome))
        spread = cv2.GaussianBlur(dome[None].astype(np.float32), (0, 0), sigmaX=250 / self.um[1], sigmaY=1e-3)[0]
        pressure = np.maximum(dome - (1 - absorbed) * spread, 0)
        for name in ("ONL", "OPL", "INL", "IPL"):
            taken = np.minimum(pressure, 0.75 * self.thick[_ROW[name]])
            self.thick[_ROW[name]] -= taken
            pressure -= taken
        for name, share in (("EZ", 0.2), ("OS", 0.14), ("ELM", 0.04)):
            self.level[_ROW[name]] -= share * np.clip(dome / 100, 0, 1)

    def _edges(self) -> np.ndarray:
        """Row of each layer's upper edge and of Bruch's membrane, float32 (layers + 1, width)."""
        above = np.cumsum(self.thick[::-1], axis=0)[::-1] / np.float32(self.um[0])
        return np.vstack([self.bruch - above, self.bruch])

    def render(self, label: str) -> Phantom:
        """Paint, expose and export the B-scan."""
        edges = self._edges()
        edges += max(0.0, 0.02 * self.height - edges[0].min())  # a swollen retina must not leave the image
        csi = edges[-1] + (self.eye.choroid + 12 * smooth_noise(self.rng, 1, self.width, 6)[0]) / np.float32(self.um[0])
        picture = self._paint(edges, csi)
        lesions = self._paint_lesions(picture, edges)
        image = self._export(self._expose(cv2.GaussianBlur(picture, (3, 5), sigmaX=0.6, sigmaY=0.9)))
        boundaries = dict(zip(["ILM", *list(_LAYERS)[1:], "BM"], edges, strict=True)) | {"CSI": csi}
        boundaries = {name: row for name, row in boundaries.items() if name not in ("sub_rpe", "type2_cnv", *LESIONS)}
        return Phantom(image, label, self.eye.name, lesions, boundaries)

    def _paint(self, edges: np.ndarray, csi: np.ndarray) -> np.ndarray:
        """Display level of every pixel before speckle, float32 (height, width): the sum of steps down each column."""
        rng, eye, width = self.rng, self.eye, self.width
        steps = np.full((self.height + 2, width), -eye.rolloff / self.height, np.float32)
        steps[0] = _VITREOUS + 0.035 * smooth_noise(rng, 1, width, 4)[0]
        depth = np.linspace(0, 2, 14, dtype=np.float32)[:, None]  # 1 at the sclera; steps too fine to see under speckle
        choroid = eye.choroid_level * np.exp(-eye.choroid_fading * depth) + self.choroid_gain
        level = np.vstack([np.full((1, width), _VITREOUS), self.level, choroid])
        rows = np.vstack([edges[:-1], edges[-1] + depth * (csi - edges[-1])])
        for row, step in zip(rows, np.diff(level, axis=0), strict=True):
            _add_step(steps, row, step)
        if rng.random() < 0.35:  # a detached posterior hyaloid
            row = edges[0] - (rng.uniform(20, 160) + 40 * smooth_noise(rng, 1, width, 3)[0]) / self.um[0]
            _add_step(steps, row, np.float32(0.25))
            _add_step(steps, row + 8 / self.um[0], np.float32(-0.25))
        for _ in range(rng.poisson(5)):  # vessels, whose blood takes the light from all that lies below
            x, calibre = rng.uniform(self.x[0], self.x[-1]), rng.uniform(15, 60)
            shade = self.bump(x, calibre, rng.uniform(0.02, 0.16), 4)
            _add_step(steps, edges[0] + 20 / self.um[0], 0.6 * shade)
            _add_step(steps, edges[0] + (20 + calibre) / self.um[0], -1.6 * shade)
        for kind, x, depth, outline, level in self.blobs:
            shade = self.bump(x, np.ptp(outline.real) / 2, 0.12 * level * (kind == "exudate"), 4)
            _add_step(steps, edges[0] + depth * (edges[_ROW["ELM"]] - edges[0]), -shade)
        picture = steps[: self.height]
        for row in range(1, self.height):  # np.cumsum down the columns is eight times slower
            picture[row] += picture[row - 1]
        top = max(0, int(edges[-1].min()))
        below = np.arange(top, self.height, dtype=np.float32)[:, None] - edges[-1] - 20 / self.um[0]
        below *= np.float32(self.um[0] / eye.choroid)  # 0 under the RPE, 1 at the sclera
        below = 0.14 * np.clip(np.minimum(4 * below, 1.3 - below), 0.1, 0.5) * (below > 0)
        picture[top:] += below * crop(banks()[1], rng, self.height, width)[top:]
        return picture

    def _paint_lesions(self, picture: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
        """Paint what lies within layers, and mask every lesion; kind -> bool (height, width), only kinds to be seen."""
        masks = {kind: np.zeros(picture.shape, np.uint8) for kind in LESIONS}
        ilm, elm = edges[0], edges[_ROW["ELM"]]
        for kind, x, depth, outline, level in self.blobs:
            column = (x - self.x[0] + outline.real) / self.um[1]
            at = np.clip(column, 0, self.width - 1).astype(int)
            row = ilm[at] + depth * (elm - ilm)[at] + outline.imag / self.um[0]
            row = np.clip(row, ilm[at] + 18 / self.um[0], elm[at] - 6 / self.um[0])
            polygon = np.rint(np.stack([column, row], 1) * 16).astype(np.int32)
            cv2.fillPoly(picture, [polygon], level, shift=4)
            cv2.fillPoly(masks[kind], [polygon], 1, shift=4)
        rows = np.arange(self.height, dtype=np.float32)[:, None]
        for layer, kind, dome in self.spaces:
            top = np.where(dome > 12, edges[_ROW[layer]], np.inf)  # microns; a lower dome is no lesion to the eye
            masks[kind] |= (rows >= top) & (rows < edges[_ROW[layer] + 1])
        return {kind: mask.astype(bool) for kind, mask in masks.items() if mask.any()}

    def _expose(self, picture: np.ndarray) -> np.ndarray:
        """The image on the display, uint8: speckle and noise in linear intensity, noise subtracted, log-compressed.

        Signal and noise are circular complex Gaussian fields, so their sum is one too, of the summed intensity, and one
        speckle field multiplies both (Goodman, Speckle Phenomena in Optics, 2007).
        """
        noise = np.float32(np.exp(_NEPERS * self.eye.noise))
        intensity = (cv2.exp(picture * _NEPERS) + noise) * speckle(self.rng, self.eye.looks, *picture.shape)
        intensity -= np.float32(self.eye.subtracted) * noise
        nepers = cv2.log(np.maximum(intensity, np.float32(1), out=intensity))
        image = cv2.convertScaleAbs(nepers, alpha=float(255 * self.eye.gain / _NEPERS))
        return cv2.GaussianBlur(image, (3, 3), self.eye.smoothing) if self.eye.smoothing > 0.25 else image

    def _export(self, image: np.ndarray) -> np.ndarray:
        """Add what registration leaves at the top of some exports: a white wedge or a dark arc, clear of the retina."""
        rng, x = self.rng, np.linspace(0, 1, 24)
        wedge = rng.uniform(0, 0.9) * self.room - np.abs(rng.normal(0, 0.06)) * self.height * rng.choice([x, 1 - x])
        arc = rng.uniform(0, 1) * self.room * ((x - rng.uniform(0, 1)) / 0.9) ** 2
        for edge, level in ((wedge, 255), (arc, 4)):
            polygon = np.rint([*zip(x * self.width, edge, strict=True), (self.width, -1), (0, -1)]).astype(np.int32)
            if rng.random() < 0.15 and self.room:
                cv2.fillPoly(image, [polygon], level)
        return image


def _centre(scan: _BScan, rng: np.random.Generator, spread: float) -> float:
    """A place for a lesion, microns from the fovea, a sixth of the image away from its border."""
    edge = scan.eye.field[0] / 6
    return float(np.clip(rng.normal(0, spread), scan.x[0] + edge, scan.x[-1] - edge))


def _drusen(scan: _BScan, rng: np.random.Generator) -> None:
    """Deposits under the RPE: small domes, one at least large enough to be seen in a thumbnail."""
    dome = np.zeros_like(scan.x)
    for i in range(2 + rng.poisson(2 + 9 * scan.eye.severity)):
        height, half = rng.uniform(20, 75), rng.uniform(35, 150)
        if i < 1 + 2 * scan.eye.style:
            height, half = rng.uniform(60, 105), rng.uniform(110, 270)
        dome = np.maximum(dome, scan.bump(_centre(scan, rng, 1400), half, height, rng.uniform(2, 3.5)))
    scan.level[_ROW["sub_rpe"]] += rng.uniform(-0.06, 0.1)
    scan.open_space("sub_rpe", "drusen", dome * _ragged(rng, scan.width, 60, 0.12), absorbed=rng.uniform(0.5, 0.8))
    _ageing(scan, rng, _centre(scan, rng, 800), 700 * scan.eye.severity**2 + 1)


def _cnv(scan: _BScan, rng: np.random.Generator) -> None:
    """New vessels under the RPE (type 1) or above it (type 2), fluid beside them, sometimes cysts and drusen."""
    centre, half = _centre(scan, rng, 600), rng.uniform(600, 1100 + 500 * scan.eye.severity)
    type2 = scan.eye.style > 0.55
    tissue = scan.bump(centre, half, rng.uniform(30, 90) if type2 else rng.uniform(110, 230), 3)
    tissue *= _ragged(rng, scan.width, 20, 0.25) * _ragged(rng, scan.width, 60, 0.08)
    scan.level[_ROW["sub_rpe"]] += rng.uniform(-0.1, 0.1) + 0.03 * smooth_noise(rng, 1, scan.width, 20)[0]
    scan.open_space("sub_rpe", "cnv", tissue, absorbed=0.3)
    above = scan.bump(centre, 0.7 * half, type2 * rng.uniform(90, 190), 2.5) * _ragged(rng, scan.width, 25, 0.25)
    scan.level[_ROW["type2_cnv"]] += rng.uniform(-0.08, 0.1) + 0.03 * smooth_noise(rng, 1, scan.width, 20)[0]
    scan.open_space("type2_cnv", "cnv", above, absorbed=0.3)
    fluid = scan.bump(centre + rng.normal(0, 0.8) * half, half * rng.uniform(0.8, 1.5), rng.uniform(120, 250), 3)
    fluid = np.maximum(fluid - 0.4 * (tissue + above), 0) * rng.choice((0.5, 1, 1, 1))
    scan.open_space("subretinal_fluid", "subretinal_fluid", fluid, absorbed=0.15)
    _ageing(scan, rng, centre, half)
    if rng.random() < 0.5:
        _oedema(scan, rng, centre, half, rng.uniform(0.1, 0.4), rng.poisson(3))
    _exudates(scan, rng, centre, half, rng.choice((0, 1)) * rng.poisson(3))
    druse = scan.bump(centre + rng.choice((-2, 2)) * half, rng.uniform(60, 200), rng.choice((0, 0, 40, 80)), 3)
    scan.open_space("sub_rpe", "drusen", druse, absorbed=0.6)


def _ageing(scan: _BScan, rng: np.random.Generator, centre: float, half_width: float) -> None:
    """An RPE uneven all along, by deposits too shallow for drusen, and patchy in one place, where light passes."""
    scan.thick[_ROW["sub_rpe"]] += np.clip(rng.uniform(0, 8) * (smooth_noise(rng, 1, scan.width, 70)[0] + 0.5), 0, 12)
    loss = scan.bump(centre, half_width, rng.uniform(0.05, 0.25), 4) * _ragged(rng, scan.width, 50, 0.5)
    scan.level[_ROW["RPE"]] -= loss
    scan.level[_ROW["EZ"]] -= 0.5 * loss
    scan.choroid_gain += rng.uniform(-0.2, 0.7) * loss


def _dme(scan: _BScan, rng: np.random.Generator) -> None:
    """A retina swollen by leaking vessels: cysts, hard exudates and sometimes fluid under it, over a healthy RPE."""
    centre, half = _centre(scan, rng, 900), rng.uniform(800, 1300 + 1400 * scan.eye.severity)
    share = rng.uniform(0.45, 0.65 + 0.5 * scan.eye.severity)
    _oedema(scan, rng, centre, half, share, cysts=2 + rng.poisson(3 + 12 * scan.eye.style))
    _exudates(scan, rng, centre, 0.8 * half, rng.choice((0, 2, 2)) * rng.poisson(4))
    fluid = scan.bump(centre, 0.8 * half, rng.uniform(60, 150) * (rng.random() < 0.25), 2.5)
    scan.open_space("subretinal_fluid", "subretinal_fluid", fluid, absorbed=0.1)


def _oedema(scan: _BScan, rng: np.random.Generator, centre: float, half: float, share: float, cysts: int) -> None:
    """Swelling that fills the fovea's pit, and cysts: the first large and in the ONL, small ones in the INL too."""
    swelling = scan.bump(centre, half, share, 2.5)
    for name, extra in (("INL", 40), ("OPL", 25), ("ONL", 130)):
        scan.thick[_ROW[name]] += swelling * (0.6 * scan.thick[_ROW[name]] + extra)
    for i in range(cysts):
        x, size = (rng.normal(centre, 0.55 * half), rng.uniform(0.2, 1)) if i else (centre, 1)
        rx, ry, depth = rng.uniform((100, 55, 0.6), (220, 110, 0.8))
        if i and rng.random() < 0.4:
            rx, ry, depth = rng.uniform((30, 15, 0.3), (100, 45, 0.5))
        scan.blobs.append(("cyst", x, depth, _outline(rng, size * rx, size * ry), rng.uniform(0, 0.1)))


def _exudates(scan: _BScan, rng: np.random.Generator, centre: float, spread: float, count: int) -> None:
    """Lipid in bright spots that shade what lies below."""
    for _ in range(count):
        rx = rng.uniform(8, 25) if rng.random() < 0.6 else rng.uniform(20, 60)
        x, depth, outline = rng.normal(centre, spread), rng.uniform(0.35, 0.9), _outline(rng, rx, 0.7 * rx)
        scan.blobs.append(("exudate", x, depth, outline, rng.uniform(0.5, 0.9)))


def _outline(rng: np.random.Generator, rx: float, ry: float) -> np.ndarray:
    """An irregular closed outline about an ellipse of radii rx and ry, complex (24,): columns real, rows imaginary."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    waves = rng.normal(0, 0.2, 3) / (2, 3, 4) * np.cos(np.outer(angle, (2, 3, 4)) + rng.uniform(0, 2 * np.pi, 3))
    return (1 + waves.sum(1)) * (rx * np.cos(angle) + 1j * ry * np.sin(angle))


def _ragged(rng: np.random.Generator, width: int, knots: int, size: float) -> np.ndarray:
    """Irregularity of a lesion, a factor by column about 1, float32 (width,)."""
    return np.clip(1 + size * smooth_noise(rng, 1, width, knots)[0], 0.3, 1.7)


def _add_step(steps: np.ndarray, row: np.ndarray, step: np.ndarray | np.float32) -> None:
    """Add a step at a fractional row of each column, split over two rows so that the edge falls between pixels."""
    row = np.clip(row, 0, len(steps) - 2)
    whole = row.astype(np.intp)
    part = (row - whole).astype(np.float32)
    columns = np.arange(steps.shape[1])
    steps[whole, columns] += (1 - part) * step
    steps[whole + 1, columns] += part * step
