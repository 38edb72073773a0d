"""Pictures: bad files are refused in one line, good ones come out the same everywhere."""

import io
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from selfloop.pictures import (
    OPERATIONS,
    Library,
    Limits,
    apply,
    decode,
    header,
    near_duplicates,
    perceptual_hash,
    read,
)
from selfloop.roles import SelfloopError
from selfloop.types import ImageOp, Media


def picture(seed=0, size=(48, 32)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def opened(path, **options):
    return Library(**options).open(read(path, limits=options.get("limits", Limits()))[0])


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# -- reading ------------------------------------------------------------------------------------


def test_a_file_is_read_by_reference(tmp_path):
    picture().save(tmp_path / "a.png")
    (media,) = read("a.png", root=tmp_path)
    path = tmp_path / "a.png"
    assert media.meta == {"uri": str(path), "size": path.stat().st_size}
    assert media.ops == ()
    assert np.array_equal(np.asarray(Library().open(media)), np.asarray(picture()))


def test_missing_empty_and_other_files_are_refused(tmp_path):
    with pytest.raises(SelfloopError, match="no such picture"):
        read(tmp_path / "none.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(SelfloopError, match=r"empty\.png: an empty file"):
        read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("<html>404 not found</html>")
    with pytest.raises(SelfloopError, match=r"text\.png: not a picture"):
        read(tmp_path / "text.png")


@pytest.mark.parametrize("address", ["http://x.org/a.png", "https://x.org/a.png", "s3://b/a.png"])
def test_nothing_is_fetched(address):
    with pytest.raises(SelfloopError, match="download it first; selfloop never fetches"):
        read(address)
    with pytest.raises(SelfloopError, match="never fetches"):
        Library().open(Media(sha256="0" * 64, meta={"uri": address}))


def test_a_truncated_jpeg_is_refused_and_not_painted_grey(tmp_path):
    picture(size=(200, 200)).save(tmp_path / "whole.jpg", quality=95)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    media = read(tmp_path / "cut.jpg")[0]
    with pytest.raises(SelfloopError, match=r"cut\.jpg: broken or cut off") as error:
        Library().open(media)
    one_line(error)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damaged_files_raise_nothing_but_one_line(form):
    sink = io.BytesIO()
    many = {"save_all": True, "append_images": [picture(1)]} if form in ("GIF", "TIFF") else {}
    picture().save(sink, format=form, **many)
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(sink.getvalue()[: rng.integers(1, len(sink.getvalue()) + 1)])
        for at in rng.integers(0, min(len(data), 200), 3):
            data[at] = rng.integers(256)
        try:
            _, count = header(bytes(data), "x")
            for page in range(count):
                assert decode(bytes(data), "x", page=page).mode == "RGB"
        except SelfloopError as error:
            assert str(error).startswith("x:") and "\n" not in str(error)


def test_a_picture_bomb_is_refused_from_its_header(tmp_path):
    def chunk(name, body):
        check = zlib.crc32(name + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + name + body + check

    side = (30_000).to_bytes(4, "big")  # 30,000 rows of zeros pack to about 100 kB
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(3751 * 3000)) for _ in range(10)) + packer.flush()
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + bytes([1, 0, 0, 0, 0]))
        + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000
    start = time.perf_counter()
    with pytest.raises(SelfloopError) as error:
        read(tmp_path / "bomb.png")
    assert time.perf_counter() - start < 0.5
    said = one_line(error)
    for piece in ("bomb.png", "30,000 x 30,000", "50,000,000", "Limits(pixels=900000000)"):
        assert piece in said
    # Raising the limit works, past Pillow's own.
    assert len(read(tmp_path / "bomb.png", limits=Limits(pixels=900_000_000))) == 1


