{{- /* A rule to peers on TCP ports; no peers: to any; no ports: no rule, which would allow them all: (list peers ports) */ -}}
{{- define "lora.egress" -}}
{{- if index . 1 }}
- ports:
    {{- range index . 1 }}
    - {port: {{ . }}}
    {{- end }}
  {{- with index . 0 }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "lora.dns" -}}
- ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.dns.to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* The profiles that jobs of a namespace may use: (list root namespace) */ -}}
{{- define "lora.profilesIn" -}}
{{- $root := index . 0 }}{{ $namespace := index . 1 }}{{ $found := dict }}
{{- range $name, $profile := (include "lora.profiles" $root | fromYaml).profiles }}
{{- range $pattern := ternary $profile.namespaces (list "*") (hasKey $profile "namespaces") }}
{{- /* shell patterns, as the operator reads them */ -}}
{{- $regex := $pattern | replace "." "[.]" | replace "*" ".*" | replace "?" "." | replace "[!" "[^" }}
{{- if regexMatch (printf "^%s$" $regex) $namespace }}
{{- $_ := set $found $name $profile }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{- /* Where the stages of these profiles must get to */ -}}
{{- define "lora.needs" -}}
{{- $stores := list }}{{ $llms := list }}{{ $public := false }}{{ $local := false }}{{ $hub := false }}{{ $uncached := false }}{{ $segmentation := false }}
{{- range $name, $profile := . }}
{{- $scheme := ternary "http" "https" (eq (toString $profile.store.secure) "false") }}
{{- $stores = append $stores (include "lora.destination" (printf "%s://%s" $scheme $profile.store.endpoint) | fromYaml) }}
{{- with $profile.llm }}
{{- if eq (toString .provider) "transformers" }}
{{- $local = true }}
{{- else if .baseURL }}
{{- $llms = append $llms (include "lora.destination" (default .baseURL .proxy) | fromYaml) }}
{{- else if .proxy }}
{{- $llms = append $llms (include "lora.destination" .proxy | fromYaml) }}
{{- else }}
{{- $public = true }}
{{- end }}
{{- end }}
{{- /* with a cache the hub is for the Job that fills it, not for stages */ -}}
{{- $cached := not (empty (default dict $profile.modelCache).persistentVolumeClaim) }}
{{- range $profile.models }}
{{- if eq .source "hub" }}
{{- $hub = true }}
{{- $uncached = or $uncached (not $cached) }}
{{- end }}
{{- end }}
{{- with $profile.segmentation }}
{{- if eq .source "hub" }}
{{- $hub = true }}
{{- $segmentation = or $segmentation (not $cached) }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "stores" ($stores | uniq) "llms" ($llms | uniq) "publicLLM" $public "localLLM" $local "hub" $hub "uncachedHub" $uncached "uncachedSegmentation" $segmentation | toYaml }}
{{- end }}

{{- /* The webhooks of the profiles: their Secrets and destinations */ -}}
{{- define "lora.webhooks" -}}
{{- $secrets := list }}{{ $destinations := list }}
{{- range $name, $profile := (include "lora.profiles" . | fromYaml).profiles }}
{{- with $profile.webhook }}
{{- $secrets = append $secrets .secretName }}
{{- $destinations = append $destinations (include "lora.destination" .url | fromYaml) }}
{{- end }}
{{- end }}
{{- dict "secrets" ($secrets | uniq | sortAlpha) "destinations" ($destinations | uniq) | toYaml }}
{{- end }}

{{- /* The port of a URL and, where its host is a Service of the cluster, the namespace */ -}}
{{- define "lora.destination" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (urlParse .).host "" }}
{{- $namespace := "" }}
{{- if regexMatch "^[^.]+[.][^.]+[.]svc([.]|$)" $host }}
{{- $namespace = index (splitList "." $host) 1 }}
{{- end }}
{{- dict "port" (include "lora.port" . | int) "namespace" $namespace | toYaml }}
{{- end }}

{{- /* Rules to destinations: to the peers and ports of the values, else to the Services' namespaces, else to any
address on these ports: (list destinations values) */ -}}
{{- define "lora.egressTo" -}}
{{- $values := index . 1 }}
{{- range index . 0 }}
{{- $peers := $values.to }}
{{- if and (not $peers) .namespace }}
{{- $peers = list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .namespace))) }}
{{- end }}
{{- include "lora.egress" (list $peers (default (list .port) $values.ports)) }}
{{- end }}
{{- end }}

{{- /* Namespaces whose pods get policies */ -}}
{{- define "lora.jobNamespaces" -}}
{{- default .Values.watchNamespaces .Values.networkPolicy.jobNamespaces | uniq | toJson }}
{{- end }}

{{- /* The port of a URL */ -}}
{{- define "lora.port" -}}
{{- $url := urlParse . }}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- default (ternary "80" "443" (eq $url.scheme "http")) $given }}
{{- end }}
