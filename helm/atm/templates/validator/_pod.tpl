{{/*
The validator's configuration file. Takes (list . "mode"): node, gateway or injected. validator.config goes over what the
chart makes, and the mode's own config over that.
*/}}
{{- define "atm.validator.config" -}}
{{- $root := index . 0 -}}
{{- $mode := index . 1 -}}
{{- $listen := dict "admin" (printf "0.0.0.0:%d" (int $root.Values.validator.adminPort)) "adminAllowRemote" true -}}
{{- $own := dict -}}
{{- if eq $mode "gateway" -}}
{{- $_ := set $listen "grpc" (printf "0.0.0.0:%d" (int $root.Values.gateway.grpcPort)) -}}
{{- if $root.Values.gateway.http.enabled -}}
{{- $_ := set $listen "http" (printf "0.0.0.0:%d" (int $root.Values.gateway.http.port)) -}}
{{- end -}}
{{- $own = $root.Values.gateway.config -}}
{{- else -}}
{{- /* Envoy runs as another user; who may connect is said by who mounts the directory. */ -}}
{{- $_ := set $listen "grpcUnix" "/run/atm/ext_authz.sock" -}}
{{- $_ := set $listen "grpcUnixMode" "0666" -}}
{{- if eq $mode "node" }}{{ $own = $root.Values.node.config }}{{ end -}}
{{- end -}}
{{- $config := dict
  "realmGroup" $root.Values.realmGroup
  "nats" (include "atm.natsConfig" (list $root "validator" $root.Values.nats.credentials.validator) | fromYaml)
  "feedKeys" $root.Values.made.publicKeys
  "store" (dict "path" "/var/lib/atm/feed")
  "listen" $listen
-}}
{{- mergeOverwrite $config (deepCopy $root.Values.validator.config) (deepCopy $own) | toYaml -}}
{{- end -}}

{{/* The validator's container. Takes (list . "mode" values). */}}
{{- define "atm.validator.container" -}}
{{- $root := index . 0 -}}
{{- $mode := index . 1 -}}
{{- $values := index . 2 -}}
name: validator
image: {{ include "atm.image" (list $root $root.Values.validator.image) }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
args: [--config, /etc/atm/validator/sidecar.yaml]
env:
  {{- include "atm.validator.id" . | nindent 2 }}
  {{- with $root.Values.validator.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - { name: metrics, containerPort: {{ $root.Values.validator.adminPort }} }
  {{- if eq $mode "gateway" }}
  - { name: grpc, containerPort: {{ $root.Values.gateway.grpcPort }} }
  {{- if $root.Values.gateway.http.enabled }}
  - { name: http, containerPort: {{ $root.Values.gateway.http.port }} }
  {{- end }}
  {{- end }}
startupProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 10
  timeoutSeconds: 3
# Ready once it has a state that it verified. Stays ready without NATS: decisions go on.
readinessProbe:
  httpGet: { path: /readyz, port: metrics }
  periodSeconds: 2
  timeoutSeconds: 2
{{- if gt (int $values.preStopSeconds) 0 }}
# Envoys are drained, and stop asking, before this program ends.
lifecycle:
  preStop: { sleep: { seconds: {{ $values.preStopSeconds }} } }
{{- end }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- include "atm.containerSecurity" $root | nindent 2 }}
volumeMounts:
  - { name: config, mountPath: /etc/atm/validator, readOnly: true }
  - { name: state, mountPath: /var/lib/atm }
  {{- if ne $mode "gateway" }}
  - { name: socket, mountPath: /run/atm }
  {{- end }}
  {{- if include "atm.natsVolume" (list $root "validator" $root.Values.nats.credentials.validator) }}
  - { name: nats, mountPath: /etc/atm/nats, readOnly: true }
  {{- end }}
{{- end -}}

{{/*
A validator's name in the fleet, NAMESPACE_POD: no two pods have one (`_` is in no name of Kubernetes), and kubectl knows both. It is also
what a token of the pod lets it in to NATS as.
*/}}
{{- define "atm.validator.id" -}}
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: ATM_ID
  value: $(POD_NAMESPACE)_$(POD_NAME)
{{- end -}}

{{/* The service account of this release's validators, where their tokens let them in to NATS. */}}
{{- define "atm.validator.serviceAccount" -}}
{{- if .Values.nats.authCallout.enabled }}
serviceAccountName: {{ include "atm.fullname" . }}-validator
{{- end }}
{{- end -}}
