"""Every kind of input that is fuzzed, by its name on the command line."""

from tests.fuzz.adapter import Adapter
from tests.fuzz.base import Base
from tests.fuzz.configs import Configs
from tests.fuzz.dataset_json import DatasetJson
from tests.fuzz.folders import Folders
from tests.fuzz.images import Images
from tests.fuzz.pth import Pth
from tests.fuzz.runner import Kind
from tests.fuzz.workdirs import Workdirs

KINDS: dict[str, type[Kind]] = {
    "adapter": Adapter,
    "base": Base,
    "pth": Pth,
    "images": Images,
    "folders": Folders,
    "dataset_json": DatasetJson,
    "configs": Configs,
    "workdirs": Workdirs,
}
