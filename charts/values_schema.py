"""The chart's values.schema.json: strict everywhere, and for profiles what `lora_api.profile` says."""

from __future__ import annotations

from typing import Any

from lora_api.profile import Profile

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "array", "items": STRING}
STRING_MAP: Schema = {"type": "object", "additionalProperties": STRING}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
OPTIONAL_NAME: Schema = {"anyOf": [{"const": ""}, NAME]}
NAMESPACES: Schema = {
    "type": "array",
    "uniqueItems": True,
    "items": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
}
PORTS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
QUANTITY: Schema = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$"}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}


def an_object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    found: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return found | ({"required": list(required)} if required else {})


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def kubernetes(*fields: str, kind: str = "object") -> Schema:
    """A part of Kubernetes' API of which only the field names are checked here; the API server checks the rest."""
    found: Schema = {"type": kind}
    return found | {"additionalProperties": False, "properties": {field: {} for field in fields}}


QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = an_object(requests=QUANTITIES, limits=QUANTITIES)
IMAGE_FIELDS: dict[str, Schema] = {
    "repository": {"type": "string", "minLength": 1},
    "tag": STRING,
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
}
IMAGE = an_object(**IMAGE_FIELDS)
TOLERATIONS: Schema = {
    "type": "array",
    "items": an_object(
        key=STRING,
        operator=one_of("Exists", "Equal", "Lt", "Gt"),
        value=STRING,
        effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        tolerationSeconds={"type": "integer"},
    ),
}
SPREAD: Schema = {
    "type": "array",
    "items": kubernetes(
        *("maxSkew", "topologyKey", "whenUnsatisfiable", "labelSelector", "minDomains"),
        *("nodeAffinityPolicy", "nodeTaintsPolicy", "matchLabelKeys"),
    ),
}
CIDRS = an_object(("cidr",), cidr=STRING, **{"except": STRINGS})
PEERS: Schema = {
    "type": "array",
    "items": an_object(
        ipBlock=CIDRS,
        namespaceSelector=kubernetes("matchLabels", "matchExpressions"),
        podSelector=kubernetes("matchLabels", "matchExpressions"),
    ),
}
DESTINATION = an_object(to=PEERS, ports=PORTS)
MONITOR = an_object(enabled=BOOLEAN, labels=STRING_MAP, interval=DURATION)


def profiles() -> tuple[Schema, dict[str, Schema]]:
    """The schema of the `profiles` value and the definitions it refers to."""
    schema = Profile.model_json_schema(by_alias=True)
    definitions: dict[str, Schema] = schema.pop("$defs")
    found = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/Profile"}}
    return found, {name: _plain(part) for name, part in (definitions | {"Profile": schema}).items()}


def _plain(schema: Any) -> Any:
    """Without what JSON schema does not know (CEL rules) and what is only noise (titles, defaults)."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    noise = {"title", "default", "x-kubernetes-validations", "discriminator"}
    # under `properties` the keys are names of fields
    return {
        key: {name: _plain(part) for name, part in value.items()} if key == "properties" else _plain(value)
        for key, value in schema.items()
        if key not in noise
    }


def build_schema() -> Schema:
    """The whole values.schema.json."""
    profiles_schema, definitions = profiles()
    values = an_object(
        fullnameOverride=OPTIONAL_NAME,
        crds=an_object(enabled=BOOLEAN, keep=BOOLEAN),
        image=an_object(**IMAGE_FIELDS, pullPolicy=one_of("Always", "IfNotPresent", "Never")),
        annotateImage=IMAGE,
        trainImage=IMAGE,
        imagePullSecrets={"type": "array", "items": NAME},
        profiles=profiles_schema,
        watchNamespaces=NAMESPACES,
        rbac=an_object(create=BOOLEAN, scope=one_of("cluster", "namespaced"), aggregate=BOOLEAN),
        serviceAccount=an_object(create=BOOLEAN, name=OPTIONAL_NAME, annotations=STRING_MAP),
        replicas={"type": "integer", "minimum": 0},
        resources=RESOURCES,
        podLabels=STRING_MAP,
        podAnnotations=STRING_MAP,
        nodeSelector=STRING_MAP,
        tolerations=TOLERATIONS,
        affinity=kubernetes("nodeAffinity", "podAffinity", "podAntiAffinity"),
        topologySpreadConstraints=SPREAD,
        priorityClassName=OPTIONAL_NAME,
        networkPolicy=an_object(
            enabled=BOOLEAN,
            jobNamespaces=NAMESPACES,
            metricsFrom=PEERS,
            apiServer=DESTINATION,
            dns=DESTINATION,
            store=DESTINATION,
            llm=DESTINATION,
            internet=an_object(to=PEERS),
        ),
        serviceMonitor=MONITOR,
        podMonitor=MONITOR,
        prometheusRule=an_object(
            enabled=BOOLEAN,
            labels=STRING_MAP,
            stuckHours={"type": "integer", "minimum": 1},
            dailySpendUSD={"type": "number", "minimum": 0},
        ),
        dashboard=an_object(enabled=BOOLEAN, labels=STRING_MAP, annotations=STRING_MAP),
        modelCache=an_object(
            enabled=BOOLEAN,
            claimName=NAME,
            namespaces=NAMESPACES,
            storageClassName=OPTIONAL_NAME,
            accessModes={
                "type": "array",
                "minItems": 1,
                "items": one_of("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"),
            },
            size=QUANTITY,
            keep=BOOLEAN,
            resources=RESOURCES,
        ),
        trialStore=an_object(
            enabled=BOOLEAN,
            profile={"type": "string", "minLength": 1},
            jobNamespace=NAMESPACES["items"],
            image=IMAGE,
            clusterIP={"type": "string", "pattern": "^[0-9a-f.:]*$"},
            persistence=an_object(enabled=BOOLEAN, storageClassName=OPTIONAL_NAME, size=QUANTITY),
            resources=RESOURCES,
        ),
        demo=an_object(
            enabled=BOOLEAN,
            profile={"type": "string", "minLength": 1},
            service=an_object(
                type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
                port={"type": "integer", "minimum": 1, "maximum": 65535},
            ),
            ingress=an_object(
                enabled=BOOLEAN,
                className=OPTIONAL_NAME,
                annotations=STRING_MAP,
                host=STRING,
                tlsSecretName=OPTIONAL_NAME,
            ),
            resources=RESOURCES,
            nodeSelector=STRING_MAP,
            tolerations=TOLERATIONS,
        ),
    )
    # what Helm itself adds for a chart that is another's part
    values["properties"] |= {"global": {"type": "object"}}
    # Helm 3 knows drafts up to 7
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "lora-training-operator"}
    return head | values | {"$defs": definitions}
