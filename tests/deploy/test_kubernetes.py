"""deploy/kubernetes.yaml: by the rules of the PyTorchJob API, and its command run as the operator would start it."""

import copy
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
TINY = "--data shapes --steps 3 --batch-size 8 --checkpoint-every 2 --summary-every 0 --no-test --threads 1"

# What the API server and the operator's webhook demand: {key: schema} is an object with these keys and no others, those
# with a "!" required; [schema] a list; a string a pattern that the whole value matches; a type a value of it; None
# anything.
NAME = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
QUANTITY = r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?"
WHOLE = r"\d+"
RESOURCES = {"cpu": QUANTITY, "memory": QUANTITY, "nvidia.com/gpu": WHOLE}
CONTAINER = {
    "name!": NAME,
    "image!": r"[\w./-]+(:[\w.-]+)?",
    "imagePullPolicy": "Always|IfNotPresent|Never",
    "command": [str],
    "args": [str],
    "env": [{"name!": r"[A-Za-z_]\w*", "value": str}],
    "ports": [{"name": NAME, "containerPort!": WHOLE}],
    "resources!": {"requests!": RESOURCES, "limits!": RESOURCES},
    "volumeMounts": [{"name!": NAME, "mountPath!": "/.+", "readOnly": bool}],
}
REPLICA = {
    "replicas": r"[1-9]\d*",
    "restartPolicy": "Always|OnFailure|Never|ExitCode",
    "template!": {
        "spec!": {
            "terminationGracePeriodSeconds": WHOLE,
            "containers!": [CONTAINER],
            "volumes": [{"name!": NAME, "persistentVolumeClaim": {"claimName!": NAME}, "emptyDir": None}],
        }
    },
}
JOB = {
    "apiVersion!": r"kubeflow\.org/v1",
    "kind!": "PyTorchJob",
    "metadata!": {"name!": NAME, "namespace": NAME, "labels": None},
    "spec!": {
        "nprocPerNode": r"auto|cpu|gpu|[1-9]\d*",
        "elasticPolicy": {
            "rdzvBackend": "c10d|etcd|etcd-v2",
            "rdzvId": str,
            "rdzvHost": str,
            "rdzvPort": WHOLE,
            "rdzvConf": [{"key!": str, "value!": str}],
            "minReplicas": r"[1-9]\d*",
            "maxReplicas": r"[1-9]\d*",
            "maxRestarts": WHOLE,
            "standalone": bool,
        },
        "runPolicy": {
            "cleanPodPolicy": "All|Running|None",
            "ttlSecondsAfterFinished": WHOLE,
            "activeDeadlineSeconds": WHOLE,
            "backoffLimit": WHOLE,
            "suspend": bool,
        },
        "pytorchReplicaSpecs!": {"Master": REPLICA, "Worker": REPLICA},
    },
}
CLAIM = {
    "apiVersion!": "v1",
    "kind!": "PersistentVolumeClaim",
    "metadata!": {"name!": NAME},
    "spec!": {
        "accessModes!": ["ReadWriteOnce|ReadOnlyMany|ReadWriteMany|ReadWriteOncePod"],
        "storageClassName": NAME,
        "resources!": {"requests!": {"storage!": QUANTITY}},
    },
}
# Values that are strings in the API, so that a bare number of YAML is refused.
STRINGS = ("nprocPerNode", "rdzvId", "value", "command", "args", "image", "name")


def faults(value: Any, schema: Any, where: str = "") -> Iterator[str]:
    """Yield what is wrong with a value."""
    if isinstance(schema, dict):
        yield from object_faults(value, schema, where)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{where}: not a list"
            return
        for index, entry in enumerate(value):
            yield from faults(entry, schema[0], f"{where}[{index}]")
    elif isinstance(schema, type):
        if type(value) is not schema:
            yield f"{where}: {value!r} is not a {schema.__name__}"
    elif schema is not None:
        key = where.rpartition(".")[2].partition("[")[0]
        kind = str if key in STRINGS else (str, int)
        if not isinstance(value, kind) or isinstance(value, bool) or not re.fullmatch(schema, str(value)):
            yield f"{where}: {value!r} does not match {schema}"


