"""Construction of the chart's values.schema.json.

Unknown fields are errors everywhere. The schema of profiles is that of the models in `lora_api.profile`.
"""

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


def object_schema(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object with these fields and no others."""
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def enum_schema(*values: str) -> Schema:
    """Return the schema of a string that is one of the values."""
    return {"type": "string", "enum": list(values)}


def kubernetes_schema(*fields: str, kind: str = "object") -> Schema:
    """Return the schema of a part of the Kubernetes API. Only field names are checked; the API server checks the rest."""
    schema: Schema = {"type": kind}
    return schema | {"additionalProperties": False, "properties": {field: {} for field in fields}}


QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = object_schema(requests=QUANTITIES, limits=QUANTITIES)
# Templates write these texts into YAML without quotes, or into messages: they must not contain a line break or a quote.
LABEL_KEY: Schema = {
    "type": "string",
    "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    "maxLength": 317,
}
OPTIONAL_LABEL_KEY: Schema = {"anyOf": [{"const": ""}, LABEL_KEY]}
HOST: Schema = {"type": "string", "pattern": r"^((\*[.])?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
IMAGE_FIELDS: dict[str, Schema] = {
    "repository": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._/:-]*$"},
    "tag": {"type": "string", "pattern": "^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
}
IMAGE = object_schema(**IMAGE_FIELDS)
TOLERATIONS: Schema = {
    "type": "array",
    "items": object_schema(
        key=STRING,
        operator=enum_schema("Exists", "Equal", "Lt", "Gt"),
        value=STRING,
        effect=enum_schema("NoSchedule", "PreferNoSchedule", "NoExecute"),
        tolerationSeconds={"type": "integer"},
    ),
}
SPREAD: Schema = {
    "type": "array",
    "items": kubernetes_schema(
        *("maxSkew", "topologyKey", "whenUnsatisfiable", "labelSelector", "minDomains"),
        *("nodeAffinityPolicy", "nodeTaintsPolicy", "matchLabelKeys"),
    ),
}
CIDRS = object_schema(("cidr",), cidr=STRING, **{"except": STRINGS})
PEERS: Schema = {
    "type": "array",
    "items": object_schema(
        ipBlock=CIDRS,
        namespaceSelector=kubernetes_schema("matchLabels", "matchExpressions"),
        podSelector=kubernetes_schema("matchLabels", "matchExpressions"),
    ),
}
DESTINATION = object_schema(to=PEERS, ports=PORTS)
MONITOR = object_schema(enabled=BOOLEAN, labels=STRING_MAP, interval=DURATION)


def profiles() -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of the `profiles` value and the definitions that it refers to."""
    schema = Profile.model_json_schema(by_alias=True)
    definitions: dict[str, Schema] = schema.pop("$defs")
    by_name = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/Profile"}}
    return by_name, {name: _plain(part) for name, part in (definitions | {"Profile": schema}).items()}


def _plain(schema: Any) -> Any:
    """Remove the keys that JSON Schema does not define (CEL rules) or that are not needed (titles, defaults)."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    removed = {"title", "default", "x-kubernetes-validations", "discriminator"}
    # The keys under `properties` are names of fields, which may be equal to a removed key.
    return {
        key: {name: _plain(part) for name, part in value.items()} if key == "properties" else _plain(value)
        for key, value in schema.items()
        if key not in removed
    }


def build_schema() -> Schema:
    """Build the content of values.schema.json."""
    profiles_schema, definitions = profiles()
    values = object_schema(
        fullnameOverride=OPTIONAL_NAME,
        crds=object_schema(enabled=BOOLEAN, keep=BOOLEAN),
        image=object_schema(**IMAGE_FIELDS, pullPolicy=enum_schema("Always", "IfNotPresent", "Never")),
        annotateImage=IMAGE,
        trainImage=IMAGE,
        imagePullSecrets={"type": "array", "items": NAME},
        profiles=profiles_schema,
        watchNamespaces=NAMESPACES,
        logFormat=enum_schema("text", "json"),
        rbac=object_schema(create=BOOLEAN, scope=enum_schema("cluster", "namespaced"), aggregate=BOOLEAN),
        serviceAccount=object_schema(create=BOOLEAN, name=OPTIONAL_NAME, annotations=STRING_MAP),
        replicas={"type": "integer", "minimum": 0},
        resources=RESOURCES,
        podLabels=STRING_MAP,
        podAnnotations=STRING_MAP,
        nodeSelector=STRING_MAP,
        tolerations=TOLERATIONS,
        affinity=kubernetes_schema("nodeAffinity", "podAffinity", "podAntiAffinity"),
        topologySpreadConstraints=SPREAD,
        priorityClassName=OPTIONAL_NAME,
        networkPolicy=object_schema(
            enabled=BOOLEAN,
            jobNamespaces=NAMESPACES,
            metricsFrom=PEERS,
            apiServer=DESTINATION,
            dns=DESTINATION,
            store=DESTINATION,
            llm=DESTINATION,
            webhook=DESTINATION,
            internet=object_schema(to=PEERS),
        ),
        metrics=object_schema(authentication=enum_schema("None", "Token")),
        admissionPolicy=object_schema(
            enabled=BOOLEAN,
            namespaceSelector=kubernetes_schema("matchLabels", "matchExpressions"),
            priorityClasses={"type": "array", "items": NAME},
            runtimeClasses={"type": "array", "items": NAME},
            tolerationKeys={"type": "array", "items": OPTIONAL_LABEL_KEY},
            nodeSelectorKeys={"type": "array", "items": LABEL_KEY},
            gpuResources={"type": "array", "minItems": 1, "items": LABEL_KEY},
            maxGPUs={"type": "integer", "minimum": 0, "maximum": 16},
            approvers=object_schema(users=STRINGS, groups=STRINGS),
        ),
        serviceMonitor=MONITOR,
        podMonitor=MONITOR,
        prometheusRule=object_schema(
            enabled=BOOLEAN,
            labels=STRING_MAP,
            runbookURL={"type": "string", "pattern": "^https?://"},
            stuckHours={"type": "integer", "minimum": 1},
            dailySpendUSD={"type": "number", "minimum": 0},
        ),
        dashboard=object_schema(enabled=BOOLEAN, labels=STRING_MAP, annotations=STRING_MAP),
        modelCache=object_schema(
            enabled=BOOLEAN,
            claimName=NAME,
            namespaces=NAMESPACES,
            storageClassName=OPTIONAL_NAME,
            accessModes={
                "type": "array",
                "minItems": 1,
                "items": enum_schema("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"),
            },
            size=QUANTITY,
            keep=BOOLEAN,
            resources=RESOURCES,
        ),
        trialStore=object_schema(
            enabled=BOOLEAN,
            profile={"type": "string", "minLength": 1},
            jobNamespace=NAMESPACES["items"],
            image=IMAGE,
            clusterIP={"type": "string", "pattern": "^[0-9a-f.:]*$"},
            persistence=object_schema(enabled=BOOLEAN, storageClassName=OPTIONAL_NAME, size=QUANTITY),
            resources=RESOURCES,
        ),
        demo=object_schema(
            enabled=BOOLEAN,
            readOnly=BOOLEAN,
            jobs=object_schema(access=enum_schema("none", "user", "serviceAccount"), namespaces=NAMESPACES),
            profile={"type": "string", "minLength": 1},
            service=object_schema(
                type=enum_schema("ClusterIP", "NodePort", "LoadBalancer"),
                port={"type": "integer", "minimum": 1, "maximum": 65535},
            ),
            ingress=object_schema(
                enabled=BOOLEAN,
                className=OPTIONAL_NAME,
                annotations=STRING_MAP,
                host=HOST,
                tlsSecretName=OPTIONAL_NAME,
            ),
            resources=RESOURCES,
            nodeSelector=STRING_MAP,
            tolerations=TOLERATIONS,
        ),
    )
    # Helm adds this value when the chart is a subchart of another one.
    values["properties"] |= {"global": {"type": "object"}}
    # Helm 3 supports JSON Schema up to draft 7.
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "lora-training-operator"}
    return head | values | {"$defs": definitions}
