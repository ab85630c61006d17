"""Dashboards and alerts ask for metrics and labels that there are, in PromQL, and each alert says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from promql_parser import AggregateExpr, BinaryExpr, Expr, VectorSelector

from apps.api import instruments
from apps.api.core.network.calls import KINDS, Outcome
from apps.api.errors import RUN_FAILURES
from apps.api.instruments import OTHER, PREFIX, REASONS, REGISTRY, STATUSES, Read
from tests.test_documents import OPERATIONS, anchors

ROOT = Path(__file__).parents[1]
BOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
ALERTS = ROOT / "deploy/alerts.yaml"
BY_PROMETHEUS = {"up": set[str]()}
"""Metrics that it makes itself."""

ANYWHERE = {"job", "instance"}
"""Labels that it adds to all that it scrapes."""

VALUES = {
    "code": {*RUN_FAILURES, "none", OTHER, "too_many_wrong_keys"},
    "status": {*map(str, STATUSES), "succeeded", "failed", "interrupted", OTHER},
    "reason": {*REASONS, OTHER},
    "kind": {*KINDS, "messages", "count_tokens", "input", "output", "cache_read_input", "cache_creation_input"},
    "outcome": {*get_args(Outcome), "delivered", "given_up"},
    "ahead": {"yes", "no"},
}
"""What labels say that queries look for."""


@cache
def labels() -> dict[str, set[str]]:
    """Of each series that is told, by its name."""
    found = dict(BY_PROMETHEUS)
    for family in REGISTRY.collect():
        if family.type == "histogram":
            own = _labels_of(family.name)
            found |= {f"{family.name}_bucket": {*own, "le"}, f"{family.name}_sum": own, f"{family.name}_count": own}
        else:
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = _labels_of(family.name)
    return found


def _labels_of(name: str) -> set[str]:
    for each in vars(instruments).values():
        if isinstance(each, Read) and each.name == name:
            return {each.label} - {""}
        if isinstance(each, MetricWrapperBase) and each._name == name:
            return set(each._labelnames)
    assert name.startswith(f"{PREFIX}_process_"), name
    return set()


def parsed(query: str) -> Expr:
    """What Grafana fills in is filled in."""
    return promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$__range", "6h"))


def within(node: Any) -> Iterator[Any]:
    """A query and all that it is made of."""
    yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        inner = getattr(node, name, None)
        if isinstance(inner, Expr):
            yield from within(inner)
    for inner in getattr(node, "args", None) or ():
        yield from within(inner)


def wrong(query: str) -> list[str]:
    """What a query asks for that there is not."""
    nodes = list(within(parsed(query)))
    selectors = [(node.name or "", node.matchers.matchers) for node in nodes if isinstance(node, VectorSelector)]
    found = [f"{name} is no metric" for name, _ in selectors if name not in labels()]
    known = ANYWHERE.union(*(labels().get(name, ()) for name, _ in selectors))
    for name, matchers in selectors:
        for matcher in matchers:
            if matcher.name not in ANYWHERE | labels().get(name, set()):
                found.append(f"{name} has no label {matcher.name}")
            elif matcher.name not in ANYWHERE:
                wanted = matcher.value.split("|") if "Re" in str(matcher.op) else [matcher.value]
                found += [
                    f"{matcher.name} is never {value}"
                    for value in wanted
                    if not any(re.fullmatch(value, said) for said in VALUES[matcher.name])
                ]
    for node in nodes:
        modifier = node.modifier if isinstance(node, AggregateExpr) else None
        if modifier is not None:
            found += [f"nothing has a label {name}" for name in modifier.labels if name not in known]
    return found


# --- dashboards ------------------------------------------------------------------------------------------------------


def board(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def panels(of: dict[str, Any]) -> list[dict[str, Any]]:
    return [inner for panel in of["panels"] for inner in (panel, *panel.get("panels", ()))]


def test_there_are_three_dashboards_each_with_a_name_of_its_own() -> None:
    boards = [board(path) for path in BOARDS]
    assert len({each["uid"] for each in boards}) == len({each["title"] for each in boards}) == 3


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_what_there_is(path: Path) -> None:
    queries = [target["expr"] for panel in panels(board(path)) for target in panel.get("targets", ())]
    assert len(queries) > 10
    assert [(query, found) for query in queries if (found := wrong(query))] == []


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_loaded_anywhere(path: Path) -> None:
    """It names no data source of ours, its panels are whole, have ids of their own, and lie beside each other."""
    loaded = board(path)
    named = {variable["name"]: variable for variable in loaded["templating"]["list"]}
    assert named.keys() == {"datasource", "job", "instance"}
    for name in ("job", "instance"):
        [metric] = re.findall(rf"{PREFIX}_\w+", named[name]["query"]["query"])
        assert metric in labels()
    everywhere = panels(loaded)
    assert len({panel["id"] for panel in everywhere}) == len(everywhere)
    taken = set[tuple[int, int]]()
    for panel in everywhere:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] not in ("row", "text"):
            assert panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)


def test_every_metric_that_has_something_to_show_is_shown_somewhere() -> None:
    shown = set(re.findall(rf"{PREFIX}_[a-z_]+", "".join(path.read_text() for path in BOARDS)))
    shown = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}
    told = {re.sub("_(bucket|count|sum)$", "", name) for name in labels() if name not in BY_PROMETHEUS}
    left_out = {"loop_failures_total", "process_virtual_memory_bytes", "process_start_time_seconds"}
    assert told - shown == {f"{PREFIX}_{name}" for name in left_out}


# --- alerts ----------------------------------------------------------------------------------------------------------


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert wrong(rule["expr"]) == []
    assert any(isinstance(node, BinaryExpr) for node in within(parsed(rule["expr"]))), "it would fire for any value"
    assert re.fullmatch(r"\d+[smhd]", rule["for"])
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / page) == OPERATIONS
    assert anchor == rule["alert"].lower()
    text = OPERATIONS.read_text(encoding="utf-8").partition(f"\n### {rule['alert']}\n")[2].partition("\n#")[0]
    assert text.strip().startswith(rule["annotations"]["summary"])
    assert len(text) > len(rule["annotations"]["summary"]) + 50
    assert anchor in anchors(OPERATIONS)


def test_every_runbook_has_an_alert() -> None:
    headings = re.findall(r"^### (ClaudeAgentApi\w+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]


# --- of the check itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("claude_agent_api_runs_running", []),
        ("claude_agent_api_runs_walking", ["claude_agent_api_runs_walking is no metric"]),
        ('claude_agent_api_runs_ended_total{status="dead"}', ["status is never dead"]),
        ('claude_agent_api_runs_ended_total{code=~"owner_lost|gone"}', ["code is never gone"]),
        ('claude_agent_api_runs_running{code="none"}', ["claude_agent_api_runs_running has no label code"]),
        ("sum by (tenant) (claude_agent_api_runs_running)", ["nothing has a label tenant"]),
        ("rate(claude_agent_api_run_duration_seconds[5m])", ["claude_agent_api_run_duration_seconds is no metric"]),
    ],
)
def test_what_is_wrong_is_found(query: str, found: list[str]) -> None:
    assert wrong(query) == found


def test_what_is_no_promql_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        parsed("sum(rate(claude_agent_api_runs_ended_total[5m])")
