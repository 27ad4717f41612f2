"""The console command: its help, one line for a mistake, configs by name, and what is installed."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import talora_jax
from talora_jax import config as config_lib
from talora_jax.command_line import load_config
from talora_jax.commands import COMMANDS, main
from talora_jax.errors import UserError

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def run(capsys):
    """Runs `talora_jax …` and returns what it prints."""

    def run(*arguments):
        try:
            main(arguments)
        except SystemExit as stop:
            assert not stop.code
        return capsys.readouterr().out

    return run


def refused(*arguments):
    with pytest.raises(UserError) as error:
        main(arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_the_help_lists_every_command_with_a_line_each(run):
    text = run("--help")
    assert text == run() == run("-h")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(COMMANDS)
    assert list(COMMANDS) == (
        "train evaluate predict describe sweep report "
        "masks demo describe-data download export adapter push rooms convert".split()
    )
    assert all(len(summary) > 10 for _, summary in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(run, name):
    text = run(name, "--help")
    assert text.startswith("usage: ") and len(text.splitlines()) > 5
    assert "None" not in text and ("--help" in text or "-h" in text)


def test_the_version(run):
    assert run("--version") == f"talora_jax {talora_jax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "command: unknown 'trian', expected one of train, .*; did you mean train?"),
        ("xyz", "command: unknown 'xyz', expected one of train, .*convert"),
        ("train --wrkdir x", "unexpected argument '--wrkdir'; did you mean --workdir?"),
        ("predict --config x", "unexpected argument '--config'; see --help"),
        ("--wrkdir=x", "unexpected argument '--wrkdir=x'; did you mean --workdir?"),
        ("--mode predit", "--mode: unknown 'predit', .*; did you mean predict?"),
        ("report --basline x", "unexpected argument '--basline'; did you mean --baseline?"),
        ("export a b --parts progam", "--parts: unknown 'progam', .*; did you mean program?"),
        ("convert --download vit_bb", "--download: unknown 'vit_bb', .*; did you mean vit_b?"),
        ("convert a --taks b", "unexpected argument '--taks'; did you mean --tasks?"),
        ("masks --out a --points-per-sid 3", "unexpected .*; did you mean --points-per-side?"),
        ("rooms a --frame 3", "unexpected argument '--frame'; did you mean --frames?"),
        ("train --config rooms_tiny", "--workdir is missing: where should the run leave .*"),
        ("train --workdir x", "--config is missing: name a file in configs/"),
        (
            "train --workdir x --config.steps=2",
            "'--config.steps=2' changes a field of --config, .*",
        ),
        ("predict --images x --out y", "predict needs --workdir or --adapter, one of them"),
        ("--mode train --split all", "--split is for --mode evaluate, and --mode is train"),
        ("--images x", "--images is for --mode predict, and --mode is train"),
        (
            "--mode predict --config rooms_tiny",
            "predict takes the config that the run was trained with, and no --config",
        ),
        (
            "describe --config rooms_tiny --workdir x",
            "describe needs --config, a file in configs/, or --workdir of a run: one of them",
        ),
        ("evaluate --workdir nowhere", "nowhere holds no run: nowhere/config.json is missing"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_the_nearest_name(arguments, message):
    assert re.fullmatch(message.replace("?", r"\?"), refused(*arguments.split()))


def test_images_are_given_after_one_flag_or_many(monkeypatch):
    def find_images(images, out):
        raise UserError(f"{images} {out}")

    monkeypatch.setattr("talora_jax.inference.to_files.find_images", find_images)
    flags = ["--adapter=x", "--images", "a", "b c", "--out", "o", "--images=d", "e", "--npy"]
    for command in (["predict"], ["--mode", "predict"]):
        assert refused(*command, *flags) == "['a', 'b c', 'd', 'e'] o"


def test_where_predictions_go_is_looked_at_first(tmp_path):
    (tmp_path / "file").touch()
    told = refused("predict", "--adapter=x", "--images=y", f"--out={tmp_path}/file/sub")
    assert told == f"--out: {tmp_path}/file is a file, expected a directory"


def test_the_package_is_the_command(start_python):
    process = start_python("-m", "talora_jax", "--help")
    assert process.communicate()[0].startswith("usage: talora_jax COMMAND")
    assert process.returncode == 0


def test_help_and_mistakes_need_no_jax():
    """In one process, so that nothing but the commands themselves can import it."""
    program = """
import sys
from talora_jax.commands import COMMANDS, main
from talora_jax.errors import UserError
import benchmarks.tpu

def run(*arguments):
    try:
        main(arguments)
    except (SystemExit, UserError):
        pass
    assert "jax" not in sys.modules, arguments

run("--help")
run("--version")
for name in COMMANDS:
    run(name, "--help")
run("--config=rooms_tiny", "--help")
for arguments in (
    ["--config=rooms_tiny"],
    ["--config=rooms_tiny", "--wrkdir=x"],
    ["--config=rooms_tinny", "--workdir=x"],
    ["--config=rooms_tiny", "--workdir=x", "--config.batchsize=4"],
    ["--config=rooms_tiny", "--workdir=x", "--config.batch_size=many"],
    ["--mode=evaluate", "--workdir=nowhere"],
    ["adapter", "nowhere"],
    ["sweep", "--config=rooms_tiny"],
):
    run(*arguments)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Configs by name, and overrides.


