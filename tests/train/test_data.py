"""The real loader on files made here, sound and damaged, and on MNIST where it is at hand."""

import hashlib
import os
import pickle
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from rfcalc.errors import DataError, MissingError, extra
from rfcalc.train import data as module
from rfcalc.train.data import DataSet, Split, folder, load, names, normalise, read_image

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
TRAIN, TEST = 40, 20


def write_idx(path, array, kind=8):
    """An IDX file: zeros, element type, number of dims, lengths, then the numbers, all big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, kind, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.write_bytes(header + array.astype({8: ">u1", 12: ">i4"}[kind]).tobytes())


def sample(count, seed, shape=(28, 28)):
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 10


@pytest.fixture
def small(monkeypatch):
    """`small(name)` lets a data set be as small as those made here; the rest of what is known of it stays."""

    def shrink(name):
        source = module._SOURCES[name]
        files = {file: (TRAIN if "train" in file else TEST, *rest) for file, (_, *rest) in source.files.items()}
        monkeypatch.setitem(module._SOURCES, name, replace(source, train=TRAIN, test=TEST, files=files, md5=()))

    return shrink


@pytest.fixture
def kmnist(small, tmp_path):
    """A sound KMNIST of few images; returns its raw folder."""
    small("kmnist")
    raw = tmp_path / "KMNIST" / "raw"
    for split, count, seed in (("train", TRAIN, 1), ("t10k", TEST, 2)):
        images, labels = sample(count, seed)
        write_idx(raw / f"{split}-images-idx3-ubyte", images)
        write_idx(raw / f"{split}-labels-idx1-ubyte", labels)
    return raw


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def failure(*arguments, **options):
    with pytest.raises(DataError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- sound files ---------------------------------------------------------------------------------------------


def test_idx_files_are_read_whole(kmnist, tmp_path):
    data = load("kmnist", data_dir=tmp_path, input_shape=GREY, download=False)
    images, labels = sample(TRAIN, 1)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert np.array_equal(data.train.labels.numpy(), labels)
    assert (len(data.train), len(data.test)) == (TRAIN, TEST)
    assert np.array_equal(data.test.images[:, 0].numpy(), sample(TEST, 2)[0])
    assert data.classes == tuple(datasets.KMNIST.classes)
    assert data.mean == pytest.approx(((images / 255).mean(),), abs=1e-12)
    assert data.std == pytest.approx(((images / 255).std(),), abs=1e-12)


def test_emnist_is_turned_upright(small, tmp_path):
    small("emnist")
    for split, count, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        images, labels = sample(count, seed)
        write_idx(tmp_path / f"EMNIST/raw/emnist-digits-{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"EMNIST/raw/emnist-digits-{split}-labels-idx1-ubyte", labels)
    data = load("emnist", data_dir=tmp_path, input_shape=GREY, download=False)
    assert np.array_equal(data.train.images[:, 0].numpy(), sample(TRAIN, 1)[0].transpose(0, 2, 1))
    assert data.classes == tuple("0123456789")


def test_qmnist_has_its_class_in_the_first_column(small, tmp_path):
    small("qmnist")
    for split, count, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        images, labels = sample(count, seed)
        history = np.arange(count * 7).reshape(count, 7)
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"QMNIST/raw/qmnist-{split}-labels-idx2-int", np.c_[labels, history], kind=12)
    data = load("qmnist", data_dir=tmp_path, input_shape=GREY, download=False)
    assert np.array_equal(data.test.labels.numpy(), sample(TEST, 2)[1])


@pytest.fixture
def cifar(small, tmp_path, monkeypatch):
    """A sound CIFAR-10 of few images; returns its folder."""
    small("cifar10")
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()

    def write(file, content):
        (home / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((home / file).read_bytes()).hexdigest()]

    def batch(file, count, seed):
        images, labels = sample(count, seed, (3, 32, 32))
        return write(file, {"data": images.reshape(count, -1), "labels": labels.tolist()})

    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [batch("data_batch_1", TRAIN, 1)])
    monkeypatch.setattr(kind, "test_list", [batch("test_batch", TEST, 2)])
    meta = write("batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return home


def test_cifar_has_its_channels_first(cifar, tmp_path):
    data = load("cifar10", data_dir=tmp_path, input_shape=COLOUR, download=False)
    images, _ = sample(TRAIN, 1, (3, 32, 32))
    assert np.array_equal(data.train.images.numpy(), images)
    assert data.train.images.is_contiguous()
    assert data.classes[3] == "class 3"
    assert data.mean == pytest.approx(tuple((images / 255).mean((0, 2, 3))), abs=1e-12)


def test_mnist_itself():
    root = Path(os.environ.get("RFCALC_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"MNIST is not in {root}; RFCALC_DATA names its folder")
    data = load("mnist", data_dir=root, input_shape=GREY, download=False)
    assert (data.train.images.shape, data.test.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert [f"{data.mean[0]:.4f}", f"{data.std[0]:.4f}"] == ["0.1307", "0.3081"]  # as everybody quotes them
    reference = datasets.MNIST(root, train=False, transform=transforms.ToTensor())
    image, label = reference[123]
    images, labels = data.test.batch(torch.tensor([5, 123]))
    assert torch.equal(images[1], image)
    assert labels[1] == label


def test_normalised_images_have_mean_0_and_deviation_1(cifar, tmp_path):
    data = load("cifar10", data_dir=tmp_path, input_shape=COLOUR, download=False)
    images = data.train.images / 255
    before = images.clone()
    normal = normalise(images, data)
    assert torch.equal(images, before)
    torch.testing.assert_close(normal, transforms.functional.normalize(images, data.mean, data.std))
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_a_set_moves_to_a_device_as_a_whole():
    split = Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    moved = DataSet("name", split, split, ("a", "b"), (0.5,), (0.5,)).to("meta")
    assert {part.device.type for one in (moved.train, moved.test) for part in (one.images, one.labels)} == {"meta"}
    assert (moved.name, moved.classes, moved.mean, moved.std) == ("name", ("a", "b"), (0.5,), (0.5,))


# --- where it looks ------------------------------------------------------------------------------------------


def test_the_folder_is_the_flags_then_the_environments_then_the_users(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.setenv("RFCALC_DATA", str(tmp_path / "named"))
    assert folder(tmp_path / "given") == tmp_path / "given"
    assert folder() == tmp_path / "named"
    monkeypatch.setenv("RFCALC_DATA", "")
    assert folder() == platformdirs.user_cache_path("rfcalc")


def test_the_environment_is_used(kmnist, tmp_path, monkeypatch):
    monkeypatch.setenv("RFCALC_DATA", str(tmp_path))
    assert len(load("kmnist", input_shape=GREY, download=False).test) == TEST


@pytest.mark.parametrize("name", [name for name in names() if name != "digits"])
@pytest.mark.parametrize("download", [True, False])
def test_neither_network_nor_data(name, download, tmp_path, offline):
    shape = module._SOURCES[name].shape
    message = failure(name, data_dir=tmp_path / "empty", input_shape=shape, download=download)
    assert message.startswith(f"{name}: no ")
    assert f" in {tmp_path / 'empty'}" in message
    assert ("the download failed (" in message and "no network here" in message) is download
    assert "--data-dir or RFCALC_DATA" in message
    assert "--dataset digits needs none of it" in message


def test_a_folder_that_cannot_be_written(tmp_path, offline):
    (tmp_path / "file").write_text("")
    assert f"in {tmp_path / 'file'}, and the download failed (" in failure(
        "mnist", data_dir=tmp_path / "file", input_shape=GREY
    )


# --- damaged files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("part", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length(kmnist, tmp_path, download, part, change):
    file = kmnist / part
    whole = file.read_bytes()
    file.write_bytes((whole + b"x")[: len(whole) + change])
    message = failure("kmnist", data_dir=tmp_path, input_shape=GREY, download=download)
    assert message.startswith(f"kmnist: {file} has {len(whole) + change:,} bytes; expected {len(whole):,}; delete ")


def test_a_file_with_a_broken_header(kmnist, tmp_path):
    file = kmnist / "t10k-images-idx3-ubyte"
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * 16 + whole[16:])
    message = failure("kmnist", data_dir=tmp_path, input_shape=GREY, download=False)
    assert message.startswith(f"kmnist: {file} begins with {'ff' * 16}; expected {whole[:16].hex()}; delete ")


def test_a_header_that_counts_otherwise(kmnist, tmp_path):
    write_idx(file := kmnist / "train-images-idx3-ubyte", sample(TRAIN * 2, 1, (28, 14))[0])
    message = failure("kmnist", data_dir=tmp_path, input_shape=GREY, download=False)
    assert message.startswith(f"kmnist: {file} begins with 00000803000000500000001c0000000e; expected ")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(TRAIN, 200), "has labels from 200 to 200; expected 0 to 9"),
        (np.arange(TRAIN) % 9, "has images of 9 classes; expected all 10"),
    ],
)
def test_labels_that_cannot_be(kmnist, tmp_path, labels, message):
    write_idx(kmnist / "train-labels-idx1-ubyte", labels)
    assert message in failure("kmnist", data_dir=tmp_path, input_shape=GREY, download=False)


def test_a_changed_byte_of_mnist(kmnist, tmp_path, small, monkeypatch):
    small("mnist")
    kmnist.parent.rename(tmp_path / "MNIST")
    raw = tmp_path / "MNIST" / "raw"
    parts = [part for count, seed in ((TRAIN, 1), (TEST, 2)) for part in sample(count, seed)]
    md5 = tuple(hashlib.md5(part.tobytes()).hexdigest() for part in parts)
    monkeypatch.setitem(module._SOURCES, "mnist", replace(module._SOURCES["mnist"], md5=md5))
    load("mnist", data_dir=tmp_path, input_shape=GREY, download=False)
    file = raw / "t10k-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[1234] ^= 1
    file.write_bytes(content)
    message = failure("mnist", data_dir=tmp_path, input_shape=GREY, download=False)
    assert message.startswith(f"mnist: {file} has the md5 {hashlib.md5(content[16:]).hexdigest()} behind its header; ")
    assert f"expected {md5[2]}; delete " in message


def test_a_changed_byte_of_cifar(cifar, tmp_path):
    file = cifar / "test_batch"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    message = failure("cifar10", data_dir=tmp_path, input_shape=COLOUR, download=False)
    expected = datasets.CIFAR10.test_list[0][1]
    found = hashlib.md5(content).hexdigest()
    assert message.startswith(f"cifar10: {file} has the md5 {found}; expected {expected}; delete ")


# --- what fits the design ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 32), (1, 28)])
def test_a_design_for_other_images(shape, tmp_path):
    shown = "x".join(map(str, shape))
    assert failure("mnist", data_dir=tmp_path, input_shape=shape) == (
        f"mnist: the images are 1x28x28, the design takes {shown}; expected a design for such images, or a data set "
        "that is scaled to it: digits or folder:PATH"
    )


def test_an_unknown_name():
    assert failure("nist", input_shape=GREY) == (
        "data set 'nist': unknown; expected one of mnist, fashion-mnist, kmnist, emnist, qmnist, cifar10, digits "
        "or folder:PATH"
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 24), (1, 8, 8), (1, 4, 4)])
def test_digits_take_the_designs_shape(shape):
    data = load("digits", input_shape=shape)
    assert data.train.images.shape == (1437, *shape)
    assert data.test.images.shape == (360, *shape)
    assert data.test.labels.bincount().min() >= 35  # stratified
    assert data.classes == tuple("0123456789")
    assert len(data.mean) == shape[0]
    assert data.train.images.max() > 200


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bundled = load_digits()
    data = load("digits", input_shape=(1, 8, 8))
    both = torch.cat((data.train.images, data.test.images))[:, 0].numpy()
    labels = torch.cat((data.train.labels, data.test.labels)).numpy()
    ours = sorted((label, image.tobytes()) for label, image in zip(labels, both, strict=True))
    scaled = np.round(bundled.images * (255 / 16)).astype(np.uint8)
    theirs = sorted((label, image.tobytes()) for label, image in zip(bundled.target, scaled, strict=True))
    assert ours == theirs


def test_digits_are_split_always_alike():
    digest = hashlib.md5(load("digits", input_shape=(1, 8, 8)).test.images.numpy().tobytes()).hexdigest()
    assert digest == "d3cc83dbdda49dadb57b878b23070518"


# --- image files ---------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Two classes of plain pictures in train/ and val/."""
    for split, count in (("train", 3), ("val", 2)):
        for label, colour in (("blue", (0, 0, 255)), ("red", (250, 0, 0))):
            for number in range(count):
                file = tmp_path / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (11 + number, 17), colour).save(file)
    return tmp_path


