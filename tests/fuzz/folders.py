"""Folder data sets with something wrong in them, opened as a run opens them.

The oracle lists and reads the files anew, with Pillow and NumPy: every sample of both splits must
be what its files say, and none may be missing. npy files have no checksums, so that another value
in one is what it says; PNGs have.
"""

import collections
import io
import json
import os
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from talora_jax import config as config_lib
from talora_jax.data import open_dataset
from talora_jax.data.survey import survey
from tests.fuzz import images, mutate
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial

_TASKS = ("semantic", "depth", "normals", "edges")
_CLOSE = 1e-4  # what normals in fixed point and their lengths in float32 differ by
_SIZE = (6, 8)
_STEMS = ("0", "1", "b/2", "é")
_LEFT_OVER = (".DS_Store", "Thumbs.db", ".hidden.png", "desktop.ini")
_ODD_NAMES = (
    "x.txt", "x", "noise.gif", "x.npz", "x.PNG", "0.jpg", "0.PNG", " 0.png", "0 .png", "é.jpg",
    "e\u0301.png", "\x1b[31m.png", "two\nlines.png", "n" * 240 + ".png", "0.npy", "b.png", "x.heic",
    *_LEFT_OVER,
)  # fmt: skip


class Folders:
    def __init__(self, folder: Path):
        del folder
        rng = np.random.default_rng(0)
        self._files: dict[str, bytes] = {}
        for stem in _STEMS:
            labels = rng.integers(0, 3, _SIZE).astype(np.uint8)
            labels[0, :3] = 0, 1, 2
            normals = np.array([[0, 0, -1], [0, -0.6, -0.8], [-1, 0, 0]], np.float32)[labels]
            image = rng.integers(0, 256, (*_SIZE, 3), np.uint8)
            self._files[f"image/{stem}.png"] = encoded(image)
            self._files[f"semantic/{stem}.png"] = encoded(labels)
            self._files[f"depth/{stem}.npy"] = npy((1 + labels).astype(np.float32))
            self._files[f"normals/{stem}.npy"] = npy(normals)
        self._files["dataset.json"] = json.dumps({"class_names": ["a", "b", "c"]}).encode()

    def trial(self, rng: random.Random, place: Path) -> Trial:
        root = place / "data"
        files = dict(self._files)
        if rng.random() < 0.3:
            del files["dataset.json"]
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        prepared = rng.random() < 0.15
        damage = () if prepared else (
            self._bytes, self._bytes, _other_array, _other_array, _other_image, _lost, _added,
            _link, _moved, _no_file, _settings,
        )  # fmt: skip
        how = rng.choices(damage, k=rng.choice((1, 1, 1, 2))) if damage else ()
        what = "; ".join(f"{one.__name__}: {one(rng, root)}" for one in how) or "what is prepared"
        tasks = tuple(rng.sample(_TASKS, rng.randint(1, 3)))
        config = config_lib.default()
        config.data.update(name="folder", path=str(root), dir=str(place / "kept"), image_size=None)

        def act() -> tuple[tuple[str, ...], dict[str, list[dict[str, np.ndarray]]]]:
            if prepared:
                open_dataset(config.data, tasks)
                path = rng.choice(sorted(p for p in (place / "kept").rglob("*") if p.is_file()))
                path.write_bytes(mutate.damaged(path.read_bytes(), rng)[1])
            dataset = open_dataset(config.data, tasks)
            survey(dataset, tasks)
            return dataset.class_names, {
                split: [source[i] for i in range(len(source))]
                for split, source in dataset.splits.items()
            }

        def judge(given: tuple[tuple[str, ...], dict[str, list[dict[str, np.ndarray]]]]) -> str:
            class_names, found = given
            wanted = says(root, tasks)
            left = list(wanted.values())
            for sample in (sample for samples in found.values() for sample in samples):
                same = [x for x in left if _same(sample, x)]
                if not same:
                    raise Silent(f"a sample is none of the files': {_summary(sample, left)}")
                left = [x for x in left if x is not same[0]]
            if left and not (root / "dataset.json").exists():
                raise Silent(f"{len(left)} of {len(wanted)} samples are in no split")
            if "semantic" in tasks and not (root / "dataset.json").exists():
                highest = max(x["semantic"].max() for x in wanted.values())
                if class_names != tuple(f"class {i}" for i in range(highest + 1)):
                    raise Silent(f"the classes are {class_names}, the highest label {highest}")
            whole = says_of(self._files, tasks)
            alike = whole.keys() == wanted.keys() and all(
                _same(whole[stem], wanted[stem]) for stem in whole
            )
            return SAME if alike else ACCEPTED

        return Trial(f"{', '.join(tasks)}: {what}", act, judge)

    def _bytes(self, rng: random.Random, root: Path) -> str:
        path = _some(rng, root)
        what, data = mutate.damaged(path.read_bytes(), rng, 128)
        path.write_bytes(data)
        return f"{path.relative_to(root)} {what}"