def object_faults(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """Yield what is wrong with an object."""
    if not isinstance(value, dict):
        yield f"{where}: not an object"
        return
    known = {key.removesuffix("!"): inner for key, inner in schema.items()}
    for key in schema:
        if key.endswith("!") and key.removesuffix("!") not in value:
            yield f"{where}: no {key.removesuffix('!')}"
    for key, inner in value.items():
        if key not in known:
            yield f"{where}: unknown key {key}"
        else:
            yield from faults(inner, known[key], f"{where}.{key}")


def job_faults(job: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a job: its form, and the rules between its parts."""
    form = list(faults(job, JOB, "job"))
    yield from form
    if form:
        return
    spec = job["spec"]
    replicas, elastic = spec["pytorchReplicaSpecs"], spec.get("elasticPolicy")
    if not replicas:
        yield "no replicas"
    if replicas.get("Master", {}).get("replicas", 1) != 1:
        yield "more than one Master"
    if elastic is not None:
        if "Worker" not in replicas:
            yield "an elastic job needs a Worker"
        elif not elastic["minReplicas"] <= replicas["Worker"]["replicas"] <= elastic["maxReplicas"]:
            yield "replicas outside of minReplicas and maxReplicas"
    for kind, replica in replicas.items():
        pod = replica["template"]["spec"]
        if [container["name"] for container in pod["containers"]].count("pytorch") != 1:
            yield f"{kind}: no container is named pytorch"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{kind}: no volume {mount['name']}"
            for resource, amount in container["resources"]["requests"].items():
                if container["resources"]["limits"].get(resource, amount) != amount:
                    yield f"{kind}: request and limit of {resource} differ"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))


@pytest.fixture
def job(documents) -> dict[str, Any]:
    return copy.deepcopy(documents[1])


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]


def test_the_claim_is_valid_and_many_pods_may_write_to_it(documents) -> None:
    claim = documents[0]
    assert list(faults(claim, CLAIM, "claim")) == []
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_job_is_valid_and_uses_the_claim(documents) -> None:
    claim, job = documents
    assert list(job_faults(job)) == []
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]] == [claim["metadata"]["name"]]
    # Without an id a restarted job would not find its run.
    assert job["spec"]["elasticPolicy"]["rdzvId"]


def test_the_job_is_valid_on_gpus(job) -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    (limit,) = re.findall(r"# (nvidia\.com/gpu: .*)", text)
    container_of(job)["resources"]["limits"] |= yaml.safe_load(limit)
    job["spec"]["nprocPerNode"] = "8"
    assert list(job_faults(job)) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("apiVersion", "kubeflow.org/v2", "apiVersion"),
        ("kind", "TFJob", "kind"),
        ("metadata.name", "Thumbnet", "name"),
        ("spec.nprocPerNode", 1, "nprocPerNode"),
        ("spec.elasticPolicy.rdzvBackend", "mpi", "rdzvBackend"),
        ("spec.elasticPolicy.minReplicas", 3, "outside"),
        ("spec.elasticPolicy.nnodes", 3, "unknown key nnodes"),
        ("spec.runPolicy.cleanPodPolicy", None, "cleanPodPolicy"),
        ("spec.pytorchReplicaSpecs.Chief", {}, "unknown key Chief"),
        ("spec.pytorchReplicaSpecs.Worker.restartPolicy", "Sometimes", "restartPolicy"),
        ("spec.pytorchReplicaSpecs.Worker.replicas", 0, "replicas"),
    ],
)
def test_what_the_api_refuses_is_found(job, path, value, fault) -> None:
    *parents, last = path.split(".")
    inner = job
    for key in parents:
        inner = inner[key]
    inner[last] = value
    assert any(fault in found for found in job_faults(job)), list(job_faults(job))


def test_a_container_of_another_name_or_without_resources_is_found(job) -> None:
    container_of(job)["name"] = "trainer"
    assert list(job_faults(job)) == ["Worker: no container is named pytorch"]
    del container_of(job)["resources"]
    assert any("no resources" in fault for fault in job_faults(job))


def environment_of(job: dict[str, Any], index: int, port: int, shared: Path) -> dict[str, str]:
    """Return what a pod's container finds in its environment: its own entries and the operator's for torchrun."""
    elastic = job["spec"]["elasticPolicy"]
    own = {entry["name"]: entry["value"] for entry in container_of(job)["env"]}
    return own | {
        "THUMBNET_SHARED": str(shared),
        "PET_RDZV_ENDPOINT": f"localhost:{port}",
        "PET_RDZV_BACKEND": elastic["rdzvBackend"],
        "PET_RDZV_ID": elastic["rdzvId"],
        "PET_NNODES": f"{elastic['minReplicas']}:{elastic['maxReplicas']}",
        "PET_NPROC_PER_NODE": job["spec"]["nprocPerNode"],
        "PET_MAX_RESTARTS": str(elastic["maxRestarts"]),
        "PET_NODE_RANK": str(index),
    }


def words_of(job: dict[str, Any], environment: dict[str, str]) -> list[str]:
    """Return the container's command line; $(NAME) stands for a variable of its environment."""
    words = container_of(job)["command"] + container_of(job)["args"]
    return [re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word) for word in words]


def test_the_command_trains(job, tmp_path) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    pods = []
    for index in range(job["spec"]["elasticPolicy"]["maxReplicas"]):
        environment = environment_of(job, index, port, tmp_path)
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        environment |= {"PATH": os.pathsep.join(paths), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment |= {"PET_RDZV_CONF": "last_call_timeout=200"}  # under load one may start much later than the other
        words = words_of(job, environment) + TINY.split()
        pods.append(
            subprocess.Popen(
                words, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for pod in pods:
        _, said = pod.communicate(timeout=300)
        assert pod.returncode == 0, said
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert (result["preset"], result["steps"], result["replicas"]) == ("classic", 3, 2)
