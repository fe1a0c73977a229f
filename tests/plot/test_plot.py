"""Figures show the pixels they were given, in files that are whole and always the same."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from minidiff import plot
from minidiff.plot import (
    Panel,
    animate,
    charts,
    curves,
    grid,
    heatmap_over,
    pixels,
    rows,
    save,
    sheets,
    trajectory,
)
from minidiff.plot import typesetting as typeset


class Level(NamedTuple):
    t: int
    alpha: float
    sigma: float


class Prediction(NamedTuple):
    x0: torch.Tensor
    eps: torch.Tensor


class Frame(NamedTuple):
    x: torch.Tensor
    level: Level
    prediction: Prediction


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(n, size=32, seed=0):
    return noise(n, 3, size, size, seed=seed).clamp(-1, 1)


def frames(n, batch=1, size=16):
    clean, eps = images(batch, size), noise(batch, 3, size, size, seed=1)
    levels = [Level(t, 1 - t / 1000, t / 1000) for t in np.linspace(1000, 0, n).round().astype(int)]
    return [
        Frame(level.alpha * clean + level.sigma * eps, level, Prediction(clean * level.alpha, eps))
        for level in levels
    ]


def shown_at(picture, x, y, size, factor):
    """Pixels of an enlarged image; None unless each is a flat square of the sheet."""
    cell = np.asarray(picture)[y : y + size * factor, x : x + size * factor]
    small = cell[::factor, ::factor]
    flat = (small.repeat(factor, 0).repeat(factor, 1) == cell).all()
    return small if flat else None


# ----------------------------------------------------------------------------------- conversion


def test_pixels_converts_the_range():
    values = torch.tensor([-1.5, -1, 0, 0.5, 1, 1.5]).view(1, 1, 1, 6)
    assert pixels(values)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]
    assert pixels(values).shape == (1, 1, 6, 3)
    channels = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert pixels(channels)[0, 0, 0].tolist() == [0, 128, 255]
    every = torch.arange(256).view(1, 1, 16, 16) / 127.5 - 1
    assert pixels(every)[0, ..., 0].flatten().tolist() == list(range(256))


@pytest.mark.parametrize(
    "bad, sentence",
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"floats in \[-1, 1\], got torch.uint8"),
        (torch.full((1, 3, 8, 8), 255.0), r"lie in \[-1, 1\], got values from 255 to 255"),
        (torch.full((1, 3, 8, 8), float("nan")), "finite"),
        (torch.zeros(3, 8, 8), r"\(B, 3, H, W\), got \(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"got \(2, 8, 8, 3\)"),
        ([1, 2], r"\(B, 3, H, W\), got list"),
    ],
)
def test_pixels_refuses_what_are_no_images(bad, sentence):
    with pytest.raises(ValueError, match=sentence):
        pixels(bad)


def test_pure_noise_may_be_shown():
    assert pixels(noise(64, 3, 32, 32)).shape == (64, 32, 32, 3)


# --------------------------------------------------------------------------------------- sheets


def test_grid_shows_every_pixel_as_a_square():
    batch = images(6)
    sheet = grid(batch, columns=3)
    for i, expected in enumerate(pixels(batch)):
        x = plot.MARGIN + i % 3 * (256 + plot.GAP)
        y = plot.MARGIN + i // 3 * (256 + plot.GAP)
        assert np.array_equal(shown_at(sheet, x, y, 32, 8), expected)
    smooth = Image.fromarray(pixels(batch)[0]).resize((256, 256), Image.Resampling.BILINEAR)
    assert shown_at(smooth, 0, 0, 32, 8) is None  # the control that would blur


def test_rows_of_different_sizes_share_one_width():
    sheet = rows([("", images(4, 32)), ("", images(4, 64, seed=1)), ("", images(2, 128))])
    step = 256 + plot.GAP
    for row, (size, seed) in enumerate([(32, 0), (64, 1), (128, 0)]):
        expected = pixels(images(4 if size < 128 else 2, size, seed))[1]
        x, y = plot.MARGIN + step, plot.MARGIN + row * step
        assert np.array_equal(shown_at(sheet, x, y, size, 256 // size), expected)


@pytest.mark.parametrize("n, size", [(1, 32), (8, 32), (50, 32), (64, 28), (5, 75), (3, 256)])
def test_sheets_fit_the_page_and_halve_exactly(n, size):
    sheet = grid(images(n, size))
    assert sheet.width <= plot.WIDTH
    assert sheet.width % 2 == sheet.height % 2 == 0


def test_words_are_drawn_beside_images_and_never_over_them():
    batch = images(2)
    bare, labelled = grid(batch), grid(batch, ["one", "a label too long for a single line"])
    titled = rows([("name\nmore about it", batch)], title="Title")
    assert labelled.height > bare.height + 60  # two lines below
    below = np.asarray(labelled)[plot.MARGIN + 256 :]
    assert (below != 255).any() and (np.asarray(bare)[plot.MARGIN + 256 :] == 255).all()
    assert titled.width > bare.width and titled.height > bare.height
    expected = pixels(batch)[1]
    x = plot.MARGIN + 256 + plot.GAP
    assert np.array_equal(shown_at(labelled, x, plot.MARGIN, 32, 8), expected)
    x, y = titled.width - plot.MARGIN - 256, titled.height - plot.MARGIN - 256
    assert np.array_equal(shown_at(titled, x, y, 32, 8), expected)


def test_numbers_of_labels_must_fit():
    with pytest.raises(ValueError, match=r"labels must be as many as the images \(4\), got 2"):
        grid(images(4), ["a", "b"])
    with pytest.raises(ValueError, match=r"row_labels must be as many as the rows \(2\), got 3"):
        grid(images(4), columns=2, row_labels=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"column_labels .* columns \(2\), got 1"):
        grid(images(4), columns=2, column_labels=["a"])
    with pytest.raises(ValueError, match="captions must be as many as the images of row 'cats'"):
        rows([("cats", images(2), ["one"])])
    with pytest.raises(ValueError, match="row 'dogs' has none"):
        rows([("dogs", images(0))])
    with pytest.raises(ValueError, match="at least one row"):
        rows([])


def test_trajectory_shows_first_and_last_frame():
    path = frames(21)
    sheet = trajectory(path, columns=4)
    factor = 16
    right = sheet.width - plot.MARGIN - 16 * factor
    bottom = sheet.height - plot.MARGIN - 16 * factor
    left = right - 3 * (16 * factor + plot.GAP)
    above = bottom - 16 * factor - plot.GAP
    for frame, x in ((path[0], left), (path[7], left + 264), (path[-1], right)):
        clean, noisy = (pixels(v.clamp(-1, 1))[0] for v in (frame.prediction.x0, frame.x))
        assert np.array_equal(shown_at(sheet, x, bottom, 16, factor), clean)
        assert np.array_equal(shown_at(sheet, x, above, 16, factor), noisy)


def test_trajectory_clips_wild_predictions():
    path = [frame._replace(prediction=Prediction(frame.x * 50, frame.x)) for frame in frames(3, 2)]
    assert trajectory(path, images=2).height > 2 * 256
    assert trajectory(iter(path[:1])).width < trajectory(path).width
    with pytest.raises(ValueError, match="at least one frame"):
        trajectory([])


def test_climbs_have_no_prediction_to_show(tmp_path):
    path = frames(4)
    climbing = [path[0], path[1], path[1]._replace(prediction=None), *path[2:]]
    assert np.array_equal(np.asarray(trajectory(climbing)), np.asarray(trajectory(path)))
    with_climb = plot.animate(climbing, tmp_path / "climbing.gif").read_bytes()
    assert with_climb == plot.animate(path, tmp_path / "down.gif").read_bytes()


def test_heatmap_is_hot_where_the_map_is():
    maps = torch.zeros(2, 8, 8)
    maps[0, 2, 5] = 0.01  # small values count by their share of the maximum
    shown = heatmap_over(images(2), maps)
    assert shown.shape == (2, 3, 32, 32) and shown.abs().max() <= 1
    colourful = (shown.amax(1) - shown.amin(1)) > 1e-6
    assert colourful[0, 8:12, 20:24].all()
    assert not colourful[0, 20:].any() and not colourful[1].any()
    grid(shown)
    with pytest.raises(ValueError, match="one for each image"):
        heatmap_over(images(2), maps[:1])
    with pytest.raises(ValueError, match="non-negative"):
        heatmap_over(images(2), maps - 1)


# --------------------------------------------------------------------------------------- curves

PANEL = Panel(
    "Loss",
    {"eps": ([1, 2, 3], [3, 2, 1.0]), "v": ([1, 2, 3], [3, 2, 1.1], [2, 1, 0], [4, 3, 2])},
    "images seen",
    "mean squared error",
    references={"floor": 0.5},
)


def test_curves_look_the_same_in_any_session():
    plain = curves(PANEL._replace(log_x=True, log_y=True))
    assert plain.size == (1120, 480)
    with matplotlib.rc_context({"font.size": 40, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        again = curves(PANEL._replace(log_x=True, log_y=True))
        assert dict(matplotlib.rcParams) == before
    assert plain.tobytes() == again.tobytes()


def test_curves_draw_bands_names_and_references():
    bare = Panel("Loss", {"eps": ([1, 2, 3], [3, 2, 1.0])})
    whole = np.asarray(curves(bare))
    blue = [0, 0x72, 0xB2]
    assert (whole == blue).all(-1).sum() > 300  # the line and its name, in its colour
    for changed in (
        bare._replace(series={"": ([1, 2, 3], [3, 2, 1.0])}),
        bare._replace(series={"eps": ([1, 2, 3], [3, 2, 1.0], [2, 1, 1], [3, 3, 2])}),
        bare._replace(references={"floor": 1.5}),
        bare._replace(y="lower is better"),
    ):
        assert not np.array_equal(np.asarray(curves(changed)), whole)


@pytest.mark.parametrize("top", [30, 500, 1e8, 1e16])
def test_logarithmic_axes_have_a_few_ticks_over_any_range(top):
    axis = Figure().subplots()
    charts._draw_panel(axis, Panel("", {"a": ([1, 2], [1, top])}, log_y=True))
    low, high = axis.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in axis.get_yticks()) <= 12


def test_curves_refuse_ragged_lines():
    for line in (([1, 2], [1]), ([], []), ([1], [1], [1])):
        with pytest.raises(ValueError, match=r"line 'a' must be \(x, y\) or"):
            curves(Panel("", {"a": line}))
    with pytest.raises(ValueError, match="at least one Panel"):
        curves()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=7))
def test_names_keep_their_order_and_distance(heights):
    moved = charts._spread(heights, 10)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = np.diff([moved[i] for i in order])
    assert (steps > 9.5).all()
    assert np.mean(moved) == pytest.approx(np.mean(heights))
    if all(step > 10 for step in np.diff(sorted(heights))):
        assert moved == heights


def seen_without_green_cones(colours):
    """Okabe and Ito's purpose: Machado et al. 2009, deuteranopia, as CIE L*a*b*."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    machado = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = (linear @ np.transpose(machado)).clip(0, 1) @ np.transpose(to_xyz)
    f = np.cbrt((xyz / [0.9505, 1, 1.089]).clip(1e-4))
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def closest(colours):
    seen = seen_without_green_cones(colours)
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)
    return apart[~np.eye(len(seen), dtype=bool)].min()


