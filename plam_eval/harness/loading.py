"""How lmms-eval loads tasks, with two waits taken out: YAML through libyaml, and each dataset once in a process.

Besides, a released test set is loaded with the file that the user names for it, or refused at once.

Both change when work is done and never what comes of it. lmms-eval indexes about two thousand YAML files at every start
with the reader of PyYAML that is written in Python; its reader over libyaml gives the same objects in a tenth of the
time. And it builds the datasets of all tasks again for every evaluation, which a sweep asks for cell by cell; the task
objects themselves, which evaluations write to, are made anew as ever.

Importing this module imports neither torch nor lmms-eval.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plam_eval import test_sets
from plam_eval.patching import wrap_once

# --- YAML -------------------------------------------------------------------------------------------------------------


def patch_yaml_loading() -> None:
    """`lmms_eval.utils.load_yaml_config` reads the files that lmms-eval and this package bring along by libyaml.

    Files of other folders go the stock way: libyaml is a little more lenient, and what a file of the user's is refused
    for should not depend on it. So does a file that libyaml does not read, for PyYAML's message, and everything where
    PyYAML was built without it.
    """
    import yaml
    from lmms_eval import utils

    if not yaml.__with_libyaml__:
        return
    loaders = {"simple": _loader(utils.ignore_constructor), "full": _loader(utils.import_function)}
    folders = [folder for package in ("lmms_eval", "plam_eval.tasks") for folder in _folders(package)]

    def load_yaml_config(
        stock: Any, yaml_path: Any = None, yaml_config: Any = None, yaml_dir: Any = None, mode: str = "full"
    ) -> Any:
        file_path = Path(yaml_path).absolute() if yaml_config is None else None
        if file_path is not None and mode in loaders and any(file_path.is_relative_to(folder) for folder in folders):
            try:
                with Path(yaml_path).open("rb") as file:
                    yaml_config = yaml.load(file, Loader=loaders[mode])
            except yaml.YAMLError:
                yaml_config = None  # read again below, and refused in PyYAML's words
        return stock(yaml_path, yaml_config, yaml_dir, mode)

    wrap_once(utils, "load_yaml_config", load_yaml_config)


def _loader(function: Callable[[Any, Any], Any]) -> Any:
    """`yaml.FullLoader` over libyaml, with `function` as the constructor of lmms-eval's own tag."""
    import yaml

    class Loader(yaml.CFullLoader):
        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.name = stream.name  # where lmms-eval looks for the code that `!function` names

    Loader.add_constructor("!function", function)
    return Loader


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder).absolute() for folder in (spec.submodule_search_locations or ())] if spec else []


# --- datasets ---------------------------------------------------------------------------------------------------------

_KEPT: OrderedDict[Any, Any] = OrderedDict()
_MOST_KEPT = 256
# What a task asks for beyond a dataset: archives that are unpacked, code that is run, files made at every load.
_OWN_WAYS = ("From_YouTube", "video", "builder_script", "load_from_disk", "force_download")


def patch_dataset_loading() -> None:
    """`ConfigurableTask.download` builds the datasets of a task once in a process.

    They are Arrow tables that nobody writes to; each task object gets views of its own of them. A task
    that is loaded again gets the same tables if it asks for the same dataset, processed by the same code, in the same
    place, and if no file of a local dataset has changed since.

    The file of a released test set is read first: a wrong one is told once, not after lmms-eval's five attempts. The
    task's configuration, which every model's results have, then names the file that it is scored with.
    """
    from lmms_eval.api.task import ConfigurableTask

    def download(stock: Any, self: Any, dataset_kwargs: Any = None) -> None:
        prepared = test_sets.prepare(str(self.config.task))
        if prepared is not None:
            self.config.metadata = {**(self.config.metadata or {}), test_sets.RECORD: prepared.record()}
        key = _dataset_key(self, dataset_kwargs)
        if key is not None and prepared is not None:
            key = (*key, prepared.file.md5)
        kept = _KEPT.get(key) if key is not None else None
        if kept is None:
            stock(self, dataset_kwargs)
            if prepared is not None and dataset_kwargs is not None:
                dataset_kwargs.pop("data_files", None)  # a path of this machine, which results would have
            if key is not None and _can_be_kept(self):
                left = dict(dataset_kwargs) if dataset_kwargs is not None else None
                same = self.dataset_no_image is self.dataset
                _KEPT[key] = (_copy(self.dataset), None if same else _copy(self.dataset_no_image), left)
                while len(_KEPT) > _MOST_KEPT:
                    _KEPT.popitem(last=False)
            return
        _KEPT.move_to_end(key)
        dataset, without_images, left = kept
        self.dataset = _copy(dataset)
        self.dataset_no_image = self.dataset if without_images is None else _copy(without_images)
        if dataset_kwargs is not None:  # lmms-eval takes out what it has used, and logs the others
            dataset_kwargs.clear()
            dataset_kwargs.update(left)

    wrap_once(ConfigurableTask, "download", download)  # with its attributes: `lookup.one_attempt` changes its `retry`


def _copy(dataset: Any) -> Any:
    # Over the same rows, but each with a format of its own, which `set_format` and the like change in place.
    return type(dataset)({split: copy.copy(table) for split, table in dataset.items()})


def _can_be_kept(task: Any) -> bool:
    """Whether a task holds nothing but tables: its own code may make lists of documents of them, and change those."""
    from datasets import Dataset

    tables = [*task.dataset.values(), *task.dataset_no_image.values()]
    return all(isinstance(table, Dataset) for table in tables)


def _dataset_key(task: Any, dataset_kwargs: Any) -> Any:
    """What the tables of a task depend on; None where that cannot be said."""
    from lmms_eval.api.task import _resolve_hf_datasets_cache_dir

    config, options = task.config, dict(dataset_kwargs or {})
    if any(options.get(name) for name in (*_OWN_WAYS, "data_files", "data_dir")):
        return None
    code = None
    if (process := config.process_docs) is not None:
        body = getattr(process, "__code__", None)
        if body is None or process.__closure__ or not Path(body.co_filename).is_file():
            return None
        # The code itself as well: all lambdas of a file have one name.
        defaults = repr((process.__defaults__, process.__kwdefaults__))
        code = body, defaults, process.__qualname__, _state(Path(body.co_filename))
    files = _states(str(task.DATASET_PATH))
    if files is None:
        return None
    splits = config.training_split, config.validation_split, config.test_split, config.fewshot_split
    return (
        str(Path.cwd()),
        str(_resolve_hf_datasets_cache_dir()),
        task.DATASET_PATH,
        task.DATASET_NAME,
        repr(sorted(options.items())),
        code,
        splits if code else None,
        bool(getattr(config, "process_results_use_image", False)),
        files,
    )


def _states(folder: str) -> tuple[Any, ...] | None:
    """What tells whether a local dataset is still the one that was read; None where it cannot be told.

    That is where there are links to folders, or to nothing: what stands behind them would have to be walked as well.
    """
    states = []
    for parent, folders, names in os.walk(folder):
        try:
            if any(Path(parent, name).is_symlink() for name in folders):
                return None
            states += [_state(Path(parent, name)) for name in names]
        except OSError:
            return None
    return tuple(states)


def _state(file: Path) -> tuple[str, int, int, int, int]:
    stat = file.stat()  # the time of its last change, too, as copying can set that of the last write
    return str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