def test_too_many_bytes_and_too_many_frames_are_refused(tmp_path):
    frames = [picture(i) for i in range(5)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(SelfloopError, match="5 pages are over the limit of 4"):
        read(tmp_path / "a.tif", limits=Limits(frames=4))
    assert len(read(tmp_path / "a.tif", pages="first", limits=Limits(frames=4))) == 1
    with pytest.raises(SelfloopError, match="bytes are over the limit of 10"):
        read(tmp_path / "a.tif", limits=Limits(bytes=10))


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_every_page_is_a_picture_of_its_own(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    pages = read(tmp_path / f"a.{suffix}")
    assert [m.meta["page"] for m in pages] == [0, 1, 2] and pages[0].meta["pages"] == 3
    assert len({m.sha256 for m in pages}) == 1 and len({m.identity for m in pages}) == 3
    library = Library()
    for media, frame in zip(pages, frames, strict=True):
        assert library.open(media).getpixel((5, 5)) == frame.getpixel((5, 5))
    # The first page is the same picture whether or not the others were asked for.
    assert read(tmp_path / f"a.{suffix}", pages="first")[0].identity == pages[0].identity


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG"])
def test_a_cut_off_file_never_just_has_fewer_pages(form):
    sink = io.BytesIO()
    picture(0).save(sink, format=form, save_all=True, append_images=[picture(1), picture(2)])
    whole = sink.getvalue()
    for share in (0.9, 0.7, 0.5, 0.3):
        with pytest.raises(SelfloopError):
            data = whole[: int(len(whole) * share)]
            for page in range(header(data, "x")[1]):
                decode(data, "x", page=page)


# -- decoding -----------------------------------------------------------------------------------


def test_exif_rotation_is_applied(tmp_path):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.save(tmp_path / "a.jpg", exif=exif, quality=95)
    seen = opened(tmp_path / "a.jpg")
    assert seen.size == (20, 40)
    assert seen.getpixel((10, 5))[1] < 60 and seen.getpixel((10, 35))[1] > 200


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_sixteen_bits_are_stretched_to_eight(tmp_path, suffix):
    values = np.linspace(1000, 3000, 32 * 16).reshape(16, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    seen = np.asarray(opened(tmp_path / f"a.{suffix}"))
    assert seen.shape == (16, 32, 3) and seen.min() == 0 and seen.max() == 255
    assert abs(int(seen[8, 0, 0]) - 128) <= 2


def test_float_and_constant_scans(tmp_path):
    values = np.array([[0.5, np.nan], [1.0, 0.75]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert np.asarray(opened(tmp_path / "f.tif"))[..., 0].tolist() == [[0, 0], [255, 128]]
    Image.fromarray(np.full((4, 4), 700, dtype=np.uint16)).save(tmp_path / "c.tif")
    assert np.asarray(opened(tmp_path / "c.tif")).max() == 0


def test_every_mode_becomes_rgb_and_transparency_is_white(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert opened(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)
    for mode in ("L", "LA", "P", "1"):
        picture().convert(mode).save(tmp_path / f"{mode}.png")
        assert opened(tmp_path / f"{mode}.png").mode == "RGB"
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert opened(tmp_path / "cmyk.jpg").getpixel((3, 3)) == (255, 255, 255)


# -- the library --------------------------------------------------------------------------------


def test_a_changed_file_is_named(tmp_path):
    picture(0).save(tmp_path / "a.bmp")
    media = read(tmp_path / "a.bmp")[0]
    picture(1).save(tmp_path / "a.bmp")  # of the same size in bytes
    with pytest.raises(SelfloopError, match=r"a\.bmp: the file has changed since it was indexed"):
        Library().open(media)


def test_stored_bytes_outlive_their_path(tmp_path):
    sink = io.BytesIO()
    picture().save(sink, format="PNG")
    library = Library(tmp_path / "images")
    media = library.add_bytes(sink.getvalue(), ".png")
    assert library.add_bytes(sink.getvalue()).sha256 == media.sha256
    assert [p.name for p in (tmp_path / "images").iterdir()] == [f"{media.sha256}.png"]
    (tmp_path / "images").rename(tmp_path / "moved")
    seen = Library(tmp_path / "moved").open(media)
    assert np.array_equal(np.asarray(seen), np.asarray(picture()))
    with pytest.raises(SelfloopError, match="no such picture"):
        Library().open(media)
    with pytest.raises(SelfloopError, match="has no folder"):
        Library().add_bytes(sink.getvalue())
    with pytest.raises(SelfloopError, match="not a picture"):
        library.add_bytes(b"nonsense")


def test_the_library_keeps_few_pixels_and_gives_copies(tmp_path):
    picture().save(tmp_path / "a.png")
    media = read(tmp_path / "a.png")[0]
    library = Library(keep_pixels=48 * 32 * 2)
    library.open(media).paste((0, 0, 0), (0, 0, 48, 32))
    assert np.asarray(library.open(media)).max() > 0
    views = [np.asarray(library.open(media.with_op("noise", 0.5, str(i)))) for i in range(5)]
    assert len(library._kept) == 2 and library._pixels == 48 * 32 * 2
    assert np.array_equal(views[0], np.asarray(library.open(media.with_op("noise", 0.5, "0"))))
    assert not np.array_equal(views[0], views[1])


# -- operations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_operation_follows_its_key_and_severity_0_changes_nothing(name):
    image = picture()
    before = np.asarray(image).copy()
    first = apply(image, ImageOp(name=name, severity=0.7, key="a"))
    again = apply(image, ImageOp(name=name, severity=0.7, key="a"))
    assert np.array_equal(np.asarray(first), np.asarray(again))
    assert first.size == image.size and first.mode == "RGB"
    none = apply(image, ImageOp(name=name, severity=0.0, key="a"))
    assert np.array_equal(np.asarray(none), before)
    assert np.array_equal(np.asarray(image), before), "the original must not change"
    if name != "page":
        assert not np.array_equal(np.asarray(first), before)
        for size in ((1, 1), (3, 200)):
            assert apply(picture(size=size), ImageOp(name=name, severity=1.0)).size == size


def test_an_unknown_operation_lists_the_known_ones():
    with pytest.raises(SelfloopError, match=r"no picture operation 'blurr'.*blur.*view"):
        apply(picture(), ImageOp(name="blurr", severity=0.0))


@pytest.mark.parametrize("name", ["noise", "diffusion"])
def test_noise_is_symmetric(name):
    # Mid-grey, so that clipping is symmetric too; the mean's standard error is about 0.2.
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    severity = 0.2 if name == "noise" else 0.05
    seen = np.asarray(apply(grey, ImageOp(name=name, severity=severity, key="k"))).astype(float)
    expected = 128.0
    if name == "diffusion":
        ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000)))
        expected *= np.sqrt(np.prod(1 - (ramp[:51] * (0.005 - 0.00001) + 0.00001)))
    assert abs(seen.mean() - expected) < 0.6
    if name == "noise":
        assert abs(seen.std() - 51) < 3  # a little is clipped


def test_severity_orders_the_damage():
    image = picture(size=(96, 96))
    before = np.asarray(image).astype(float)
    for name in ("blank", "noise", "diffusion", "lowres", "blur", "pixelate", "mask"):
        damage = [
            np.abs(np.asarray(apply(image, ImageOp(name=name, severity=s))).astype(float)
                   - before).mean() for s in (0.1, 0.5, 1.0)
        ]
        assert damage == sorted(damage) and damage[0] < damage[2], name
    gone = np.asarray(apply(image, ImageOp(name="blank")))
    assert (gone == 128).all()


def test_a_view_is_gentle_and_fast():
    image = picture(size=(48, 48))
    before = np.asarray(image).astype(float)
    seen = np.asarray(apply(image, ImageOp(name="view", severity=0.3, key="k"))).astype(float)
    assert np.corrcoef(before.ravel(), seen.ravel())[0, 1] > 0.8
    start = time.perf_counter()
    for i in range(300):
        apply(image, ImageOp(name="view", severity=0.5, key=str(i)))
    assert (time.perf_counter() - start) / 300 < 2e-3  # about 0.1 ms on an idle machine


# -- likeness -----------------------------------------------------------------------------------


def test_look_alikes_are_found():
    a, b = picture(1, (64, 64)), picture(2, (64, 64))
    hashes = [perceptual_hash(p) for p in (
        a, b, apply(a, ImageOp(name="brightness", severity=0.3, key="k")), a.resize((80, 80)))]
    assert near_duplicates(hashes) == [0, 1, 0, 0]


def test_clusters_equal_the_slow_definition():
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 12)
    hashes = [int(seeds[i % 12]) ^ (1 << int(rng.integers(64))) ^ (1 << int(rng.integers(64)))
              for i in range(150)]
    label = list(range(150))
    for i in range(150):
        for j in range(i):
            if (hashes[i] ^ hashes[j]).bit_count() <= 3:
                old, new = label[i], label[j]
                label = [new if one == old else one for one in label]
    order = {}
    assert near_duplicates(hashes, 3) == [order.setdefault(one, len(order)) for one in label]
    assert near_duplicates([]) == []
