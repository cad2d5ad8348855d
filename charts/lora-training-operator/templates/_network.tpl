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

{{- /* Where the steps of these profiles must get to */ -}}
{{- define "lora.needs" -}}
{{- $storePorts := list }}{{ $llmPorts := list }}{{ $public := false }}{{ $local := false }}{{ $hub := false }}{{ $uncached := false }}
{{- range $name, $profile := . }}
{{- $scheme := ternary "http" "https" (eq (toString $profile.store.secure) "false") }}
{{- $storePorts = append $storePorts (include "lora.port" (printf "%s://%s" $scheme $profile.store.endpoint) | int) }}
{{- with $profile.llm }}
{{- if eq (toString .provider) "transformers" }}
{{- $local = true }}
{{- else if .baseURL }}
{{- $llmPorts = append $llmPorts (include "lora.port" .baseURL | int) }}
{{- else }}
{{- $public = true }}
{{- end }}
{{- end }}
{{- range $profile.models }}
{{- if eq .source "hub" }}
{{- /* with a cache the hub is for the Job that fills it, not for trainings */ -}}
{{- $hub = true }}
{{- $uncached = or $uncached (empty (default dict $profile.modelCache).persistentVolumeClaim) }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "storePorts" ($storePorts | uniq | sortAlpha) "llmPorts" ($llmPorts | uniq | sortAlpha) "publicLLM" $public "localLLM" $local "hub" $hub "uncachedHub" $uncached | toYaml }}
{{- end }}

{{- /* The port of a URL */ -}}
{{- define "lora.port" -}}
{{- $url := urlParse . }}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- default (ternary "80" "443" (eq $url.scheme "http")) $given }}
{{- end }}
