"""GKE: one JobSet, one Job per TPU slice, one pod per host.

Field names and numbers follow xpk (367c838) and JobSet's TPU example (08dfbdf); no cluster was at
hand. GKE itself sets TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and MEGASCALE_*, which jax reads.
"""

from __future__ import annotations

from typing import Any

import yaml

from srpo_jax.distributed.accelerators import CLOUD, accelerator_type, machine_type
from srpo_jax.launch.spec import BUCKET_MOUNT, COORDINATOR_PORT, USER_ERROR, Spec

CONTAINER = "train"
# Else a TPU host keeps what it once saw of a file for ever, and no holder of a lease is seen alive.
MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0"
PORTS = (8471, 8431, COORDINATOR_PORT)  # between the chips' hosts, metrics, jax's coordinator


def render(spec: Spec) -> str:
    """The YAML for kubectl."""
    note = (
        f"# {spec.slices} slice(s) of {spec.slice.name} ({accelerator_type(spec.slice)}): each a "
        f"node pool of {spec.slice.hosts} x {machine_type(spec.slice)}\n"
    )
    return note + yaml.safe_dump(manifest(spec), sort_keys=False, width=100)


def submit_argv(spec: Spec) -> list[str]:
    """kubectl, reading the YAML from stdin. `create` refuses a name that is there already."""
    context = [f"--context={spec.cluster}"] if spec.cluster else []
    return ["kubectl", *context, "create", "--filename=-"]


def manifest(spec: Spec) -> dict[str, Any]:
    """The JobSet as Python objects."""
    labels = {"app.kubernetes.io/name": "srpo", "app.kubernetes.io/instance": spec.name}
    queue = {"kueue.x-k8s.io/queue-name": spec.queue} if spec.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "labels": labels | queue,
            # One Job, one slice, one node pool: the chips of a slice are wired to each other.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": spec.name},  # a headless service
            "failurePolicy": {
                "maxRestarts": spec.max_restarts,
                "rules": [
                    {
                        "name": "mistakes",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": spec.slices, "template": {"spec": _job(spec, labels)}}
            ],
        },
    }


def _job(spec: Spec, labels: dict[str, str]) -> dict[str, Any]:
    mistake = {"containerName": CONTAINER, "operator": "In", "values": [USER_ERROR]}
    # The bucket's sidecar is put in by GKE where it finds this annotation.
    annotations = {"gke-gcsfuse/volumes": "true"}
    return {
        "parallelism": spec.slice.hosts,
        "completions": spec.slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one lost host ends the slice's Job, and the JobSet starts all again
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": mistake}]},
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": _pod(spec),
        },
    }


def _pod(spec: Spec) -> dict[str, Any]:
    several = spec.slices > 1
    spot = {"cloud.google.com/gke-spot": "true"} if spec.spot else {}
    account = {"serviceAccountName": spec.service_account} if spec.service_account else {}
    # Between slices the data goes over the hosts' network: without the pod network in between.
    network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if several else {}
    tolerated = ["google.com/tpu"] + ["cloud.google.com/gke-spot"] * spec.spot
    bucket = {"bucketName": spec.bucket, "mountOptions": MOUNT_OPTIONS}
    if several:
        bucket["hostNetworkPodKSA"] = "true"
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": spec.grace_seconds,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": CLOUD[spec.slice.chip.name].gke,
            "cloud.google.com/gke-tpu-topology": spec.slice.name.partition(":")[2],
            **spot,
        },
        "tolerations": [{"key": key, "operator": "Exists"} for key in tolerated],
        **account,
        **network,
        "containers": [_container(spec)],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {
                "name": "bucket",
                "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket},
            },
        ],
    }


def _container(spec: Spec) -> dict[str, Any]:
    chips = {"google.com/tpu": spec.slice.host_chips}
    plain = [{"name": name, "value": _as_is(value)} for name, value in spec.environment().items()]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
        for variable, name, key in spec.secrets()
    ]
    return {
        "name": CONTAINER,
        "image": spec.image,
        "command": [
            _as_is(word) for word in spec.argv()
        ],  # no shell: the program is process 1 and gets SIGTERM itself
        "env": plain + secret,
        "ports": [{"containerPort": port} for port in PORTS],
        # The TPU's device files belong to root; the image's own user is another one.
        "securityContext": {"privileged": True, "runAsUser": 0},
        "resources": {"requests": dict(chips), "limits": dict(chips)},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # the data workers' shared memory
            {"name": "bucket", "mountPath": BUCKET_MOUNT},
        ],
    }


def _as_is(text: str) -> str:
    """Kubernetes puts a variable's value for $(NAME) in commands and values, and $ for $$."""
    return text.replace("$", "$$")
