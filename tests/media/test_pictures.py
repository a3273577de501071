"""Every sort of picture file either comes back as an upright RGB picture or is refused in one sentence."""

import io

import numpy as np
import pytest
from PIL import Image

from vtc.media import pictures
from vtc.media.pictures import load_picture


def saved(tmp_path, picture, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def corner(picture):
    return picture.getpixel((0, 0))


def test_plain_rgb_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = load_picture(saved(tmp_path, Image.fromarray(pixels), "a.png"))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize(
    ("mode", "color", "name", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("L", 128, "a.png", (128, 128, 128)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), "a.png", (255, 255, 255)),
        ("RGBA", (0, 0, 255, 128), "a.png", (127, 127, 255)),
        ("LA", (0, 0), "a.png", (255, 255, 255)),
    ],
)
def test_other_modes(tmp_path, mode, color, name, expected):
    picture = load_picture(saved(tmp_path, Image.new(mode, (8, 8), color), name))
    assert picture.mode == "RGB"
    assert corner(picture) == pytest.approx(expected, abs=1)


def test_cmyk_jpeg(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (32, 32), (200, 30, 30)).convert("CMYK"), "a.jpg", quality=95)
    assert corner(load_picture(path)) == pytest.approx((200, 30, 30), abs=6)


def test_palette_with_transparency(tmp_path):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((3, 3), 1)
    loaded = load_picture(saved(tmp_path, picture, "a.png", transparency=0))
    assert corner(loaded) == (255, 255, 255)
    assert loaded.getpixel((3, 3)) == (200, 100, 50)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16).repeat(4, 0)
    picture = load_picture(saved(tmp_path, Image.fromarray(levels), "a.png"))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("red", (0, 0, 10, 20))  # left edge; orientation 6 turns it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_picture(saved(tmp_path, picture, "a.png", exif=exif))
    assert loaded.size == (20, 40)
    assert loaded.getpixel((10, 2)) == (255, 0, 0)


def test_first_frame_of_an_animation_and_a_note(tmp_path, caplog):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert corner(load_picture(path)) == (255, 0, 0)
    assert "several frames" in caplog.text


def test_pil_pictures_are_taken_too_and_left_alone():
    picture = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    assert corner(load_picture(picture)) == (255, 255, 255)
    assert picture.mode == "RGBA"


def test_one_pixel():
    assert load_picture(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"these are words", "not a picture"),
        (cut(png()), "truncated or damaged"),
        (png()[:20], "is"),  # not even a whole header
        (png()[:200] + bytes(200) + png()[400:], "truncated or damaged"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, said):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_picture(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        load_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is not a file"):
        load_picture(tmp_path)


@pytest.mark.parametrize("picture", [Image.new("F", (4, 4)), Image.new("I", (4, 4), -5), Image.new("RGB", (1, 300))])
def test_undefined_ranges_and_slivers_are_refused(picture):
    with pytest.raises(ValueError, match=r"not defined|beyond 200"):
        load_picture(picture)


@pytest.fixture
def bound(monkeypatch):
    """Pictures count as too large from 60 x 60 pixels on."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 3600)


def halves(mode, size=(400, 200)):
    """Left half red (or dark), right half white, in any mode."""
    picture = Image.new("RGB", size, "white")
    picture.paste((204, 0, 0), (0, 0, size[0] // 2, size[1]))
    if mode == "I;16":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey)
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")] + [("CMYK", "jpg"), ("RGB", "webp")],
)
def test_large_pictures_are_shrunk_whatever_their_mode(tmp_path, bound, mode, kind):
    halves(mode).save(tmp_path / f"a.{kind}")
    picture = load_picture(tmp_path / f"a.{kind}")
    assert (picture.mode, picture.size) == ("RGB", (84, 42))
    expected = halves(mode).convert("RGB") if mode != "I;16" else halves("L").convert("RGB")
    found, meant = np.asarray(picture).astype(int), np.asarray(expected).astype(int)  # [42, 84, 3], [200, 400, 3]
    for x in (10, 70):  # away from the edge between the halves
        assert mode == "1" or np.abs(found[20, x] - meant[100, x * 400 // 84]).max() < 12


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, bound):
    halves("RGB").save(tmp_path / "a.jpg", exif=turned())
    assert pictures.open_large(tmp_path / "a.jpg").size == (100, 50)
    assert load_picture(tmp_path / "a.jpg").size == (42, 84)  # upright


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_large_pictures_come_upright(tmp_path, bound, kind):
    halves("RGB").save(tmp_path / f"a.{kind}", exif=turned())
    assert load_picture(tmp_path / f"a.{kind}").size == (42, 84)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_up_to_the_bound_nothing_changes(tmp_path, bound):
    Image.effect_noise((60, 60), 90).convert("RGB").save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as plain:
        assert load_picture(tmp_path / "a.jpg").tobytes() == plain.convert("RGB").tobytes()
    Image.effect_noise((60, 61), 90).convert("RGB").save(tmp_path / "a.jpg")
    assert load_picture(tmp_path / "a.jpg").size == (59, 60)


def test_a_hundred_megapixels(tmp_path, recwarn):
    Image.new("L", (10_000, 10_000), 90).save(tmp_path / "a.jpg")
    picture = load_picture(tmp_path / "a.jpg")
    assert (picture.size, picture.getpixel((0, 0))) == ((4096, 4096), (90, 90, 90))
    assert not recwarn.list
