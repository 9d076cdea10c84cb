{{/*
A values file may set any map of ours to null or to something else: "gloo-platform.map" gives an empty map then.
usage: include "gloo-platform.map" X | fromYaml
*/}}
{{- define "gloo-platform.map" -}}
{{- if kindIs "map" . }}{{ toYaml . }}{{ else }}{}{{ end }}
{{- end }}

{{/* The name of a Secret given as "name" or as {name: name}. usage: include "gloo-platform.secretName" (list VALUE DEFAULT) */}}
{{- define "gloo-platform.secretName" -}}
{{- $value := index . 0 }}
{{- if kindIs "map" $value }}{{ $value.name | default (index . 1) }}{{ else if kindIs "string" $value }}{{ $value | default (index . 1) }}{{ else }}{{ index . 1 }}{{ end }}
{{- end }}

{{- define "gloo-platform.secretKey" -}}
{{- if kindIs "map" . }}{{ .key | default "token" }}{{ else }}token{{ end }}
{{- end }}

{{/* usage: include "gloo-platform.image" (list $ COMPONENT NAME) */}}
{{- define "gloo-platform.image" -}}
{{- $root := index . 0 }}
{{- $common := include "gloo-platform.map" $root.Values.common | fromYaml }}
{{- $image := include "gloo-platform.map" (index . 1).image | fromYaml }}
{{- $registry := $image.registry | default $common.imageRegistry | default "ambitmesh" }}
{{- printf "%s/%s:%s" (trimSuffix "/" $registry) ($image.repository | default (index . 2)) (toString ($image.tag | default $common.imageTag | default $root.Chart.AppVersion)) }}
{{- end }}

{{/* usage: include "gloo-platform.labels" (list $ NAME) */}}
{{- define "gloo-platform.labels" -}}
app: {{ index . 1 }}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
app.kubernetes.io/part-of: gloo-platform
{{- end }}

{{/* extraEnvs: {NAME: {value: x}}, {NAME: x} or [{name, value}] */}}
{{- define "gloo-platform.extraEnvs" -}}
{{- if kindIs "map" . }}
{{- range $name, $env := . }}
{{- if kindIs "map" $env }}
- {{ toYaml (merge (dict "name" $name) $env) | nindent 2 | trim }}
{{- else if not (kindIs "invalid" $env) }}
- name: {{ $name }}
  value: {{ toString $env | quote }}
{{- end }}
{{- end }}
{{- else if kindIs "slice" . }}
{{- range . }}
- {{ toYaml . | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gloo-platform.pullSecrets" -}}
{{- if kindIs "slice" . }}
{{- range . }}
- name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Pod security: the strictest Pod Security Standard ("restricted"). usage: include "gloo-platform.podSecurity" COMPONENT */}}
{{- define "gloo-platform.podSecurity" -}}
runAsNonRoot: true
{{- if not .floatingUserId }}
runAsUser: {{ .runAsUser | default 10101 | int64 }}
runAsGroup: {{ .runAsUser | default 10101 | int64 }}
{{- end }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Where the audit log is kept: a SQLite file has one writer. usage: include "gloo-platform.auditStore" SERVER */}}
{{- define "gloo-platform.auditStore" -}}
{{- $audit := include "gloo-platform.map" .audit | fromYaml }}
{{- $replicas := .replicas | default 1 | int }}
{{- $postgres := include "gloo-platform.map" $audit.postgres | fromYaml }}
{{- $store := $audit.store | default ($postgres.secretName | empty | not | ternary "postgres" (eq $replicas 1 | ternary "sqlite" "stdout")) }}
{{- if not (has $store (list "sqlite" "postgres" "stdout")) }}{{ fail (printf "glooMgmtServer.audit.store %q: want sqlite, postgres or stdout" $store) }}{{ end }}
{{- if and (eq $store "sqlite") (gt $replicas 1) }}{{ fail "glooMgmtServer.audit.store sqlite is one file with one writer: set glooMgmtServer.replicas to 1, or audit.store to postgres or stdout" }}{{ end }}
{{- $store }}
{{- end }}

{{- define "gloo-platform.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/*
Merges overrides over an object, save its containers: a fragment of that list would replace the whole of it.
usage: include "gloo-platform.override" (list YAML OVERRIDES)
*/}}
{{- define "gloo-platform.override" -}}
{{- $object := index . 0 | fromYaml }}
{{- $overrides := include "gloo-platform.map" (index . 1) | fromYaml }}
{{- $containers := dig "spec" "template" "spec" "containers" list $object }}
{{- $merged := mergeOverwrite $object $overrides }}
{{- if $containers }}{{ $_ := set $merged.spec.template.spec "containers" $containers }}{{ end }}
{{- toYaml $merged }}
{{- end }}
