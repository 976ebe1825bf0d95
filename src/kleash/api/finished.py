"""A run as Python has it: its model, its figures and its checks, shown as a table and curves in a notebook."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleash.errors import InputError, ModelError
from kleash.io import Json
from kleash.run import RunFolder, read_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Metrics(list[Json]):
    """The rows of metrics.jsonl, one a step, each with its `step`; what is not a finite number is None."""

    def __call__(self) -> Metrics:
        """The rows themselves: `run.metrics()` is `run.metrics`."""
        return self

    def __getitem__(self, index: Any) -> Any:
        """A row by its number, or the values of a figure by its name, one a step."""
        return [row.get(index) for row in self] if isinstance(index, str) else super().__getitem__(index)

    def to_pandas(self) -> Any:
        """The rows as a data frame whose index is the step.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise InputError("run.metrics.to_pandas() needs pandas; pip install pandas") from None
        frame = pandas.DataFrame(list(self))
        return frame.set_index("step") if "step" in frame else frame

    def _repr_html_(self) -> str:
        from kleash.report.run_view import metrics_table

        return metrics_table(self)


class Checks(list[Json]):
    """The checks of a run: `name`, `passed` (None: unknown), `finding`, `advice`."""

    @property
    def failed(self) -> list[Json]:
        """Those that failed."""
        return [check for check in self if check["passed"] is False]

    def __repr__(self) -> str:
        from kleash.checks.check import MARKS

        return "\n".join(
            f"{MARKS[check['passed']]:<8} {check['name']}: {check['finding']}"
            + (f"\n         → {check['advice']}" if check.get("advice") else "")
            for check in self
        )

    def _repr_html_(self) -> str:
        from kleash.report.run_view import checks_table

        return checks_table(self)


class Run(RunFolder):
    """The folder of a run, with what is in it; whatever is large is loaded when it is first asked for.

    Attributes:
        path: the folder.
        record: run.json.
    """

    @property
    def out(self) -> Path:
        """The folder."""
        return self.path

    @property
    def results(self) -> Json:
        """The results in run.json (docs/metrics.md)."""
        results: Json = self.record["results"]
        return results

    @property
    def metrics(self) -> Metrics:
        """The figures of each step: a list of dicts, also `.to_pandas()`; a name gives a column: `metrics["loss"]`."""
        return Metrics(RunFolder.metrics(self))

    @property
    def checks(self) -> Checks:
        """The checks that the run made of what it wrote."""
        return Checks(self.record["gates"].get("out", {}).get("checks", []))

    @property
    def model(self) -> PreTrainedModel:
        """The model of the run: the policy, or of `reward` the model that scores; loaded once, in evaluation mode.

        Raises:
            ModelError: the run wrote no model, or several.
        """
        return self._loaded[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `model`."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from kleash.models.load import load_policy, load_reward_model
        from kleash.models.place import adapter_folder, model_file

        if model_file(self.path, "config.json") is None and adapter_folder(self.path) is None:
            what = "holds several models" if (self.path / "ensemble.json").exists() else "holds no model"
            where = "; kleash.build_reward(run.path) scores with all of them" if "several" in what else ""
            raise ModelError(f"{self.path}: a run of {self.record['stage']} {what}{where}")
        model, tokenizer = (load_reward_model if self.record["stage"] == "reward" else load_policy)(self.path)
        return model.eval(), tokenizer

    def __repr__(self) -> str:
        from kleash.report.run_view import summary_line

        return f"<Run {self.path}: {summary_line(self.record)}>"

    def _repr_html_(self) -> str:
        from kleash.report.run_view import run_view

        return run_view(self.path, self.record, RunFolder.metrics(self))


def open_run(path: str | Path) -> Run:
    """A run from its folder, finished or not; nothing in the folder is changed.

    Args:
        path: the `out` of a stage that writes a folder.

    Raises:
        InputError: there is no run.
        DataError: its run.json is damaged.
    """
    folder = Path(path).expanduser()
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        raise InputError(f"{folder}: there is no run; give the `out` of a stage, which holds run.json")
    return Run(folder, record)
