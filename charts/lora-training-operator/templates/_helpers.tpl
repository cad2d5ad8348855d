{{- define "lora.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "lora.serviceAccount" -}}
{{- default (ternary (include "lora.name" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end }}

{{- define "lora.labels" -}}
app.kubernetes.io/name: lora-training-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* what tells a part's pods from the others of the release: (list root component) */ -}}
{{- define "lora.selector" -}}
app.kubernetes.io/name: lora-training-operator
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* metadata of an object of a part: (list root component) */ -}}
{{- define "lora.partLabels" -}}
{{ include "lora.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* image: (list root image) */ -}}
{{- define "lora.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- define "lora.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Both to the restricted Pod Security Standard; 65532 is the images' user. */ -}}
{{- define "lora.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "lora.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* What the operator's code calls, and its watches; a test compares. */ -}}
{{- define "lora.rules" -}}
- apiGroups: [lora-training.io]
  resources: [loratrainingjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [lora-training.io]
  resources: [loratrainingjobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create]
{{- end }}

{{- /* For the one of several operators that leads; in the release's namespace only. */ -}}
{{- define "lora.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
{{- end }}

{{- define "lora.trialEndpoint" -}}
{{- if .Values.trialStore.clusterIP -}}
{{ .Values.trialStore.clusterIP }}:8333
{{- else -}}
{{ include "lora.name" . }}-trial-store.{{ .Release.Namespace }}.svc:8333
{{- end -}}
{{- end }}

{{- /* The operator's file: the profiles of the values, one of them pointed at the trial store where that is enabled. */ -}}
{{- define "lora.profiles" -}}
{{- $profiles := deepCopy .Values.profiles }}
{{- if .Values.trialStore.enabled }}
{{- $store := dict "endpoint" (include "lora.trialEndpoint" .) "secure" false "secretName" "lora-store" }}
{{- $model := dict "source" "store" "key" "models/shapes-sdxl/" }}
{{- $trial := default dict (get $profiles .Values.trialStore.profile) }}
{{- $models := set (default dict $trial.models) "shapes-sdxl" $model }}
{{- $_ := set $profiles .Values.trialStore.profile (merge (dict "store" $store "models" $models) (omit $trial "store" "models")) }}
{{- end }}
{{- include "lora.checkProfiles" $profiles }}
{{- toYaml (dict "profiles" $profiles) }}
{{- end }}

{{- define "lora.demoProfile" -}}
{{- $profile := get (include "lora.profiles" . | fromYaml).profiles .Values.demo.profile }}
{{- if not $profile }}
{{- fail (printf "demo.profile: there is no profile %q" .Values.demo.profile) }}
{{- end }}
{{- toYaml $profile }}
{{- end }}

{{- /* The volume and the mount of a store's credentials, as training pods have them: (list secretName caConfigMap) */ -}}
{{- define "lora.storeVolumes" -}}
- name: store
  secret:
    secretName: {{ index . 0 }}
    defaultMode: 0440
    items:
      - {key: accessKey, path: accessKey}
      - {key: secretKey, path: secretKey}
{{- with index . 1 }}
- name: ca
  configMap:
    name: {{ . }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}

{{- define "lora.storeMounts" -}}
- {name: store, mountPath: /var/run/lora/store, readOnly: true}
{{- if index . 1 }}
- {name: ca, mountPath: /var/run/lora/ca, readOnly: true}
{{- end }}
{{- end }}

{{- /* Words for a list of allowed names, where none is allowed too */ -}}
{{- define "lora.orNone" -}}
{{- if . }}unset or one of: {{ join ", " . }}{{ else }}unset{{ end }}
{{- end }}

{{- /* Refuse what the schema cannot explain */ -}}
{{- define "lora.checkProfiles" -}}
{{- range $name, $profile := . }}
{{- if contains "://" $profile.store.endpoint }}
{{- $host := regexReplaceAll "^[a-z0-9]+://" $profile.store.endpoint "" | trimSuffix "/" }}
{{- fail (printf "profiles.%s.store.endpoint: %s must be HOST:PORT without a scheme: write %s, and set store.secure to %v" $name $profile.store.endpoint $host (hasPrefix "https" $profile.store.endpoint)) }}
{{- end }}
{{- end }}
{{- end }}
