{{- define "caa.name" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- $name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "caa.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "caa.labels" -}}
{{ include "caa.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "caa.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Which component runs agents. */}}
{{- define "caa.runner" -}}
{{ ternary "worker" "api" .Values.worker.enabled }}
{{- end }}

{{/* What cannot be, and a schema cannot say. */}}
{{- define "caa.check" -}}
{{- $store := or .Values.workspaces.storeUrl (has "WORKSPACE_STORE_URL" .Values.secret.keys) }}
{{- if and .Values.workspaces.storeUrl (has "WORKSPACE_STORE_URL" .Values.secret.keys) }}
{{- fail "workspaces.storeUrl and WORKSPACE_STORE_URL in secret.keys: give one of them" }}
{{- end }}
{{- if not (or $store .Values.workspaces.existingClaim) }}
{{- fail "instances need the files of sessions in common: set workspaces.storeUrl, or workspaces.existingClaim to a claim that is ReadWriteMany" }}
{{- end }}
{{- if and (eq .Values.autoscaling.mode "keda") (not .Values.autoscaling.prometheusUrl) }}
{{- fail "autoscaling.mode keda: set autoscaling.prometheusUrl" }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" }}
{{- end }}
{{- end }}

{{/* Settings and secrets of a pod. Context: settings, secrets (names of keys). */}}
{{- define "caa.env" -}}
{{- range $name, $value := .settings }}
- name: {{ $name }}
  {{- /* A large number would be written as 8e+06. */}}
  {{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ $value = int64 $value }}{{ end }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- range .secrets }}
- name: {{ . }}_FILE
  value: /run/secrets/claude-agent-api/{{ . }}
{{- end }}
{{- end }}

{{/* A volume with the secrets. Context: root, secrets, owner (whether that of the owner is in it). */}}
{{- define "caa.secrets" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ .root.Values.secret.existingSecret }}
          items:
            {{- range .secrets }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      {{- if .owner }}
      - secret:
          name: {{ .root.Values.secret.ownerSecret }}
          items:
            - {key: DATABASE_OWNER_URL, path: DATABASE_OWNER_URL}
      {{- end }}
{{- end }}

{{- define "caa.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- end }}

{{- define "caa.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