def says_of(files: dict[str, bytes], tasks: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """What the samples of these files are."""
    samples: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    for name, data in files.items():
        folder, _, rest = name.partition("/")
        stem, suffix = os.path.splitext(rest)
        if folder == "image" or folder in tasks or (folder == "semantic" and "edges" in tasks):
            read = _READ[folder](data, suffix.lower())
            samples[unicodedata.normalize("NFC", stem)][folder] = read
    return {stem: _with_edges(x, tasks) for stem, x in samples.items()}


def says(root: Path, tasks: tuple[str, ...]) -> dict[str, dict[str, np.ndarray]]:
    """As `says_of`, of the files that are there; what cannot be read is None, and fits nothing."""
    files: dict[str, bytes] = {}
    for folder in ("image", *_TASKS):
        for path in sorted(root.glob(f"{folder}/**/*")) if (root / folder).is_dir() else []:
            hidden = path.name.startswith(".") or path.name in _LEFT_OVER
            if path.is_file() and not hidden and path.suffix.lower() in (".png", ".npy", ".jpg"):
                name = path.relative_to(root).as_posix()
                files[name] = path.read_bytes()
    found = says_of(files, tasks)
    settings = _json_of(root)
    if settings.get("ignore_label") is not None and "semantic" in tasks:
        for name, data in files.items():
            stem, suffix = os.path.splitext(name.partition("/")[2])
            if name.startswith("semantic/"):
                sample = found[unicodedata.normalize("NFC", stem)]
                sample["semantic"] = _labels(data, suffix.lower(), settings["ignore_label"])
                sample.update(_with_edges({**sample}, tasks))
    return found


def _json_of(root: Path) -> dict[str, Any]:
    try:
        return json.loads((root / "dataset.json").read_bytes())
    except (OSError, ValueError):
        return {}


def _with_edges(sample: dict[str, Any], tasks: tuple[str, ...]) -> dict[str, Any]:
    """The targets wanted, edges of labels among them."""
    labels = sample.get("semantic")
    if "edges" in tasks and isinstance(labels, np.ndarray):
        sample["edges"] = _edges(labels)
    return {name: x for name, x in sample.items() if name == "image" or name in tasks}


def _edges(labels: np.ndarray) -> np.ndarray:
    """Where a label is beside another one, pixel by pixel."""
    height, width = labels.shape
    edges = np.full((height, width, 1), -1, np.float32)
    for y in range(height):
        for x in range(width):
            near = [
                labels[j, i]
                for j, i in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                if 0 <= j < height and 0 <= i < width
            ]
            if labels[y, x] >= 0:
                edge = any(n >= 0 and n != labels[y, x] for n in near)
                edges[y, x] = 1 if edge else -1 if min(near) < 0 else 0
    return edges


def _image_of(data: bytes, suffix: str) -> np.ndarray | None:
    if suffix != ".npy":
        if data.startswith(b"\x89PNG") and not images.png_is_whole(data):
            return None
        return images.says_of(data)
    values = _npy_of(data)
    if values is None or values.ndim != 3 or values.shape[2] != 3:
        return None
    return values if values.dtype == np.uint8 else images.eight_bits(values, None)


def _labels(data: bytes, suffix: str, ignored: int | None = None) -> np.ndarray | None:
    values = _npy_of(data) if suffix == ".npy" else _png_of(data)
    if values is None or values.dtype.kind not in "biu" or values.ndim != 2:
        return None
    if ignored is None and suffix != ".npy" and values.dtype.itemsize == 1:
        ignored = 255
    values = values.astype(object)
    values[values == ignored] = -1
    if values.min() < -1 or values.max() >= 2**31:
        return None
    return values.astype(np.int32)


def _depth_of(data: bytes, suffix: str) -> np.ndarray | None:
    values = _npy_of(data) if suffix == ".npy" else _png_of(data)
    if values is None:
        return None
    if suffix != ".npy":
        if values.dtype == np.uint8 or values.dtype == bool or values.ndim != 2:
            return None
        return (values / 1000).astype(np.float32)[..., None] if values.max() < 65535 else None
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind != "f":
        return None
    values = np.where(np.isfinite(values), values, 0)
    if values.min() < 0 or values.max() > 3.4e38:
        return None
    return values.astype(np.float32)[..., None]


def _normals_of(data: bytes, suffix: str) -> np.ndarray | None:
    values = _npy_of(data) if suffix == ".npy" else _png_of(data)
    if values is None or values.ndim != 3 or values.shape[2] != 3:
        return None
    if suffix != ".npy":
        values = values / 127.5 - 1
    elif values.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        values = np.where(np.isfinite(values), values, 0).astype(np.float64)
        length = np.sqrt((values**2).sum(-1, keepdims=True))
        valid = (length > 0.5) & (length < 1.5)
        return np.where(valid, values / np.where(valid, length, 1), 0).astype(np.float32)


_READ = {"image": _image_of, "semantic": _labels, "depth": _depth_of, "normals": _normals_of}


def _png_of(data: bytes) -> np.ndarray | None:
    if data.startswith(b"\x89PNG") and not images.png_is_whole(data):
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(image)
    except Exception:
        return None


def _npy_of(data: bytes) -> np.ndarray | None:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        return None
    return values if isinstance(values, np.ndarray) and values.size else None


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if a.keys() != b.keys():
        return False
    for name, x in a.items():
        y = b[name]
        if y is None or x.shape != y.shape or x.dtype != y.dtype:
            return False
        if name == "normals":
            # Whether a length is within bounds may be a matter of rounding.
            if (np.abs(x - y) > _CLOSE).any(axis=-1).sum() > 0:
                return False
        elif x.tobytes() != y.tobytes():
            return False
    return True


def _summary(sample: dict[str, np.ndarray], left: list[dict]) -> str:
    told = [f"{name} {x.dtype}{list(x.shape)} {x.ravel()[:6]}" for name, x in sample.items()]
    near = [
        sum(name in other and other[name] is not None and _same({name: x}, {name: other[name]})
            for name, x in sample.items())
        for other in left
    ]  # fmt: skip
    return f"{told}, of which {near} fit the files of {[sorted(x) for x in left]}"[:1000]


def encoded(values: np.ndarray, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **how)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def _some(rng: random.Random, root: Path, folders: tuple[str, ...] = ("",)) -> Path:
    found = [p for p in sorted(root.rglob("*")) if p.is_file()]
    found = [p for p in found if p.relative_to(root).as_posix().startswith(folders)]
    return rng.choice(found or [root / "image" / "0.png"])


def _other_array(rng: random.Random, root: Path) -> str:
    """A target with other values, dtypes, shapes."""
    folder = rng.choice(("semantic", "depth", "normals", "image"))
    path = _some(rng, root, (f"{folder}/",))
    values = np.random.default_rng(rng.getrandbits(32))
    shape = rng.choice(
        ((6, 8), (6, 8), (6, 8, 1), (6, 8, 3), (8, 6), (6, 7), (3, 6, 8), (0, 8), ())
    )
    if folder in ("normals", "image") and rng.random() < 0.7:
        shape = (6, 8, 3)
    dtype = rng.choice(
        ("u1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "?", ">f4", "O", "c8", "U2")
    )
    top = rng.choice((1, 2, 3, 200, 300, 70000, 2**33, 2**63, 1e39, 1e300))
    x = np.asarray(values.uniform(0, top, shape))
    odd = rng.choice((None, None, -1, -2, 0, 255, 1e5, np.nan, np.inf, -np.inf, -0.0))
    if odd is not None and x.size:
        x[tuple(0 for _ in shape)] = odd
    if folder == "normals" and shape and rng.random() < 0.7:
        x = -x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-9) * rng.choice((1, -1, 0.7, 2))
    with np.errstate(all="ignore"):
        try:
            x = x.astype(dtype)
        except (ValueError, TypeError, OverflowError):
            x = x.astype("f8")
    path.unlink()
    path = path.with_suffix(".npy")
    path.write_bytes(npy(x))
    if rng.random() < 0.1:
        with open(path, "wb") as file:
            np.savez(file, x)
    return f"{path.relative_to(root)}: {dtype} {shape} up to {top}, {odd}"


def _other_image(rng: random.Random, root: Path) -> str:
    """A file of Pillow's with another mode, size, format, orientation."""
    folder = rng.choice(("semantic", "depth", "normals", "image"))
    path = _some(rng, root, (f"{folder}/",))
    values = np.random.default_rng(rng.getrandbits(32))
    size = rng.choice(((6, 8), (6, 8), (6, 8), (8, 6), (6, 9), (1, 1)))
    mode = rng.choice(("1", "L", "P", "I;16", "RGB", "RGBA", "LA", "CMYK"))
    top = rng.choice((2, 3, 256))
    if mode == "I;16":
        image = Image.fromarray(values.integers(0, rng.choice((3, 9000, 65536)), size, np.uint16))
    elif mode == "P":
        image = Image.fromarray(values.integers(0, top, size, np.uint8)).convert("P")
        image.putpalette(values.integers(0, 256, 768, np.uint8).tobytes())
    else:
        image = Image.fromarray(values.integers(0, top, (*size, 3), np.uint8)).convert(mode)
    kind, suffix = rng.choice((("PNG", ".png"),) * 3 + (("JPEG", ".jpg"), ("GIF", ".png")))
    how = {}
    if rng.random() < 0.3:
        how["exif"] = Image.Exif()
        how["exif"][ExifTags.Base.Orientation] = rng.randint(0, 9)
    path.unlink()
    path = path.with_suffix(rng.choice((suffix, suffix, ".png", ".PNG")))
    try:
        image.save(path, kind, **how)
    except (OSError, ValueError):
        image.convert("RGB").save(path, kind, **how)
    return (
        f"{path.relative_to(root)}: {kind} {mode} {size}, exif {list(how.get('exif', {}).values())}"
    )


def _lost(rng: random.Random, root: Path) -> str:
    if rng.random() < 0.3:
        folder = root / rng.choice(("image", "semantic", "depth", "normals"))
        if folder.is_dir():
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            if rng.random() < 0.5:
                folder.rmdir()
        return f"{folder.name}/"
    path = _some(rng, root)
    path.unlink(missing_ok=True)
    return str(path.relative_to(root))


def _added(rng: random.Random, root: Path) -> str:
    folder = rng.choice(
        ("image", "semantic", "depth", "normals", "", "other", "image/b", "saliency")
    )
    name = rng.choice(_ODD_NAMES)
    path = root / folder / name
    if path.is_dir() or path.parent.is_file():
        return "nothing"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.choice((b"", b"x", _some(rng, root).read_bytes())))
    return f"{folder}/{name!r}"


