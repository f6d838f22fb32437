{{/* The control plane's configuration file: what the chart knows, and controlPlane.config over it. */}}
{{- define "atm.controlPlane.config" -}}
{{- $store := dict -}}
{{- if eq .Values.controlPlane.store.type "postgresql" -}}
{{- $postgresql := .Values.controlPlane.store.postgresql -}}
{{- $store = dict "url" $postgresql.url "tls" $postgresql.tls -}}
{{- if $postgresql.existingSecret }}{{ $_ := set $store "passwordFile" "/etc/atm/postgresql/password" }}{{ end -}}
{{- if $postgresql.caSecret }}{{ $_ := set $store "caFile" "/etc/atm/postgresql-ca/ca.crt" }}{{ end -}}
{{- else -}}
{{- $store = dict "path" "/var/lib/atm/atm.db" -}}
{{- end -}}
{{- $listen := dict
  "oauth" (printf "0.0.0.0:%d" (int .Values.controlPlane.oauth.port))
  "admin" (printf "0.0.0.0:%d" (int .Values.controlPlane.admin.port))
  "adminAllowRemote" true
  "adminTls" (dict "certificate" "/etc/atm/admin-tls/tls.crt" "key" "/etc/atm/admin-tls/tls.key")
-}}
{{- if .Values.controlPlane.oauth.tlsSecret -}}
{{- $_ := set $listen "oauthTls" (dict "certificate" "/etc/atm/oauth-tls/tls.crt" "key" "/etc/atm/oauth-tls/tls.key") -}}
{{- end -}}
{{- $config := dict
  "issuer" .Values.issuer
  "realmGroup" .Values.realmGroup
  "listen" $listen
  "store" $store
  "nats" (include "atm.natsConfig" (list . "control-plane" .Values.nats.credentials.controlPlane) | fromYaml)
  "keys" (dict "wrappingKeyFile" "/etc/atm/secrets/wrapping.key")
  "admin" (dict "tokenFile" "/etc/atm/secrets/admin.token")
  "feed" (dict "signingKeyFile" "/etc/atm/secrets/feed.key" "snapshots" (dict "directory" "/var/lib/atm/snapshots"))
-}}
{{- if and .Values.nats.bundled.enabled (ge (int .Values.nats.bundled.replicas) 3) -}}
{{- $_ := set $config.nats "replicas" 3 -}}
{{- end -}}
{{- if .Values.nats.authCallout.enabled -}}
{{- $_ := set $config.nats "authCallout" (include "atm.calloutConfig" . | fromYaml) -}}
{{- end -}}
{{- mergeOverwrite $config (deepCopy .Values.controlPlane.config) | toYaml -}}
{{- end -}}

{{/* Who may come in to NATS by the token of its pod. */}}
{{- define "atm.calloutConfig" -}}
{{- $callout := .Values.nats.authCallout -}}
seedFile: /etc/atm/nats-callout/callout.seed
account: {{ ternary "ATM" $callout.account .Values.nats.bundled.enabled }}
issuer: {{ $callout.issuer | quote }}
audience: {{ $callout.audience | quote }}
serviceAccounts: {{ include "atm.calloutServiceAccounts" . }}
lifetimeSeconds: {{ $callout.lifetimeSeconds }}
{{- end -}}

{{/* The validators of this release, the namespaces in which pods are injected, and who is named beside them; as JSON. */}}
{{- define "atm.calloutServiceAccounts" -}}
{{- $accounts := list -}}
{{- if or .Values.node.enabled .Values.gateway.enabled -}}
{{- $accounts = append $accounts (printf "%s/%s-validator" .Release.Namespace (include "atm.fullname" .)) -}}
{{- end -}}
{{- if and .Values.operator.enabled .Values.operator.injection.enabled -}}
{{- range .Values.operator.injection.namespaces }}{{ $accounts = append $accounts (printf "%s/*" .) }}{{ end -}}
{{- end -}}
{{- concat $accounts .Values.nats.authCallout.serviceAccounts | uniq | toJson -}}
{{- end -}}

{{/* The section `nats` of either program. Takes (list . "user" credentials). */}}
{{- define "atm.natsConfig" -}}
{{- $root := index . 0 -}}
{{- $user := index . 1 -}}
{{- $credentials := index . 2 -}}
url: {{ include "atm.natsUrl" $root | quote }}
{{- if include "atm.byToken" (list $root $user) }}
tokenFile: /etc/atm/nats/token
{{- else if $root.Values.nats.bundled.enabled }}
user: {{ $user }}
passwordFile: /etc/atm/nats/{{ $user }}
{{- else if $credentials.existingSecret }}
credentials: /etc/atm/nats/{{ $credentials.key }}
{{- end }}
{{- end -}}

{{/* Something where this side logs in to NATS by the token of its pod. Takes (list . "user"). */}}
{{- define "atm.byToken" -}}
{{- if and (eq (index . 1) "validator") (index . 0).Values.nats.authCallout.enabled }}yes{{ end -}}
{{- end -}}

{{- define "atm.natsUrl" -}}
{{- if .Values.nats.bundled.enabled -}}
{{- $name := printf "%s-nats" (include "atm.fullname" .) -}}
{{- $servers := list -}}
{{- range $i := until (int .Values.nats.bundled.replicas) -}}
{{- $servers = append $servers (printf "nats://%s-%d.%s.%s.svc:4222" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $servers -}}
{{- else -}}
{{- .Values.nats.url -}}
{{- end -}}
{{- end -}}

{{/*
Volume `nats` with the token, the password or the credentials file of one side, where there is one. Takes (list . "user" credentials).
*/}}
{{- define "atm.natsVolume" -}}
{{- $root := index . 0 -}}
{{- $user := index . 1 -}}
{{- $credentials := index . 2 -}}
{{- if include "atm.byToken" (list $root $user) -}}
- name: nats
  {{- include "atm.tokenVolume" $root | nindent 2 }}
{{- else if $root.Values.nats.bundled.enabled -}}
- name: nats
  secret:
    secretName: {{ include "atm.natsSecretName" $root }}
    defaultMode: 0440
    items: [{ key: {{ $user }}, path: {{ $user }} }]
{{- else if $credentials.existingSecret -}}
- name: nats
  secret:
    secretName: {{ $credentials.existingSecret }}
    defaultMode: 0440
    items: [{ key: {{ $credentials.key }}, path: {{ $credentials.key }} }]
{{- end -}}
{{- end -}}

{{/*
The token of a pod for NATS alone, which the kubelet renews. Without a mode: where a pod has neither a group for its volumes nor one user
for all containers, as an injected one, the file is root's and must be readable by others.
*/}}
{{- define "atm.tokenVolume" -}}
projected:
  sources:
    - serviceAccountToken:
        audience: {{ .Values.nats.authCallout.audience | quote }}
        expirationSeconds: {{ .Values.nats.authCallout.tokenSeconds }}
        path: token
{{- end -}}
