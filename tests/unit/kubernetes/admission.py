# SPDX-License-Identifier: Apache-2.0
"""What the API server does with a MutatingAdmissionPolicy of JSON patches: cel-cpp and this small binding.

Kubernetes gives CEL three things of its own. `JSONPatch` is made here a message with the four fields of
RFC 6902, so that a name or a type that is wrong does not compile. `variables` are evaluated in order, each
seeing those before it. `object` is untyped, as it is there. The rest (has, filter, map, exists, contains,
join) is CEL itself.

Not bound, as no policy here needs it: `Object` types, `jsonpatch.escapeKey`, `request`, `params`,
`authorizer`, the limits of cost. Not seen here: that the server wants the literals of one list or map to
be of one type.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import jsonpatch
from cel_expr_python import cel
from cel_expr_python.ext import ext_strings
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, struct_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]
_STRING, _MESSAGE = 9, 11


def _types() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    values = descriptor_pb2.FileDescriptorProto()
    struct_pb2.DESCRIPTOR.CopyToProto(values)
    pool.Add(values)
    made = descriptor_pb2.FileDescriptorProto(
        name="jsonpatch.proto", syntax="proto3", dependency=["google/protobuf/struct.proto"]
    )
    patch = made.message_type.add(name="JSONPatch")
    for number, name in enumerate(("op", "path", "from"), 1):
        patch.field.add(name=name, number=number, type=_STRING, label=1)
    patch.field.add(name="value", number=4, type=_MESSAGE, label=1, type_name=".google.protobuf.Value")
    pool.Add(made)
    return pool


_ENVIRONMENT = cel.NewEnv(
    _types(),
    variables={"object": cel.Type.DYN, "variables": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)},
    extensions=[ext_strings.ExtStrings()],
)


class Policy:
    """A policy and its binding, as the API server applies them to a pod that is created."""

    def __init__(self, policy: Json) -> None:
        spec = policy["spec"]
        self.constraints: Json = spec["matchConstraints"]
        self._conditions = [_ENVIRONMENT.compile(one["expression"]) for one in spec["matchConditions"]]
        self._variables = {one["name"]: _ENVIRONMENT.compile(one["expression"]) for one in spec["variables"]}
        self._mutations = [_ENVIRONMENT.compile(one["jsonPatch"]["expression"]) for one in spec["mutations"]]

    def matches(self, pod: Json) -> bool:
        """Whether the policy is for this pod."""
        selector = self.constraints["objectSelector"]
        return selects(selector, pod["metadata"].get("labels", {})) and all(
            condition.eval(data={"object": pod}).plain_value() is True for condition in self._conditions
        )

    def patches(self, pod: Json) -> list[Json]:
        """The operations of its one mutation."""
        data: Json = {"object": pod, "variables": {}}
        for name, variable in self._variables.items():
            data["variables"] = {**data["variables"], name: variable.eval(data=data).plain_value()}
        (mutation,) = self._mutations
        return [_operation(one) for one in mutation.eval(data=data).plain_value()]

    def admit(self, pod: Json) -> Json:
        """The pod as it is stored."""
        if not self.matches(pod):
            return pod
        return dict(jsonpatch.apply_patch(copy.deepcopy(pod), self.patches(pod)))


def _operation(message: Any) -> Json:
    return dict(json.loads(json_format.MessageToJson(message)))


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """A label selector of `matchExpressions`, with the two operators that are used here."""
    assert set(selector) == {"matchExpressions"}
    results = {
        "In": lambda one: labels.get(one["key"]) in one["values"],
        "NotIn": lambda one: labels.get(one["key"]) not in one["values"],
    }
    return all(results[one["operator"]](one) for one in selector["matchExpressions"])
