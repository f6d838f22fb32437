{{- define "atm.operator.config" -}}
{{- $name := include "atm.fullname" . -}}
{{- $config := dict
  "controlPlane" (dict "url" (printf "https://%s-admin.%s.svc:%d" $name .Release.Namespace (int .Values.controlPlane.admin.port)) "tokenFile" "/etc/atm/secrets/admin.token" "caFile" "/etc/atm/admin-ca/ca.crt")
  "listen" (dict "health" "0.0.0.0:9194" "webhook" "0.0.0.0:8443")
  "policies" (dict "enabled" .Values.operator.policies.enabled)
  "issuers" (dict "enabled" .Values.operator.issuers.enabled)
-}}
{{- if .Values.operator.injection.enabled -}}
{{- $_ := set $config "webhook" (dict "enabled" true "namespace" .Release.Namespace "service" (printf "%s-webhook" $name) "secret" (printf "%s-webhook-tls" $name) "configuration" (printf "%s-injection" $name) "templateFile" "/etc/atm/injection/injection.yaml" "onError" .Values.operator.injection.onError) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What the webhook puts into pods: container, volumes, configuration. */}}
{{- define "atm.operator.injection" -}}
{{- $credentials := .Values.nats.credentials.validator -}}
{{- $byToken := include "atm.byToken" (list . "validator") -}}
{{- $login := or $byToken .Values.nats.bundled.enabled $credentials.existingSecret -}}
{{- $key := ternary "validator" $credentials.key .Values.nats.bundled.enabled -}}
container:
  name: atm-validator
  image: {{ include "atm.image" (list . .Values.validator.image) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # A native sidecar: there before the containers, and ended after them.
  restartPolicy: Always
  args: [--config, /etc/atm/validator/sidecar.yaml]
  env:
    {{- include "atm.validator.id" . | nindent 4 }}
    {{- with .Values.validator.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: atm-metrics, containerPort: {{ .Values.validator.adminPort }} }
  # The containers begin once it listens.
  startupProbe:
    httpGet: { path: /healthz, port: atm-metrics }
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet: { path: /healthz, port: atm-metrics }
    periodSeconds: 10
    timeoutSeconds: 3
  readinessProbe:
    httpGet: { path: /readyz, port: atm-metrics }
    periodSeconds: 2
    timeoutSeconds: 2
  resources:
    {{- toYaml .Values.operator.injection.resources | nindent 4 }}
  securityContext:
    {{- include "atm.containerSecurity" . | nindent 4 }}
    runAsNonRoot: true
    runAsUser: {{ .Values.podSecurity.runAsUser }}
    runAsGroup: {{ .Values.podSecurity.runAsGroup }}
    seccompProfile: { type: RuntimeDefault }
  volumeMounts:
    - { name: atm-config, mountPath: /etc/atm/validator, readOnly: true }
    - { name: atm-state, mountPath: /var/lib/atm }
    - { name: atm-socket, mountPath: /run/atm }
    {{- if $login }}
    - { name: atm-nats, mountPath: /etc/atm/nats, readOnly: true }
    {{- end }}
volumes:
  - name: atm-config
    downwardAPI:
      items: [{ path: sidecar.yaml, fieldRef: { fieldPath: "metadata.annotations['atm.dev/sidecar-config']" } }]
  - { name: atm-state, emptyDir: {} }
  - { name: atm-socket, emptyDir: { medium: Memory, sizeLimit: 1Mi } }
  {{- if $byToken }}
  - name: atm-nats
    {{- include "atm.tokenVolume" . | nindent 4 }}
  {{- else if $login }}
  - name: atm-nats
    secret:
      secretName: {{ include "atm.fullname" . }}-validator
      items: [{ key: {{ $key }}, path: {{ $key }} }]
  {{- end }}
config:
  {{- $config := include "atm.validator.config" (list . "injected") | fromYaml }}
  {{- mergeOverwrite $config (deepCopy .Values.operator.injection.config) | toYaml | nindent 2 }}
{{- end -}}
