"""`--wandb_args`: what a scan, comparison or sweep found, as a Weights & Biases run.

Spelled as lmms-eval spells it: `key=value,...` for `wandb.init`. lmms-eval logs an evaluation; here it is the result of
the whole command, whose evaluations are many.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loguru import logger

from plam_eval.arguments import write_words
from plam_eval.errors import InputError, first_line, hint
from plam_eval.harness.evaluate import parse_model_args
from plam_eval.harness.processes import is_first_process

if TYPE_CHECKING:
    import pandas as pd

    from plam_eval.evaluation.comparison import Comparison
    from plam_eval.evaluation.scan_folder import Scan
    from plam_eval.evaluation.sweep.findings import Findings


@dataclass(frozen=True)
class Settings:
    """Arguments of `wandb.init`; none where nothing is to be logged."""

    arguments: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, wandb_args: str | Mapping[str, Any] | None) -> Settings:
        """Check what was given, before a model is loaded for it.

        Args:
            wandb_args: `key=value,...`, or a mapping; nothing where nothing is to be logged.

        Raises:
            InputError: no `key=value`, an argument that `wandb.init` does not take, or no wandb here.
        """
        if not wandb_args:
            return cls()
        arguments = parse_model_args(write_words(wandb_args, "wandb_args"), "wandb_args")
        accepted = inspect.signature(_wandb().init).parameters
        if unknown := [name for name in arguments if name not in accepted]:
            lines = "; ".join(f"{name}, {hint(name, accepted)}" for name in unknown)
            raise InputError(f"wandb_args: wandb.init takes no argument {lines}")
        return cls(arguments)

    @contextmanager
    def run(self, command: str, name: str, config: Mapping[str, Any]) -> Iterator[Log]:
        """A run for as long as the block lasts, on the first process; one that the caller has begun is used and left.

        Args:
            command: whose results are logged.
            name: of the run, after the command's.
            config: that the run is given.

        Raises:
            InputError: Weights & Biases refuses to begin one.
        """
        if self.arguments is None or not is_first_process():
            yield Log()
            return
        wandb = _wandb()
        own = wandb.run is None
        try:
            run = wandb.init(**{"name": f"{command} {name}", **self.arguments}) if own else wandb.run
        except Exception as error:  # its own, of its network, and of pydantic for values of a wrong kind
            words = " ".join(str(error).split())[:500]
            raise InputError(f"wandb_args: wandb could not begin a run ({type(error).__name__}: {words})") from error
        try:
            run.config.update({"command": command, **config}, allow_val_change=True)
            yield Log(run, wandb)
        except BaseException:
            if own:
                run.finish(exit_code=1)
            raise
        if own:
            run.finish()


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise InputError(f"wandb_args: wandb cannot be imported ({error}); pip install wandb") from error


@dataclass(frozen=True)
class Log:
    """Where results go; nowhere without a run. What cannot be logged is a warning: the results are on disk."""

    run: Any = None
    wandb: Any = field(default=None, repr=False)

    def scan(self, scanned: Scan) -> None:
        """Per cut, as a series over `cut`: accuracy, KL and share of parsable answers; the curve; the plateau.

        Args:
            scanned: what a scan found.
        """
        from plam_eval.evaluation.stats import OVERALL

        if self.run is None:
            return
        with self._not_fatal():
            curve = scanned.curve.table()
            for name in ("accuracy", "kl", "parsable"):
                self.run.define_metric(f"scan/{name}", step_metric="scan/cut")
            for row in curve[curve["task"] == OVERALL].itertuples():
                values = {"cut": row.cut, "accuracy": row.accuracy, "kl": row.kl, "parsable": row.parsable}
                self.run.log({f"scan/{name}": value for name, value in values.items() if _is_known(value)})
            self._table("scan/curve", curve)
            self.run.log({"scan/plot": self.wandb.Image(str(scanned.folder / "curve.png"))})
            self.run.summary.update({"plateau": scanned.stages.plateau, "reason": scanned.stages.reason})

    def comparison(self, compared: Comparison) -> None:
        """Per task both scores, difference, interval and p; the table.

        Args:
            compared: two runs.
        """
        if self.run is None:
            return
        with self._not_fatal():
            for row in compared.rows:
                values = {"first": row.first, "second": row.second, "difference": row.difference, "p": row.p}
                values |= {"low": row.low, "high": row.high}
                self.run.summary.update({f"{row.task}/{name}": v for name, v in values.items() if _is_known(v)})
            self._table("comparison", compared.table)

    def sweep(self, findings: Findings) -> None:
        """The findings' tables; the chosen merge and the verdict.

        Args:
            findings: of a sweep.
        """
        if self.run is None:
            return
        with self._not_fatal():
            for name, table in findings.tables.items():
                self._table(name, table)
            chosen = findings.selection.cell if findings.selection else None
            failed = len(findings.failures())
            said = {"verdict": findings.verdict(), "further_verdicts": " ".join(findings.further_verdicts())}
            self.run.summary.update({**said, "chosen": chosen, "failed": failed})

    def _table(self, name: str, table: pd.DataFrame) -> None:
        if len(table):
            plain = table.astype(object).where(table.notna(), None)
            self.run.log({name: self.wandb.Table(columns=list(map(str, table.columns)), data=plain.values.tolist())})

    @contextmanager
    def _not_fatal(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of wandb, its network or a version of it: it must not cost what was found
            logger.warning(f"wandb: the results were not logged ({type(error).__name__}: {first_line(error)})")


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