def test_a_config_is_found_by_path_or_by_name(tmp_path, monkeypatch):
    path = REPOSITORY / "configs" / "rooms_tiny.py"
    monkeypatch.chdir(tmp_path)
    expected = load_config(str(path)).to_dict()
    assert expected == load_config("rooms_tiny").to_dict() == load_config("rooms_tiny.py").to_dict()
    # A file that is there comes first.
    Path("rooms_tiny.py").write_text(path.read_text().replace("steps = 1000", "steps = 7"))
    assert load_config("rooms_tiny.py").steps == 7 and load_config("rooms_tiny").steps == 1000
    assert load_config("nyuv2:vit_h").model.size == "vit_h"
    assert load_config("nyuv2").model.size == load_config("nyuv2.py:vit_l").model.size == "vit_l"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("rooms_tinny", "rooms_tiny"),
        ("rooms_tinny.py", "rooms_tiny"),
        ("configs/rooms_tinny.py", "configs/rooms_tiny.py"),
        ("nowhere/rooms_tiny.py", "rooms_tiny"),
        ("configs/nyuv2_vit_l.py", "configs/nyuv2.py:vit_l"),
        ("nyuv2_vit_h", "nyuv2:vit_h"),
        ("configs/nyuv.py:vit_b", "configs/nyuv2.py:vit_b"),
    ],
)
def test_a_config_that_is_not_there_is_told_with_the_nearest_and_all_names(
    monkeypatch, name, nearest
):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError) as error:
        load_config(name)
    message = str(error.value)
    assert f"there is no file {name!r}" in message and len(message.splitlines()) == 1
    assert message.endswith(f"did you mean {nearest}?")
    assert "folder_vit_b, nyuv2, pascal_context_vit_l, rooms_tiny" in message


def test_a_config_that_takes_no_argument():
    with pytest.raises(UserError, match="^--config=rooms_tiny:vit_b: TypeError: get_config"):
        load_config("rooms_tiny:vit_b")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("init=run", "run"),
        ("best=semantic/miou", "semantic/miou"),
        ("data.dir=/records", "/records"),
        ("data.path=here", "here"),
        ("data.image_size=(24,32)", (24, 32)),
        ("data.class_names=('a', 'b')", ("a", "b")),
        ("data.class_names=traffic light, road", ("traffic light", "road")),
        ("data.depth_scale=1000", 1000.0),
        ("data.max_depth=80", 80.0),
        ("data.ignore_label=255", 255),
        ("data.intrinsics=(1.,1.,1.,1.)", (1.0, 1.0, 1.0, 1.0)),
        ("model.weights=sam.safetensors", "sam.safetensors"),
        ("adapter.blocks=-6", (-6,)),
        ("adapter.blocks=6,12", (6, 12)),
        ("adapter.extend=run", "run"),
        ("hosts.coordinator=auto", "auto"),
    ],
)
def test_fields_that_can_be_unset(override, value):
    field, _, text = override.partition("=")
    section, _, name = field.rpartition(".")
    assert field in config_lib.OPTIONAL

    def of(config):
        return config[section][name] if section else config[name]

    config = load_config("rooms_tiny", [f"--config.{override}"])
    assert of(config) == value and type(of(config)) is type(value)
    # Through a file and back, and over to None from either.
    assert of(config_lib.from_fields(config.to_dict())) == value
    unset = [f"--config.{override}", f"--config.{field}=None"]
    assert of(load_config("rooms_tiny", unset)) is None
    assert of(config_lib.from_fields(load_config("rooms_tiny", unset).to_dict())) is None
    # What means the same in older files, and on older command lines.
    empty = config_lib.OPTIONAL[field]
    assert of(load_config("rooms_tiny", [f"--config.{field}={empty}"])) is None
    fields = config.to_dict()
    holder = fields[section] if section else fields
    holder[name] = list(empty) if isinstance(empty, tuple) else empty
    assert of(config_lib.from_fields(fields)) is None