def test_colours_stay_apart_for_colour_blind_readers():
    assert closest(plot.COLOURS) > 12
    assert closest(["#d62728", "#8c564b", "#2ca02c"]) < 12  # matplotlib's red, brown and green


# ---------------------------------------------------------------------------------------- files


def chunks(png):
    """Names of the chunks of a PNG."""
    names, at = [], 8
    while at < len(png):
        names.append(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return set(names)


def test_saved_files_are_always_the_same(tmp_path):
    for name, make in {"g": lambda: grid(images(3), ["a"] * 3), "c": lambda: curves(PANEL)}.items():
        first = save(make(), tmp_path / f"{name}1.png").read_bytes()
        dated = make()
        dated.info.update(dpi=(72, 72), Software="today", icc_profile=b"profile")
        assert save(dated, tmp_path / "new folder" / f"{name}2.png").read_bytes() == first
        assert chunks(first) == {b"IHDR", b"IDAT", b"IEND"}
        dated.save(tmp_path / "control.png", dpi=(72, 72))
        assert chunks((tmp_path / "control.png").read_bytes()) > chunks(first)
    loaded = Image.open(tmp_path / "g1.png")
    assert np.array_equal(np.asarray(loaded), np.asarray(grid(images(3), ["a"] * 3)))
    loaded.close()
    with pytest.raises(ValueError, match="must end in .png, got 'a.jpg'"):
        save(grid(images(1)), tmp_path / "a.jpg")


def test_a_full_disk_costs_nothing(tmp_path, monkeypatch):
    target = save(grid(images(1)), tmp_path / "figure.png")
    before = target.read_bytes()

    def half(self, file, *arguments, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space left"):
        save(grid(images(2)), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def read_gif(path):
    with Image.open(path) as gif:
        looped, shown, times = gif.info["loop"], [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            times.append(gif.info["duration"])
            shown.append(np.asarray(gif.convert("RGB")).astype(int))
    return looped, shown, times


def test_animation_loops_and_rests_on_the_last_frame(tmp_path):
    batches = [images(2, 16, seed) for seed in range(6)]
    looped, shown, times = read_gif(animate(batches, tmp_path / "a.gif", fps=10))
    assert looped == 0 and times == [100] * 5 + [2000]
    for frame, batch in zip(shown, batches, strict=True):
        expected = np.asarray(grid(batch).reduce(2)).astype(int)
        assert np.abs(frame - expected).mean() < 12
        assert (frame[0] == 255).all()  # white stays white
    assert np.abs(shown[0] - shown[1]).mean() > 30
    first, again = (animate(batches, tmp_path / name).read_bytes() for name in ("a.gif", "b.gif"))
    assert first == again


def test_animation_of_a_trajectory_stays_small(tmp_path):
    path = frames(30, batch=8, size=32)
    path[-1] = path[-1]._replace(x=images(8, seed=5))  # to be told from the last but one
    file = animate(path, tmp_path / "t.gif", fps=12)
    assert 100_000 < file.stat().st_size <= 1_000_000
    looped, shown, times = read_gif(file)
    assert 10 < len(shown) < 30 and sum(times[:-1]) == pytest.approx(29 / 12 * 1000, rel=0.1)
    last = np.asarray(sheets._frame_picture(path[-1])).astype(int)
    assert np.abs(shown[-1] - last).mean() < 12


def test_animation_refuses_bad_frames(tmp_path):
    with pytest.raises(ValueError, match="frames of one size, got sizes"):
        animate([images(1), images(2)], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="frames of one size"):
        animate([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="fps must lie in"):
        animate([images(1)], tmp_path / "a.gif", fps=0)
    with pytest.raises(ValueError, match="end in .gif"):
        animate([images(1)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_plot_is_cheap_to_import_and_never_uses_pyplot():
    for module in (sheets, charts, typeset):
        tree = ast.parse(Path(module.__file__).read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("pyplot" in ast.unparse(node) for node in imports)
        uses = [node for node in imports if "matplotlib" in ast.unparse(node)]
        assert bool(uses) == (module is not typeset)
        assert not any(node in tree.body for node in uses)


def test_a_sheet_is_labelled_without_importing_matplotlib():
    """Whose import takes as long as drawing one small image does."""
    script = (
        "import sys, torch; from minidiff import plot; plot.grid(torch.zeros(1, 3, 8, 8), ['a'])\n"
        "print('matplotlib' in sys.modules); import matplotlib; print(matplotlib.get_data_path())"
    )
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imported, folder = told.splitlines()
    assert imported == "False"
    assert Path(typeset._font(20, False).path).is_relative_to(folder)
