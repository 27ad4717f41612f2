"""Workdirs of finished runs with a file in them damaged, lost, replaced, or a lock held.

Oracles, by file: config.json and metrics.jsonl, the JSON read anew; data.json, that a difference is
told; checkpoints and the adapter, the state and the tensors that were saved.
"""

import contextlib
import fcntl
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import rich.console

from talora_jax import config as config_lib
from talora_jax.data import memory
from talora_jax.data.dataset import Dataset
from talora_jax.errors import UserError
from talora_jax.experiments.describe_adapter import describe
from talora_jax.experiments.finished_run import FinishedRun, read_run
from talora_jax.experiments.report import comma_separated, markdown
from talora_jax.experiments.tables import make_tables
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.log import RunLog
from talora_jax.training.workdir import check_free, check_same, claim_workdir, held
from talora_jax.weights.adapter_file import FILE_NAME, AdapterFile, find
from tests.fuzz import models, mutate
from tests.fuzz.configs import is_given
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial

_STEPS = (2, 4)
_CONTENTS = {
    "settings": {"intrinsics": [500.5, 400.5], "image_size": [24, 32]},
    "train": {"image/0.png": "0123456789abcdef", "depth/0.npy": "0123456789abcde0"},
    "val": {"image/1.png": "1123456789abcdef", "depth/1.npy": "1123456789abcde0"},
}
_ABSTRACT = {"x": jnp.zeros(300), "count": jnp.zeros((), jnp.int32)}


