"""Every kind of input that is fuzzed, by its name on the command line."""

import pkgutil

from tests.fuzz.runner import Kind

# Where each is, so that only those that are asked for are imported: one needs PyTorch.
_PLACES = {
    "adapter": "adapter:Adapter",
    "base": "base:Base",
    "pth": "pth:Pth",
    "images": "images:Images",
    "folders": "folders:Folders",
    "dataset_json": "dataset_json:DatasetJson",
    "configs": "configs:Configs",
    "workdirs": "workdirs:Workdirs",
}
# Of all cases, how many are of each: those of workdirs and of folders take the longest.
SHARES = {
    "adapter": 0.14,
    "base": 0.14,
    "pth": 0.16,
    "images": 0.16,
    "folders": 0.1,
    "dataset_json": 0.1,
    "configs": 0.15,
    "workdirs": 0.05,
}
NAMES = tuple(_PLACES)


def kind(name: str) -> type[Kind]:
    """The kind of a name."""
    return pkgutil.resolve_name(f"tests.fuzz.{_PLACES[name]}")
