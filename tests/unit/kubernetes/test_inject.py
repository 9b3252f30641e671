# SPDX-License-Identifier: Apache-2.0
"""contrib/kubernetes/inject.yaml, evaluated by cel-cpp and applied: which pods get what, and what stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kubernetes.admission import Policy, selects

Json = dict[str, Any]
CONTRIB = Path(__file__).parents[3] / "contrib/kubernetes"
OBJECTS: list[Json] = list(yaml.safe_load_all((CONTRIB / "inject.yaml").read_text()))
POLICY = Policy(OBJECTS[0])
BINDING = OBJECTS[1]["spec"]

USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BIN, LIB = "/usr/local/nvidia/bin", "/usr/local/nvidia/lib64"
CUDA_BIN, CUDA_LIB = "/usr/local/cuda/bin", "/usr/local/cuda/lib64"
MOUNT = {"name": "nvidiad-driver", "mountPath": "/usr/local/nvidia", "readOnly": True}
CUDA_MOUNT = {"name": "nvidiad-cuda", "mountPath": "/usr/local/cuda", "readOnly": True}
VOLUME = {"name": "nvidiad-driver", "hostPath": {"path": "/opt/nvidia/current", "type": "Directory"}}
CUDA_VOLUME = {"name": "nvidiad-cuda", "hostPath": {"path": "/opt/cuda/current", "type": "Directory"}}
TOKEN = {"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}


def pod(*containers: Json, inject: str | None = "driver", notes: Json | None = None, **spec: Any) -> Json:
    metadata: Json = {"name": "p", "labels": {"app": "p"}}
    if inject is not None:
        metadata["labels"]["io.nvidiad/inject"] = inject
    if notes is not None:
        metadata["annotations"] = notes
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [*containers], **spec},
    }


def container(name: str = "c", **more: Any) -> Json:
    return {"name": name, "image": "i", **more}


def env(*pairs: tuple[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in pairs]


FULL = container(env=env(("PATH", f"{USUAL}:{BIN}"), ("LD_LIBRARY_PATH", LIB)), volumeMounts=[MOUNT])
FULL_CUDA = container(
    env=env(("PATH", f"{USUAL}:{BIN}:{CUDA_BIN}"), ("LD_LIBRARY_PATH", f"{LIB}:{CUDA_LIB}")),
    volumeMounts=[MOUNT, CUDA_MOUNT],
)
FROM_A_MAP = {"name": "PATH", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}
FROM_ANYWHERE = {"configMapRef": {"name": "m"}}
OWN = {"name": "own", "mountPath": "/usr/local/nvidia"}

CASES: dict[str, tuple[Json, Json]] = {
    "a pod that says nothing": (pod(container()), pod(FULL, volumes=[VOLUME])),
    "CUDA, too": (
        pod(container(), inject="cuda"),
        pod(FULL_CUDA, inject="cuda", volumes=[VOLUME, CUDA_VOLUME]),
    ),
    "all containers, and those that come before them": (
        pod(container("a"), container("b"), initContainers=[container("c")]),
        pod(
            {**FULL, "name": "a"},
            {**FULL, "name": "b"},
            initContainers=[{**FULL, "name": "c"}],
            volumes=[VOLUME],
        ),
    ),
    "what is there stays, and comes first": (
        pod(
            container(
                env=env(
                    ("A", "1"), ("PATH", "/conda/bin:/bin"), ("LD_LIBRARY_PATH", "/usr/local/cuda/compat")
                ),
                volumeMounts=[TOKEN],
            ),
            volumes=[{"name": "kube-api-access-x", "projected": {}}],
        ),
        pod(
            container(
                env=env(
                    ("A", "1"),
                    ("PATH", f"/conda/bin:/bin:{BIN}"),
                    ("LD_LIBRARY_PATH", f"/usr/local/cuda/compat:{LIB}"),
                ),
                volumeMounts=[TOKEN, MOUNT],
            ),
            volumes=[{"name": "kube-api-access-x", "projected": {}}, VOLUME],
        ),
    ),
    "a pod that says everything already": (pod(FULL, volumes=[VOLUME]), pod(FULL, volumes=[VOLUME])),
    "one of the two paths is there": (
        pod(container(env=env(("PATH", f"{BIN}:/bin"), ("LD_LIBRARY_PATH", CUDA_LIB))), inject="cuda"),
        pod(
            container(
                env=env(("PATH", f"{BIN}:/bin:{CUDA_BIN}"), ("LD_LIBRARY_PATH", f"{CUDA_LIB}:{LIB}")),
                volumeMounts=[MOUNT, CUDA_MOUNT],
            ),
            inject="cuda",
            volumes=[VOLUME, CUDA_VOLUME],
        ),
    ),
    "a directory that only begins like ours": (
        pod(container(env=env(("PATH", f"{BIN}2"), ("LD_LIBRARY_PATH", f"/x{LIB}")))),
        pod(
            container(
                env=env(("PATH", f"{BIN}2:{BIN}"), ("LD_LIBRARY_PATH", f"/x{LIB}:{LIB}")),
                volumeMounts=[MOUNT],
            ),
            volumes=[VOLUME],
        ),
    ),
    "an empty value, and none at all": (
        pod(container(env=[{"name": "PATH", "value": ""}, {"name": "LD_LIBRARY_PATH"}])),
        pod(
            container(env=env(("PATH", BIN), ("LD_LIBRARY_PATH", LIB)), volumeMounts=[MOUNT]),
            volumes=[VOLUME],
        ),
    ),
    "a value from elsewhere stays": (
        pod(container(env=[FROM_A_MAP])),
        pod(
            container(env=[FROM_A_MAP, *env(("LD_LIBRARY_PATH", LIB))], volumeMounts=[MOUNT]),
            volumes=[VOLUME],
        ),
    ),
    "a name that is there twice: the last one counts": (
        pod(container(env=env(("PATH", "/a"), ("PATH", "/b"), ("LD_LIBRARY_PATH", LIB)))),
        pod(
            container(
                env=env(("PATH", "/a"), ("PATH", f"/b:{BIN}"), ("LD_LIBRARY_PATH", LIB)),
                volumeMounts=[MOUNT],
            ),
            volumes=[VOLUME],
        ),
    ),
    "the PATH of the image is kept where the pod says so": (
        pod(container(), notes={"io.nvidiad/keep-path": "true"}),
        pod(
            container(env=env(("LD_LIBRARY_PATH", LIB)), volumeMounts=[MOUNT]),
            notes={"io.nvidiad/keep-path": "true"},
            volumes=[VOLUME],
        ),
    ),
    "but one that the pod sets is added to": (
        pod(container(env=env(("PATH", "/a"))), notes={"io.nvidiad/keep-path": "true"}),
        pod(
            container(env=env(("PATH", f"/a:{BIN}"), ("LD_LIBRARY_PATH", LIB)), volumeMounts=[MOUNT]),
            notes={"io.nvidiad/keep-path": "true"},
            volumes=[VOLUME],
        ),
    ),
    "the LD_LIBRARY_PATH of the image is kept where the pod says so": (
        pod(container(envFrom=[FROM_ANYWHERE]), notes={"io.nvidiad/keep-library-path": "true"}),
        pod(
            container(envFrom=[FROM_ANYWHERE], env=env(("PATH", f"{USUAL}:{BIN}")), volumeMounts=[MOUNT]),
            notes={"io.nvidiad/keep-library-path": "true"},
            volumes=[VOLUME],
        ),
    ),
    "but one of those that the pod sets is added to": (
        pod(container(env=env(("LD_LIBRARY_PATH", "/a"))), notes={"io.nvidiad/keep-library-path": "true"}),
        pod(
            container(
                env=env(("LD_LIBRARY_PATH", f"/a:{LIB}"), ("PATH", f"{USUAL}:{BIN}")), volumeMounts=[MOUNT]
            ),
            notes={"io.nvidiad/keep-library-path": "true"},
            volumes=[VOLUME],
        ),
    ),
    "both are kept": (
        pod(
            container(),
            notes={"io.nvidiad/keep-path": "true", "io.nvidiad/keep-library-path": "true"},
        ),
        pod(
            container(env=[], volumeMounts=[MOUNT]),
            notes={"io.nvidiad/keep-path": "true", "io.nvidiad/keep-library-path": "true"},
            volumes=[VOLUME],
        ),
    ),
    "something of its own is mounted there": (
        pod(container(volumeMounts=[OWN]), volumes=[{"name": "own", "emptyDir": {}}]),
        pod(
            container(volumeMounts=[OWN], env=FULL["env"]), volumes=[{"name": "own", "emptyDir": {}}, VOLUME]
        ),
    ),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES.keys())
def test_what_a_pod_gets(given: Json, expected: Json) -> None:
    before = copy.deepcopy(given)
    admitted = POLICY.admit(given)
    assert admitted == expected
    assert given == before
    # Asked again, as `reinvocationPolicy` allows, and after every other webhook: nothing more.
    assert POLICY.patches(admitted) == []


MIRROR = {"kubernetes.io/config.mirror": "0123456789abcdef"}
NOT_MATCHED = {
    "no label": pod(container(), inject=None),
    "another value": pod(container(), inject="true"),
    "a static pod's mirror": pod(container(), notes=MIRROR),
    "Windows": pod(container(), os={"name": "windows"}),
}


@pytest.mark.parametrize("given", NOT_MATCHED.values(), ids=NOT_MATCHED.keys())
def test_who_gets_nothing(given: Json) -> None:
    assert not POLICY.matches(given)
    assert POLICY.admit(given) == given


def test_linux_and_other_annotations_are_no_reason_against_it() -> None:
    assert POLICY.matches(pod(container(), notes={"a/b": "c"}, os={"name": "linux"}))


def test_when_it_is_asked_and_where() -> None:
    assert POLICY.constraints["resourceRules"] == [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    ]
    assert BINDING["policyName"] == OBJECTS[0]["metadata"]["name"]
    for name, there in {"default": True, "kube-system": False}.items():
        selector = BINDING["matchResources"]["namespaceSelector"]
        assert selects(selector, {"kubernetes.io/metadata.name": name}) == there


PATHS = st.lists(st.sampled_from(["/a", "/b", BIN, LIB, CUDA_BIN, CUDA_LIB]), max_size=4).map(":".join)
VARIABLE = st.one_of(
    st.builds(
        lambda name, value: {"name": name, "value": value},
        st.sampled_from(["PATH", "LD_LIBRARY_PATH", "A"]),
        PATHS,
    ),
    st.just(FROM_A_MAP),
)
CONTAINER = st.fixed_dictionaries(
    {"name": st.just("c")},
    optional={
        "env": st.lists(VARIABLE, max_size=5),
        "volumeMounts": st.lists(st.sampled_from([TOKEN, MOUNT, OWN, CUDA_MOUNT]), max_size=3),
    },
)


@given(
    st.lists(CONTAINER, min_size=1, max_size=3),
    st.none() | st.lists(CONTAINER, min_size=1, max_size=2),
    st.none() | st.lists(st.sampled_from([VOLUME, CUDA_VOLUME, {"name": "own"}]), max_size=2),
    st.sampled_from(["driver", "cuda"]),
)
def test_whatever_a_pod_has_nothing_is_lost_and_nothing_added_twice(
    containers: list[Json], before: list[Json] | None, volumes: list[Json] | None, inject: str
) -> None:
    given_ = pod(*containers, inject=inject)
    for name, value in (("initContainers", before), ("volumes", volumes)):
        if value is not None:
            given_["spec"][name] = value
    admitted = POLICY.admit(given_)
    assert admitted["spec"]["volumes"][: len(volumes or ())] == (volumes or [])
    assert POLICY.patches(admitted) == []
    for kind in ("containers", "initContainers"):
        pairs = zip(given_["spec"].get(kind, []), admitted["spec"].get(kind, []), strict=True)
        for was, became in pairs:
            mounts = became["volumeMounts"]
            assert mounts[: len(was.get("volumeMounts", []))] == was.get("volumeMounts", [])
            assert any(mount["mountPath"] == "/usr/local/nvidia" for mount in mounts)
            last = {one["name"]: one for one in became["env"]}
            for old, new in zip(was.get("env", []), became["env"], strict=False):
                assert new["name"] == old["name"]
                assert new.get("value", "").startswith(old.get("value", ""))
            for name, ours in (("PATH", BIN), ("LD_LIBRARY_PATH", LIB)):
                assert "valueFrom" in last[name] or ours in last[name]["value"].split(":")


def test_a_variable_beyond_those_that_are_counted_is_left_as_it_is() -> None:
    many = env(*((f"V{number}", "x") for number in range(64)), ("PATH", "/my/bin"))
    admitted = POLICY.admit(pod(container(env=many)))
    assert admitted["spec"]["containers"][0]["env"] == [*many, *env(("LD_LIBRARY_PATH", LIB))]


def test_a_container_beyond_those_that_are_counted_is_left_as_it_is() -> None:
    many = [container(str(number)) for number in range(66)]
    admitted = POLICY.admit(pod(*many))
    assert [("env" in one) for one in admitted["spec"]["containers"]] == [True] * 64 + [False] * 2