def test_every_field_that_is_none_can_be_unset():
    fields = config_lib.flat_fields(config_lib.default().to_dict())
    unset = {name.removeprefix("config.") for name, value in fields.items() if value is None}
    assert config_lib.OPTIONAL.keys() == unset | {"data.image_size"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.depth_scale=much", "data.depth_scale=much"),
        ("--config.data.ignore_label=1.5", "data.ignore_label=1.5"),
        ("--config.data.depth_scle=1", "no field depth_scle; did you mean depth_scale?"),
        ("--config.steps=None", "steps=None"),
        ("--config.steps.x=1", "no field x"),
        ("--config.learning_rate=1", "did you mean optimizer.learning_rate?"),
        ("--config.sched.rate=1", "no field sched"),
        ("--config.adapter.ranks[7]=1", "index out of range"),
        ("--confg.steps=1", "unexpected argument '--confg.steps=1'"),
        ("steps=1", "unexpected argument 'steps=1'"),
        ("steps=" + "1" * 1000, "unexpected argument 'steps=1"),
        ("--config.=1", "unexpected argument '--config.=1'"),
        ("--config.=a=b", "the config has no field"),
        (
            "--config.tasks={'depth': 1}",
            "config.tasks is \"{'depth': 1}\", expected values in brac",
        ),
        ("--config.data.class_names={}", "config.data.class_names is '{}', expected values in"),
    ],
)
def test_wrong_overrides_are_told_in_one_line(override, message):
    with pytest.raises(UserError) as error:
        load_config("rooms_tiny", [override])
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("c = config_lib.default()\n    c.adapter.rank = 1\n    return c", "did you mean ranks?"),
        ("c = config_lib.default()\n    c.steps = 'x'\n    return c", "Could not override field"),
        ("return 3", "its get_config gives int, expected a config made from"),
        ("return ml_collections.ConfigDict({'steps': 1})", "the config lacks accumulate; make it"),
        ("return ml_collections.ConfigDict({'step': 1})", "no field step; did you mean steps?"),
        ("raise RuntimeError('a' * 2000)", "RuntimeError: aaaa"),
        ("import sys\n    sys.exit(3)", "SystemExit: 3"),
        ("return (", "SyntaxError: '(' was never closed"),
    ],
)
def test_a_config_file_that_makes_no_config(tmp_path, program, told):
    path = tmp_path / "experiment.py"
    head = "import ml_collections\nfrom talora_jax import config as config_lib\n"
    path.write_text(f"{head}def get_config():\n    {program}\n")
    with pytest.raises(UserError) as error:
        load_config(str(path))
    text = str(error.value)
    assert text.startswith(f"--config={path}: ") and told in text
    assert len(text.splitlines()) == 1 and len(text) < 600


def test_overrides_in_all_their_forms(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "talora_jax.training.loop.train", lambda config, workdir, more_steps: seen.append(config)
    )
    main(
        ["--config.steps", "7", "--workdir", "x", "--config=rooms_tiny"]
        + ["--config.tasks", "('depth', 'edges')", "--config.augment.flip=False"]
        + ["--noconfig.host_metrics", "--config.data.path", "None"]
    )
    main(["train", "--config", "rooms_tiny", "--workdir=x", "--config.model.pixel_normalisation"])
    config, defaults = seen
    assert (config.steps, config.tasks, config.augment.flip) == (7, ("depth", "edges"), False)
    assert config.host_metrics is False and config.data.path is None
    assert defaults.model.pixel_normalisation is True and defaults.steps == 1000


def test_of_a_field_that_is_given_twice_the_last_counts():
    twice = ["tasks=depth", "tasks=('edges',)", "steps=2", "steps=3"]
    twice += ["adapter.blocks=None", "adapter.blocks=2", "data.path=here", "data.path=None"]
    config = load_config("rooms_tiny", [f"--config.{override}" for override in twice])
    assert (config.tasks, config.steps) == (("edges",), 3)
    assert (config.adapter.blocks, config.data.path) == ((2,), None)


# What setup.cfg says.


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def test_the_wheel_holds_every_package_and_the_configs(setup_cfg):
    listed = setup_cfg["options"]["packages"].split()
    found = [
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for name in ("talora_jax", "weights_convert")
        for path in (REPOSITORY / name).rglob("__init__.py")
    ]
    assert listed == sorted({*found, "talora_jax.configs"})
    scripts = setup_cfg["options.entry_points"]["console_scripts"].split()
    assert scripts == ["talora_jax", "=", "talora_jax.commands:cli"]


# By what they are imported as, where that is not how they are called.
CALLED = {"absl": "absl-py", "orbax": "orbax-checkpoint", "PIL": "pillow"}
# See the comment there.
NEEDED_BY_OTHERS = {"filelock", "array-record", "flatbuffers", "importlib-resources"}


def test_setup_cfg_names_everything_that_is_imported_and_nothing_else(setup_cfg):
    imported = set()
    for folder in ("talora_jax", "weights_convert", "configs"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    assert not node.level, f"{path}: a relative import"
                    imported.add(node.module)
    tops = {name.partition(".")[0] for name in imported}
    ours = {"talora_jax", "weights_convert"}
    foreign = {CALLED.get(name, name) for name in tops - ours - sys.stdlib_module_names}

    def named(lines):
        lines = lines.strip().splitlines()
        return {re.match(r"[\w.-]+", line)[0].replace("_", "-") for line in lines}

    extras = setup_cfg["options.extras_require"]
    optional = set().union(*(named(lines) for name, lines in extras.items() if name != "test"))
    foreign = {name.replace("_", "-") for name in foreign} - optional
    assert named(setup_cfg["options"]["install_requires"]) == foreign | NEEDED_BY_OTHERS


def test_what_a_command_prints_is_read_at_once_through_a_pipe(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    program = (
        "import os; from talora_jax.errors import run_command; "
        "run_command(lambda: (print('evaluating'), os._exit(0)))"
    )
    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True).stdout
    assert out == "evaluating\n"