class Workdirs:
    def __init__(self, folder: Path):
        self._run = folder / "run"
        self._config = config_lib.default()
        self._config.steps = _STEPS[-1]
        claim_workdir(self._config, self._run, write=True)
        self._dataset = Dataset("folder", ("depth",), ("a", "b"), (24, 32), {}, _CONTENTS)
        memory.remember(self._dataset, self._run, resumes=False, write=True)
        base = folder / "sam_nano.safetensors"
        self._adapter = models.nano_adapter(base, models.write_nano_base(base))
        self._adapter.write(self._run / FILE_NAME)
        rows = [{"step": 0, "split": "model", "trainable_parameters": 1234}]
        rows += [
            {"step": i, "split": "train", "loss": 1 / i, "step_time": 0.5 * i} for i in (1, 2, 3, 4)
        ]
        for step in _STEPS:
            rows.append(
                {"step": step, "split": "val", "semantic/miou": step / 10, "depth/pooled/rmse": 1.5}
            )
        rows.sort(key=lambda row: row["step"])
        (self._run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        checkpoints = Checkpoints(self._run)
        for step in _STEPS:
            checkpoints.save(step, state_of(step), {"next_index": step})
        checkpoints.close()
        checkpoints = self._run / "checkpoints"
        self._parts = sorted(
            p.relative_to(self._run) for p in checkpoints.rglob("*") if p.is_file()
        )

    def trial(self, rng: random.Random, place: Path) -> Trial:
        draws = (
            (self._config_json, 3),
            (self._metrics, 4),
            (self._data, 3),
            (self._checkpoints, 4),
            (self._adapters, 2),
            (self._places, 2),
        )
        draw = rng.choices(*zip(*draws, strict=True))[0]
        what, act, judge = draw(rng, place / "run")
        return Trial(f"{draw.__name__}: {what}", act, judge)

    def _copied(self, workdir: Path, *names: str) -> None:
        workdir.mkdir()
        for name in names:
            shutil.copy(self._run / name, workdir)

    def _config_json(self, rng: random.Random, workdir: Path) -> tuple[str, Callable, Callable]:
        self._copied(workdir, "config.json", "metrics.jsonl")
        path = workdir / "config.json"
        whole = path.read_bytes()
        told = json.loads(whole)
        what, data = mutate.damaged(whole, rng)
        if rng.random() < 0.5:
            what, told = mutate.odd_json(told, rng)
            data = json.dumps(told, indent=2).encode()
        path.write_bytes(data)

        def act() -> tuple[dict, dict]:
            read_run(workdir)
            claim_workdir(self._config, workdir, write=False)
            return config_lib.flat_fields(config_lib.read(path).to_dict())

        def judge(found: dict[str, Any]) -> str:
            fields = config_lib.flat_fields(_json(data))
            ours = config_lib.flat_fields(config_lib.plain(self._config))
            for name, x in found.items():
                given = fields.get(name, ours[name])
                if not is_given(x, given, name.removeprefix("config.")):
                    raise Silent(f"{name} is {x!r}, and {given!r} stands there")
            return SAME if all(mutate.alike(found[n], ours[n]) for n in ours) else ACCEPTED

        return what, act, judge

    def _metrics(self, rng: random.Random, workdir: Path) -> tuple[str, Callable, Callable]:
        self._copied(workdir, "config.json", "metrics.jsonl")
        path = workdir / "metrics.jsonl"
        whole = path.read_bytes()
        what, data = mutate.damaged(whole, rng)
        if rng.random() < 0.5:
            lines = [json.loads(line) for line in whole.splitlines()]
            what, lines = mutate.odd_json(lines, rng)
            lines = lines if isinstance(lines, list) else [lines]
            data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        path.write_bytes(data)
        resume = rng.choice((None, None, *_STEPS))

        def act() -> Any:
            if resume:
                log = RunLog(workdir, resume_step=resume, last_step=_STEPS[-1], active=True)
                log.close()
                return path.read_bytes()
            run = read_run(workdir)
            tables = make_tables([run])
            markdown(tables), comma_separated(tables)
            return run

        def judge(found: FinishedRun | bytes) -> str:
            rows, damage = rows_of(data)
            if resume:
                kept = {(row["step"], row["split"]): row for row in rows if row["step"] <= resume}
                if resume == _STEPS[-1]:
                    kept.pop((resume, "val"), None)
                lines = rows_of(found)[0]
                if not mutate.alike(lines, list(kept.values())):
                    raise Silent(
                        f"the log goes on from {lines}, and {list(kept.values())} was there"
                    )
            else:
                final = [r for r in rows if r["split"] == "val" and r["step"] == _STEPS[-1]][-1]
                wanted = {name: x for name, x in final.items() if "/" in name}
                if not mutate.alike(found.metrics, wanted):
                    raise Silent(f"the metrics are {found.metrics}, and {wanted} stands there")
                bad = {n: x for n, x in found.metrics.items() if not _number(x)}
                if bad:
                    raise Silent(f"metrics that are no numbers: {bad}")
            return SAME if rows == rows_of(whole)[0] and not damage else ACCEPTED

        return f"{what}, resumes at {resume}", act, judge

    def _data(self, rng: random.Random, workdir: Path) -> tuple[str, Callable, Callable]:
        self._copied(workdir, memory.FILE_NAME)
        path = workdir / memory.FILE_NAME
        whole = path.read_bytes()
        what, told = mutate.odd_json(json.loads(whole), rng)
        data = json.dumps(told).encode()
        if rng.random() < 0.6:
            what, data = mutate.odd_text(whole.decode(), rng)
        path.write_bytes(data)

        def act() -> tuple[list[str], list[str]]:
            changed, printed = memory.changes(self._dataset, workdir), []
            memory.tell(self._dataset, workdir, printed.append)
            for line in printed:
                print(line)
            memory.remember(self._dataset, workdir, resumes=True, write=True)
            return changed

        def judge(found: list[str]) -> str:
            # `remember` refuses what has changed.
            if not mutate.alike(_json(data), json.loads(whole)) or found:
                raise Silent(f"other data, and the run goes on: {found}")
            return SAME

        return what, act, judge

    def _checkpoints(self, rng: random.Random, workdir: Path) -> tuple[str, Callable, Callable]:
        workdir.mkdir()
        shutil.copytree(self._run / "checkpoints", workdir / "checkpoints")
        what = []
        for _ in range(rng.choice((1, 1, 1, 3))):
            path = workdir / rng.choice(self._parts)
            if rng.random() < 0.7:
                # Where a state is.
                path = workdir / rng.choice([p for p in self._parts if "/d/" in p.as_posix()])
            how = rng.choice(("bytes", "bytes", "bytes", "lost", "empty", "folder", "exchanged"))
            if how == "bytes" and path.is_file():
                how, data = mutate.damaged(path.read_bytes(), rng)
                path.write_bytes(data)
            elif how == "exchanged" and path.is_file():
                path.write_bytes((self._run / rng.choice(self._parts)).read_bytes())
            elif path.is_file():
                path.unlink()
                path.mkdir() if how == "folder" else path.touch() if how == "empty" else None
            what.append(f"{path.relative_to(workdir)} {how}")

        def act() -> tuple[dict, dict, list[str]]:
            told: list[str] = []
            checkpoints = Checkpoints(workdir, read_only=rng.random() < 0.5)
            found, where = checkpoints.restore(_ABSTRACT, told.append)
            checkpoints.close()
            for line in told:
                print(line)
            return found, where, told

        def judge(found: tuple[dict, dict, list[str]]) -> str:
            state, where, told = found
            for step in _STEPS:
                if _same_state(state, state_of(step)):
                    if where != {"next_index": step}:
                        raise Silent(f"the state of step {step}, and the position {where}")
                    if step != _STEPS[-1] and not told:
                        raise Silent(f"goes on from step {step}, and tells nobody")
                    return SAME if step == _STEPS[-1] else ACCEPTED
            raise Silent("a state that was never saved")

        return "; ".join(what), act, judge

    def _adapters(self, rng: random.Random, workdir: Path) -> tuple[str, Callable, Callable]:
        self._copied(workdir, "config.json", FILE_NAME)
        path = workdir / FILE_NAME
        what, data = mutate.damaged(path.read_bytes(), rng, 4000)
        path.write_bytes(data)
        if rng.random() < 0.2:
            path.unlink()
            what = "no adapter"
            if rng.random() < 0.5:
                what, data = mutate.odd_text('{"model_type": "sam"}', rng)
                (workdir / "config.json").write_bytes(data)

        def act() -> AdapterFile:
            describe(
                find(workdir), rich.console.Console(file=io.StringIO(), width=100, markup=False)
            )
            return AdapterFile.read(find(workdir))

        def judge(found: AdapterFile) -> str:
            if not models.same_tensors(dict(found.tensors), dict(self._adapter.tensors)):
                raise Silent("other tensors than were written")
            return SAME

        return what, act, judge

    def _places(self, rng: random.Random, workdir: Path) -> tuple[str, Callable, Callable]:
        """What is no workdir, is another's, or is held."""
        what = rng.choice(
            ("file", "pipe", "link", "circle", "held", "no config", "config is a folder", "other")
            + ("results are folders", "told", "new")
        )
        config = self._config.copy_and_resolve_references()
        refused = True
        if what not in ("file", "pipe", "link", "circle", "new"):
            self._copied(workdir, "config.json", FILE_NAME)
        if what == "file":
            workdir.write_text("x")
        elif what == "pipe":
            os.mkfifo(workdir)
        elif what == "link":
            workdir.symlink_to(workdir.parent / "nowhere")
        elif what == "circle":
            workdir.symlink_to(workdir)
        elif what == "no config":
            (workdir / "config.json").unlink()
            (workdir / "checkpoints" / "4").mkdir(parents=True)
        elif what == "config is a folder":
            (workdir / "config.json").unlink()
            (workdir / "config.json").mkdir()
        elif what == "other":
            field = rng.choice(
                ("batch_size", "seed", "adapter.scale", "data.train_frames", "tasks")
            )
            config.update_from_flattened_dict({field: ("depth",) if field == "tasks" else 3})
        elif what == "results are folders":
            config.steps, refused = 9, False
            (workdir / FILE_NAME).unlink()
            (workdir / FILE_NAME).mkdir()
        elif what == "new":
            refused = False

        def act() -> None:
            with contextlib.ExitStack() as stack:
                if what == "held":
                    descriptor = os.open(workdir, os.O_RDONLY)
                    stack.callback(os.close, descriptor)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                with (
                    contextlib.suppress(UserError) if what == "other" else contextlib.nullcontext()
                ):
                    check_free(workdir)
                with held(workdir):
                    if what == "told":
                        told = rng.choice(mutate.JUNK)
                        run_is = {"base_fingerprint": "x", "class_names": {"semantic": ["a"]}}
                        check_same(config, workdir, {"class_names": told}, run_is)
                    claim_workdir(
                        config, workdir, write=True, more_steps=True, results=(FILE_NAME,)
                    )

        def judge(found: None) -> str:
            del found
            if refused:
                raise Silent(f"{what}, and the run goes on")
            if config_lib.read(workdir / "config.json").steps != config.steps:
                raise Silent("the workdir is not this config's")
            return ACCEPTED

        return what, act, judge


def state_of(step: int) -> dict[str, Any]:
    """Random numbers, which no compression makes few."""
    values = np.random.default_rng(step).normal(size=300)
    return {"x": jnp.asarray(values, jnp.float32), "count": jnp.asarray(step, jnp.int32)}


def _same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(mutate.alike(np.asarray(a[k]), np.asarray(b[k])) for k in a)


def rows_of(data: bytes) -> tuple[list[dict], int]:
    """The lines that are of a run, and how many others there are."""
    rows, others = [], 0
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        line = line.strip(b"\0 \t\r")
        try:
            row = json.loads(line.decode()) if line else None
        except (ValueError, RecursionError):
            row = None
        fits = isinstance(row, dict) and {"step", "split"} <= row.keys()
        fits = fits and isinstance(row["split"], str) and type(row["step"]) is int
        if fits and all(_number(x) for name, x in row.items() if name != "split"):
            rows.append(row)
        else:
            others += bool(line)
    return rows, others


def _json(data: bytes) -> Any:
    """What a file that was read says.

    Raises:
      Silent: it is no JSON.
    """
    try:
        return mutate.strict_json(data)
    except (ValueError, RecursionError) as error:
        raise Silent(f"read, though it is no JSON: {error}") from None


def _number(x: Any) -> bool:
    """Whether it is one that a float can be."""
    try:
        return not isinstance(x, bool) and isinstance(float(x), float) and not isinstance(x, str)
    except (TypeError, ValueError, OverflowError):
        return False
