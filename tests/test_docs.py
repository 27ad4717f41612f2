"""The recipes in docs/ run as they stand there, and what the pages say of files is true."""

import importlib
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from talora_jax import command_line, config_checks, sharding, tasks
from talora_jax import config as config_lib
from talora_jax.command_line import load_config
from talora_jax.errors import ArgumentParser, UserError
from talora_jax.models import adapters
from talora_jax.training import setup

DOCS = Path(__file__).parent.parent / "docs"
RECIPES = sorted(page for page in DOCS.glob("*.md") if "```python" in page.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_recipes_code_runs(page, shelf, tmp_path, monkeypatch):
    folder = tmp_path / "shelf"
    shutil.copytree(shelf, folder)
    monkeypatch.chdir(folder)
    # What a recipe adds to a registry is gone after it.
    monkeypatch.setattr(adapters, "KINDS", dict(adapters.KINDS))
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "recipe"})


def test_recipes():
    assert [page.stem for page in RECIPES] == [
        "add_a_data_set",
        "add_a_task",
        "change_the_adapter",
        "own_training_loop",
        "train_a_sam",
    ]


@pytest.mark.parametrize(
    "page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda p: p.stem
)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    for file in (link for link in links if "://" not in link):
        assert (page.parent / file).exists(), file


class Said(Exception):
    """A command has been understood."""


def commands(text):
    """The commands in lines of their own, as words; two spaces on stands what is said of one."""
    text = re.sub(r" *\\+\n *", " ", text)
    ours = "python -m (?:talora_jax|weights_convert|benchmarks)|talora_jax "
    for line in re.findall(rf"^ *((?:{ours}).*)", text, re.MULTILINE):
        for command in re.split("; | {2,}", line):
            # Nor what stands for several, as a usage does.
            if re.match(ours, command) and not set("[|…`") & set(command):
                yield shlex.split(command, comments=True)


HELPS = [
    path
    for folder in ("talora_jax", "weights_convert", "benchmarks", "configs")
    for path in sorted((DOCS.parent / folder).rglob("*.py"))
]
SAYING = {
    path.relative_to(DOCS.parent): said
    for path in [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", *HELPS]
    if path.stem != "many_hosts"  # see below
    and (text := path.read_text())
    and (said := [*commands(text.split('"""')[1] if path in HELPS and '"""' in text else text)])
}


@pytest.mark.parametrize("page", SAYING, ids=str)
def test_every_command_is_understood(page, monkeypatch):
    def load(name, overrides):
        setup.check(load_config(name, overrides))
        raise Said

    known = ArgumentParser.parse_known_args

    def parse(parser, arguments=None, namespace=None):
        found, unknown = known(parser, arguments, namespace)
        parser._refuse([word for word in unknown if not word.startswith("--config.")])
        # A config is yet to be loaded; main asks once for what nobody says.
        if not getattr(found, "config", None) and arguments != []:
            raise Said
        return found

    monkeypatch.setattr(command_line, "load_config", load)
    for way in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        monkeypatch.setattr(ArgumentParser, way, parse)
    for first, *words in SAYING[page]:
        module, *arguments = words[1:] if first == "python" else ("talora_jax.commands", *words)
        if (DOCS.parent / module.replace(".", "/")).is_dir():
            module = f"{module}.__main__"
        command_line.fields_of([x for x in arguments if x.startswith("--config.") and "=" in x])
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Said):
            importlib.import_module(module).main()


def test_the_meshes_of_the_readme_work_for_the_configs_beside_them():
    readme = (DOCS.parent / "README.md").read_text()
    commands = re.findall(r"^    (--config configs/.*--config\.mesh\..*)", readme, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        _, name, *overrides = command.split()
        config = load_config(name, overrides)
        config_checks.check(config)
        config_checks.check_mesh(config, sharding.abstract_mesh(**config.mesh).shape)


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_for_many_hosts_run(start_python):
    """`python -m tests.many_hosts` prints more of them."""
    process = start_python("-m", "tests.many_hosts")
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, out + errors


def test_every_command_for_many_hosts_is_one_that_runs():
    page = (DOCS / "many_hosts.md").read_text()
    assert re.findall("^```(.*)", page, re.MULTILINE) == ["bash", ""] * 8
    prose = re.sub("```.*?```", "", page, flags=re.DOTALL)
    assert not re.findall(r"^(?: {4}|\t).*|talora_jax\.main|gcloud|\$ .*", prose, re.MULTILINE)


def test_batches_for_many_hosts_fit_the_devices_that_the_page_tells_of():
    page = (DOCS / "many_hosts.md").read_text()
    runs = [b for b in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "--config nyuv2" in b]
    for block, devices in zip(runs, (8, 16, 16, 32, 16, 8), strict=True):
        flags = re.findall(r"--config\.(?:batch_size|eval_batch_size|mesh\.\w+)=\d+", block)
        config = load_config("nyuv2:vit_l", flags)
        data = devices // (config.mesh.fsdp * config.mesh.task)
        config_checks.check_mesh(config, config.mesh.to_dict() | {"data": data})


def _rows_of_numbers(page: str, columns: int) -> list[list[int]]:
    row = r"^\|" + r" (\d+) \|" * columns
    return [list(map(int, row)) for row in re.findall(row, page, re.MULTILINE)]


def test_batches_and_timeouts_are_as_told():
    page = (DOCS / "many_hosts.md").read_text()
    rows = _rows_of_numbers(page, 6)
    assert len(rows) >= 6
    config = config_lib.default()
    for devices, data, fsdp, task, batch, count in rows:
        shape = dict(zip(sharding.AXES, (data, fsdp, task), strict=True))
        assert math.prod(shape.values()) == devices
        config.tasks = ("task",) * count
        config.batch_size, config.accumulate, config.eval_batch_size = 2 * batch, 2, batch
        config_checks.check_mesh(config, shape)
        if batch > 1:
            config.eval_batch_size = batch - 1
            with pytest.raises(UserError, match="eval_batch_size = .* is not divisible"):
                config_checks.check_mesh(config, shape)
    told = dict(re.findall(r"^\| `config\.hosts\.(\w+)` \| (\d+) \|", page, re.MULTILINE))
    assert len(told) == 3
    assert {name: config.hosts[name] for name in told} == {k: int(v) for k, v in told.items()}


def test_a_training_step_is_read_in_one_sitting():
    steps = (
        (DOCS / "architecture.md").read_text().split("## One training step")[1].split("\n## ")[0]
    )
    files = re.findall(r"^\d+\. \[\S+\]\((\S+)\)", steps, re.MULTILINE)
    lines = sum(len((DOCS / file).read_text().splitlines()) for file in files)
    assert 6 <= len(files) <= 12 and lines <= 2500