def noisy(file):
    Image.fromarray(sample(1, 0)[0][0]).save(file)
    return file


def test_a_folder_of_pictures(pictures):
    data = load(f"folder:{pictures}", input_shape=(3, 8, 6))
    assert data.classes == ("blue", "red")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.test.images.shape == (4, 3, 8, 6)
    assert data.test.images[-1, :, 3, 3].tolist() == [250, 0, 0]
    assert data.std[1] == 1  # nothing is green
    assert normalise(data.train.images / 255, data)[:, 1].count_nonzero() == 0
    assert load(f"folder:{pictures}", input_shape=GREY).train.images.shape == (6, 1, 28, 28)


def test_test_comes_before_val(pictures):
    (pictures / "val").rename(pictures / "test")
    assert len(load(f"folder:{pictures}", input_shape=GREY).test) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "val").rename(root / "valid"), "folder:{root}: no folder {root}/test; expected train/"),
        (lambda root: (root / "train").rename(root / "training"), "folder:{root}: no folder {root}/train; expected "),
        (
            lambda root: (root / "val" / "red").rename(root / "val" / "green"),
            "folder:{root}: class 'green' is in one of train/ and val/ only",
        ),
        (lambda root: [file.unlink() for file in (root / "val" / "red").iterdir()], "folder:{root}: FileNotFoundError"),
        (
            lambda root: (root / "val" / "red" / "0.png").write_bytes(b"not a picture"),
            "{root}/val/red/0.png: not an image that can be read: UnidentifiedImageError",
        ),
        (
            lambda root: os.truncate(noisy(root / "val" / "red" / "0.png"), 300),
            "{root}/val/red/0.png: not an image that can be read: OSError",
        ),
        (
            lambda root: Image.new("I;16", (9, 9), 4000).save(root / "train" / "red" / "0.png"),
            "{root}/train/red/0.png: pixels of more than 8 bits (mode I;16); expected 8 bits per channel",
        ),
    ],
    ids=["no test", "no train", "other classes", "empty class", "text", "cut off", "16 bits"],
)
def test_a_folder_that_is_not_a_data_set(pictures, spoil, message):
    spoil(pictures)
    assert failure(f"folder:{pictures}", input_shape=GREY).startswith(message.format(root=pictures))


def test_a_folder_of_one_colour(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "all").mkdir(parents=True)
        Image.new("L", (8, 8), 9).save(tmp_path / split / "all" / "0.png")
    assert "every training image is of one colour" in failure(f"folder:{tmp_path}", input_shape=(1, 8, 8))


def test_an_image_is_read_upright_and_in_the_designs_shape(tmp_path):
    pixels = np.zeros((4, 6), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right column
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png", (1, 6, 4))
    assert image.shape == (1, 6, 4)
    assert image[0].nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 8), (4, 8, 8)])
def test_shapes_that_no_image_is_scaled_to(shape):
    assert "expected 1xHxW for grey or 3xHxW for colour" in failure("digits", input_shape=shape)


def test_a_missing_library_is_one_line():
    with pytest.raises(MissingError) as caught, extra("train"):
        import a_library_nobody_has  # noqa: F401
    assert str(caught.value) == "a_library_nobody_has is not installed; get it by pip install 'rfcalc-torch[train]'"
