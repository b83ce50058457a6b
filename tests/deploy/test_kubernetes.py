"""deploy/kubernetes: valid by the published schemas, whole, and in agreement with the program."""

from __future__ import annotations

import copy
import math
import re
import shutil
import subprocess
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from conftest import ROOT, Gateway, Program, shutdown_seconds, size

DIRECTORY = ROOT / "deploy/kubernetes"
VERSIONS = ["1.32", "1.37"]
"""The oldest and the newest that the manifests are checked for."""

KUSTOMIZATION = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())
OBJECTS = {
    (document["kind"], document["metadata"]["name"]): document
    for file in DIRECTORY.glob("*.yaml")
    if file.name != "kustomization.yaml"
    for document in yaml.safe_load_all(file.read_text())
}
MONITOR = OBJECTS.pop(("ServiceMonitor", "snapgate"))
SET = OBJECTS["StatefulSet", "snapgate"]["spec"]
POD = SET["template"]["spec"]
(CONTAINER,) = POD["containers"]


def settings(snapgate: Program, tmp_path: Path) -> dict[str, Any]:
    """What is in effect in the pod, with its files where the pod's volumes put them."""
    (mount,) = [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if mount["name"] == "config"]
    (volume,) = [volume for volume in POD["volumes"] if volume["name"] == "config"]
    config_map, secret = volume["projected"]["sources"]
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert config_map["configMap"]["name"] == generated["name"]
    for item in secret["secret"]["items"]:
        (tmp_path / item["path"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / item["path"]).write_text("0123456789abcdef")
    for file in generated["files"]:
        (tmp_path / file).write_text((DIRECTORY / file).read_text().replace(mount, str(tmp_path)))
    *_, file = CONTAINER["args"]
    return snapgate.effective(Path(file.replace(mount, str(tmp_path))))


def assert_valid(document: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("document", [pytest.param(document, id="/".join(key)) for key, document in OBJECTS.items()])
def test_an_object_is_valid(document: dict[str, Any]):
    assert_valid(document)


DISCOVERY = DIRECTORY / "discovery"
RULES = {document["kind"]: document for document in yaml.safe_load_all((DISCOVERY / "rbac.yaml").read_text())}


@pytest.mark.parametrize("kind", RULES)
def test_what_discovery_needs_is_valid(kind: str):
    assert_valid(RULES[kind])


def test_discovery_may_read_endpoint_slices_and_nothing_else():
    (rule,) = RULES["Role"]["rules"]
    assert rule == {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    assert RULES["RoleBinding"]["roleRef"]["name"] == RULES["Role"]["metadata"]["name"]
    (subject,) = RULES["RoleBinding"]["subjects"]
    account = RULES["ServiceAccount"]["metadata"]["name"]
    assert subject == {"kind": "ServiceAccount", "name": account}
    patches = yaml.safe_load((DISCOVERY / "kustomization.yaml").read_text())["patches"]
    patched = {change["path"]: change["value"] for patch in patches for change in yaml.safe_load(patch["patch"])}
    assert patched["/spec/template/spec/serviceAccountName"] == account
    # What is replaced has to be there.
    assert POD["automountServiceAccountToken"] is False and patched["/spec/template/spec/automountServiceAccountToken"]


def test_a_mistake_would_be_found():
    wrong = copy.deepcopy(OBJECTS["StatefulSet", "snapgate"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        assert_valid(wrong)


def test_the_service_monitor_is_valid_by_the_operators_definition():
    schema = without_more(ServiceMonitor.model_json_schema())
    jsonschema.validate(MONITOR, schema)
    wrong = copy.deepcopy(MONITOR)
    wrong["spec"]["endpoints"][0]["intervall"] = "15s"
    with pytest.raises(jsonschema.ValidationError, match="intervall"):
        jsonschema.validate(wrong, schema)


def without_more(schema: Any) -> Any:
    """Refuses fields that the definition does not have, as the API server does for kubectl."""
    if isinstance(schema, dict):
        closed = {"additionalProperties": False} if "properties" in schema else {}
        return {**closed, **{key: without_more(value) for key, value in schema.items()}}
    return [without_more(value) for value in schema] if isinstance(schema, list) else schema


def test_kustomize_takes_every_manifest_but_the_one_that_needs_an_operator():
    files = {file.name for file in DIRECTORY.glob("*.yaml")} - {"kustomization.yaml", "service-monitor.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    (image,) = KUSTOMIZATION["images"]
    assert image["name"] == CONTAINER["image"]
    assert image["newTag"] == tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed, so kustomize was not run")
def test_kustomize_renders_the_same_objects():
    done = subprocess.run(["kubectl", "kustomize", DIRECTORY], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    rendered = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    assert set(rendered) == {kind for kind, _ in OBJECTS} | {"ConfigMap"}
    assert rendered["ConfigMap"]["data"]["snapgate.toml"] == (DIRECTORY / "snapgate.toml").read_text()
    assert rendered["ConfigMap"]["metadata"]["name"] in yaml.safe_dump(rendered["StatefulSet"])


def test_every_reference_has_its_referent():
    labels = SET["template"]["metadata"]["labels"]
    services = {name: document for (kind, name), document in OBJECTS.items() if kind == "Service"}
    assert SET["serviceName"] in services
    selectors = [SET["selector"]["matchLabels"], *(service["spec"]["selector"] for service in services.values())]
    selectors.append(OBJECTS["PodDisruptionBudget", "snapgate"]["spec"]["selector"]["matchLabels"])
    selectors.append(OBJECTS["NetworkPolicy", "snapgate"]["spec"]["podSelector"]["matchLabels"])
    assert all(selector.items() <= labels.items() for selector in selectors)
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for service in services.values():
        assert all(port["port"] == ports[port["targetPort"]] for port in service["spec"]["ports"])
    for rule in OBJECTS["NetworkPolicy", "snapgate"]["spec"]["ingress"]:
        assert all(port["port"] in ports for port in rule["ports"])
    wanted = MONITOR["spec"]["selector"]["matchLabels"]
    (scraped,) = [it for it in services.values() if wanted.items() <= it["metadata"]["labels"].items()]
    assert [port["name"] for port in scraped["spec"]["ports"]] == [MONITOR["spec"]["endpoints"][0]["port"]]
    volumes = [*POD["volumes"], *(claim["metadata"] for claim in SET["volumeClaimTemplates"])]
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in volumes}


def test_the_program_takes_its_arguments_and_its_configuration(snapgate: Program, tmp_path: Path):
    snapgate.assert_accepts(CONTAINER["args"])
    effective = settings(snapgate, tmp_path)
    listened = [int(effective[key].rpartition(":")[2]) for key in ("listen", "admin")]
    assert [port["containerPort"] for port in CONTAINER["ports"]] == listened
    assert not effective["admin"].startswith("127."), "the kubelet probes from outside the pod"
    assert effective["threads"] == int(CONTAINER["resources"]["requests"]["cpu"])
    reached = {int(target["url"].rpartition(":")[2]) for target in effective["targets"]}
    egress = OBJECTS["NetworkPolicy", "snapgate"]["spec"]["egress"]
    assert reached <= {port["port"] for rule in egress for port in rule["ports"]}


def test_replicas_hash_with_one_secret(snapgate: Program, tmp_path: Path):
    assert SET["replicas"] > 1
    # Which is read for this, and not shown.
    assert settings(snapgate, tmp_path)["tenant"]["secret_file"] == "<set>"


def test_a_shutdown_is_over_before_it_is_cut_short(snapgate: Program, tmp_path: Path):
    assert POD["terminationGracePeriodSeconds"] >= shutdown_seconds(settings(snapgate, tmp_path))


def test_the_store_fits_into_its_volume(snapgate: Program, tmp_path: Path):
    store, (claim,) = settings(snapgate, tmp_path)["store"], SET["volumeClaimTemplates"]
    files = ("retention_bytes", "wal_max_bytes", "ballast_bytes")
    assert size(claim["spec"]["resources"]["requests"]["storage"]) >= 1.2 * sum(size(store[key]) for key in files)


def test_memory_is_what_the_readme_says_and_the_pod_has_it(snapgate: Program, tmp_path: Path):
    effective = settings(snapgate, tmp_path)
    limits, otlp = effective["limits"], effective["otlp"]
    table = (ROOT / "README.md").read_text().partition("### Memory\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")]
    fixed = {name: math.prod(map(int, re.findall(r"\d+", most))) << 20 for name, most, _ in rows[1:] if most.endswith("MiB")}
    *_, (together, said, _) = [row for row in rows if row[0] == "**together**"]
    assert sum(fixed.values()) >> 20 == int(re.findall(r"\d+", said)[0]), together

    def row(begin: str) -> int:
        (found,) = [most for name, most in fixed.items() if name.startswith(begin)]
        return found

    assert row("bodies of requests") == size(limits["buffered_bytes"])
    assert row("records on their way to the store") == size(effective["pipeline"]["queue_bytes"]) * 9 // 8
    assert row("OTLP requests") == 2 * otlp["in_flight"] * size(otlp["batch_bytes"])
    (stream,) = [int(most.split()[0]) << 10 for name, most, _ in rows if name.startswith("each open request")]
    (target,) = [int(most.split()[0]) << 10 for name, most, _ in rows if name.startswith("each target")]
    assert size(CONTAINER["resources"]["limits"]["memory"]) >= sum(fixed.values()) + limits["in_flight"] * stream + 1_000 * target


def test_the_pod_is_the_images_user_and_writes_where_the_image_does():
    image = (ROOT / "deploy/Containerfile").read_text()
    user = re.search(r"^USER (\d+):(\d+)$", image, re.M)
    context = POD["securityContext"]
    assert [context["runAsUser"], context["runAsGroup"]] == [int(user[1]), int(user[2])]
    assert context["fsGroup"] == context["runAsGroup"]
    (data,) = [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if mount["name"] == "data"]
    assert f"ENV SNAPGATE_DATA_DIR={data}\n" in image


def test_what_is_probed_and_scraped_answers(gateway: Gateway):
    probes = [CONTAINER[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    for path in [*probes, MONITOR["spec"]["endpoints"][0]["path"]]:
        with urllib.request.urlopen(gateway.admin + path) as answer:
            assert answer.status == 200, path
