"""The recipes of docs/scaling.md: every field is one that was read in its vendor's documents."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.docs.test_docs_snippets import ROOT, blocks

METADATA = "apiVersion kind metadata.name spec"
CONTAINERS = """
    name image args env.name env.value
    env.valueFrom.secretKeyRef.name env.valueFrom.secretKeyRef.key
    ports.containerPort readinessProbe.httpGet.path readinessProbe.httpGet.port
    readinessProbe.failureThreshold resources.limits.cpu resources.limits.memory
    resources.limits.nvidia.com/gpu volumeMounts.name volumeMounts.mountPath
"""
POD = [f"containers.{field}" for field in CONTAINERS.split()] + [
    "volumes.name",
    "volumes.persistentVolumeClaim.claimName",
]
RAY_GROUP = ["rayStartParams", "rayStartParams.num-cpus", *(f"template.spec.{f}" for f in POD)]
KNOWN: dict[str, list[str]] = {
    "Deployment": [
        *("spec.replicas", "spec.selector.matchLabels.app", "spec.template.metadata.labels.app"),
        *(f"spec.template.spec.{field}" for field in POD),
    ],
    "Service": ["spec.selector.app", "spec.ports.port", "spec.ports.targetPort"],
    "RayService": [
        *("spec.serveConfigV2", "spec.rayClusterConfig.rayVersion"),
        *(f"spec.rayClusterConfig.headGroupSpec.{field}" for field in RAY_GROUP),
        *(
            f"spec.rayClusterConfig.workerGroupSpecs.{field}"
            for field in ("groupName", "replicas", "minReplicas", "maxReplicas", *RAY_GROUP)
        ),
    ],
    "NIMService": [
        *(f"spec.image.{field}" for field in ("repository", "tag", "pullPolicy", "pullSecrets")),
        *("spec.authSecret", "spec.storage.nimCache.name", "spec.replicas"),
        "spec.resources.limits.nvidia.com/gpu",
        *("spec.expose.service.type", "spec.expose.service.port"),
    ],
    "NIMCache": [
        *(f"spec.source.ngc.{field}" for field in ("modelPuller", "pullSecret", "authSecret")),
        *(f"spec.storage.pvc.{field}" for field in ("create", "size", "volumeAccessMode")),
    ],
    "managedOnlineEndpoint": ["$schema", "name", "auth_mode"],
    "managedOnlineDeployment": [
        *("$schema", "name", "endpoint_name", "instance_type", "instance_count"),
        *("environment.name", "environment.image"),
        *(
            f"environment.inference_config.{route}_route.{field}"
            for route in ("liveness", "readiness", "scoring")
            for field in ("port", "path")
        ),
        *("environment_variables.MODEL_ID", "environment_variables.PORT"),
        "request_settings.request_timeout_ms",
        "request_settings.max_concurrent_requests_per_instance",
        *("readiness_probe.initial_delay", "readiness_probe.failure_threshold"),
    ],
}


def recipes() -> dict[str, Any]:
    """Each document of the YAML blocks by its kind."""
    found: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "scaling.md", {"yaml"}):
        for document in yaml.safe_load_all(block.code):
            schema = document.get("$schema", "").rpartition("/")[2].partition(".")[0]
            kind = document.get("kind", schema)
            assert kind not in found, kind
            found[kind] = document
    return found


def fields(value: Any, path: str = "") -> Iterator[str]:
    """The path of each value that is no mapping; the items of a list share one."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from fields(item, path)
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from fields(inner, f"{path}.{key}" if path else key)
    else:
        yield path


def test_there_is_a_recipe_for_each() -> None:
    assert set(recipes()) == set(KNOWN)


@pytest.mark.parametrize("kind", KNOWN)
def test_every_field_is_one_of_the_vendors(kind: str) -> None:
    unknown = set(fields(recipes()[kind])) - set(KNOWN[kind]) - set(METADATA.split())
    assert not unknown


# what Ray Serve's import says of its own use of pydantic
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ray_takes_the_serve_config_and_our_builder_its_arguments() -> None:
    from ray.serve.schema import ServeDeploySchema

    from bge_rerank_integrations.serve.app import ServeSettings, rerank_app

    config = yaml.safe_load(recipes()["RayService"]["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is rerank_app
    settings = ServeSettings.model_validate(application.args)
    assert settings.model == "BAAI/bge-reranker-v2-m3"
    assert settings.api_key_variable is not None
    (group,) = recipes()["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert settings.api_key_variable in [variable["name"] for variable in container["env"]]
    # Ray must be able to place what is asked for
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * group["replicas"]
    assert settings.gpus * settings.replicas <= gpus


def test_a_service_reaches_its_pods() -> None:
    deployment, service = recipes()["Deployment"]["spec"], recipes()["Service"]["spec"]
    assert service["selector"] == deployment["template"]["metadata"]["labels"]
    assert service["selector"] == deployment["selector"]["matchLabels"]
    (container,) = deployment["template"]["spec"]["containers"]
    ports = [port["containerPort"] for port in container["ports"]]
    assert [port["targetPort"] for port in service["ports"]] == ports
    assert container["args"][-1] == str(ports[0])
