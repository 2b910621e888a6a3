"""The dashboard of a wandb project: its sections Supernet, Search and Retrain, by the metrics' names."""

from __future__ import annotations

import json
from typing import Any

from vitas.config import UserError, one_line
from vitas.report import login
from vitas.report import names as t

VALIDATED = {
    "supernet": ("largest", "smallest", "random_1", "random_2", "random_3"),
    "retrain": ("model", "average"),
    "baseline": ("model", "average"),
}
"""Models that the validations of a stage are of."""


def build(project: str, entity: str) -> Any:
    """The workspace, which nothing is asked or told of yet.

    Raises:
        UserError: Package wandb-workspaces is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError("dashboard: wandb-workspaces is not installed: pip install 'vitas[dashboard]'") from None

    def lines(title: str, kind: str, *names: str) -> Any:
        return panels.LinePlot(title=title, x=f"{kind}/{t.STEP}", y=[f"{kind}/{one}" for one in names])

    def trained(kind: str, images: str) -> list[Any]:
        def validated(name: str) -> list[str]:
            return [f"{model}/{images}_{name}" for model in VALIDATED[kind]]

        return [
            lines(f"{kind}: loss", kind, t.LOSS),
            lines(f"{kind}: top-1 %", kind, *validated(t.TOP1)),
            lines(f"{kind}: top-5 %", kind, *validated(t.TOP5)),
            lines(f"{kind}: learning rate", kind, t.LR),
            lines(f"{kind}: gradient norm", kind, t.GRAD_NORM),
            lines(f"{kind}: images a second", kind, t.IMAGES_PER_SECOND),
            lines(f"{kind}: part of the peak, %", kind, t.MFU),
        ]

    searched = [
        lines("top-1 %: best and median", "evolve", t.BEST[t.TOP1], t.MEDIAN[t.TOP1]),
        lines("loss: best and median", "evolve", t.BEST[t.LOSS], t.MEDIAN[t.LOSS]),
        lines("hypervolume", "evolve", t.HYPERVOLUME),
        lines("feasible, %", "evolve", t.FEASIBLE),
        lines("candidates an hour", "evolve", t.CANDIDATES_PER_HOUR),
        panels.MediaBrowser(title="the best architecture", media_keys=["evolve/architecture"]),
        panels.WeavePanelSummaryTable(table_name="evolve/front"),
        *(lines(f"chosen: {name}", "evolve", name) for name in t.CHOSEN),
    ]
    final = panels.BarPlot(title="final top-1 %", metrics=[f"found/{t.TOP1}", f"uniform_vit/{t.TOP1}"])
    sections = {
        "Supernet": trained("supernet", t.HOLDOUT),
        "Search": searched,
        "Retrain": [final, *trained("retrain", t.TEST), *trained("baseline", t.TEST)],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="vitas",
        sections=[workspaces.Section(name=name, panels=each, is_open=True) for name, each in sections.items()],
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),  # that is, by search
    )


def spec(workspace: Any) -> dict[str, Any]:
    """What a workspace is to the service, as JSON says it."""
    return json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))


def save(named: str) -> str:
    """Saves the dashboard of `PROJECT` or `ENTITY/PROJECT`; returns its address.

    Raises:
        UserError: wandb cannot be reached, or there is no such project.
    """
    entity, _, project = named.rpartition("/")
    mode, problem = login.wandb_mode("auto")
    if mode != "online":
        raise UserError(f"dashboard: {problem or 'wandb is switched off'}; -o FILE.json writes it without the service")
    import wandb

    try:
        return build(project, entity or wandb.Api().default_entity or "").save().url
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"dashboard: wandb: {one_line(error) or type(error).__name__}") from error