def _link(rng: random.Random, root: Path) -> str:
    path = _some(rng, root)
    target = rng.choice(
        (
            path,
            _some(rng, root),
            root / "nowhere",
            root,
            root / "image",
            Path("/dev/zero"),
            "\x1b[2J",
        )
    )
    where = rng.choice(
        (path, root / "image" / "more", root / "semantic" / "b" / "more", root / "depth")
    )
    if where.is_dir() or not where.parent.is_dir():
        return "nothing"
    where.unlink(missing_ok=True)
    where.symlink_to(target)
    return f"{where.relative_to(root)} to {target}"


def _moved(rng: random.Random, root: Path) -> str:
    path = _some(rng, root)
    to = rng.choice(("x", "\udcff", "É", path.stem + " ", path.stem.upper() + "A", "b"))
    new = path.with_name(f"{to}{rng.choice((path.suffix, path.suffix.upper(), '.tif'))}")
    if not path.is_file() or new.is_dir():
        return "nothing"
    path.rename(new)
    return f"{path.relative_to(root)} to {new.name!r}"


def _no_file(rng: random.Random, root: Path) -> str:
    """A folder, a pipe, an empty file in its place."""
    path = _some(rng, root)
    path.unlink(missing_ok=True)
    what = rng.choice(("folder", "pipe", "empty", "self"))
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    else:
        path.symlink_to(path.name)
    return f"{path.relative_to(root)}: {what}"


def _settings(rng: random.Random, root: Path) -> str:
    """Stands in dataset.json what can be told of these files, or not."""
    told = rng.choice(
        (
            {"class_names": ["a", "b"]},
            {"class_names": list("abcdefgh")},
            {"ignore_label": rng.choice((0, 1, 2, 7, 255))},
            {"splits": {"train": ["0", "1"], "val": ["b/2"]}},
            {"splits": {"train": ["0"], "val": ["é"]}},
            {"splits": {"train": ["0"], "val": ["e\u0301"]}},
            {"splits": {"train": ["0", "1", "b/2"], "val": ["no"]}},
            {"splits": {"train": ["0.png"], "val": ["1"]}},
        )
    )
    path = root / "dataset.json"
    if path.is_symlink() or path.is_dir():
        return "nothing"
    if not path.exists() or path.is_file():
        path.write_text(json.dumps(told))
    return str(told)
