{{/* The bundled NATS: its configuration, and the accounts that only a Secret may hold. */}}
{{- define "atm.nats.config" -}}
server_name: $POD_NAME
listen: 0.0.0.0:4222
# Health for the kubelet; nothing secret.
http: 0.0.0.0:8222
max_payload: 8MB
# Clients are asked to go elsewhere before the server ends.
pid_file: /var/run/nats/nats.pid
lame_duck_grace_period: 5s
lame_duck_duration: 30s

jetstream {
  store_dir: /data
  # By default NATS acknowledges up to two minutes before a message is on disk. What a crash loses all the same, the
  # control plane finds and publishes again.
  sync_interval: always
}

include ./secret/accounts.conf
{{- end }}
{{- define "atm.nats.accounts" -}}
{{- $group := .Values.realmGroup -}}
{{- $callout := .Values.nats.authCallout -}}
accounts {
  ATM {
    jetstream: enabled
    users: [
      { user: "control-plane", password: "{{ index .Values.made.nats "control-plane" }}" }
      {{- if or (not $callout.enabled) $callout.keepPassword }}
      {
        user: "validator", password: "{{ .Values.made.nats.validator }}"
        # A validator reads the feed, reports, and asks. It can publish nothing that another validator believes: that takes
        # the feed key's signature.
        permissions: {
          publish: { allow: [
            "atm.{{ $group }}.fleet.*", "atm.{{ $group }}.resync", "atm.{{ $group }}.digests",
            "atm.{{ $group }}.introspect", "atm.{{ $group }}.audit",
            "$JS.API.DIRECT.GET.ATM_FEED", "$JS.API.DIRECT.GET.ATM_FEED.>",
            "$JS.API.DIRECT.GET.ATM_SNAPSHOTS", "$JS.API.DIRECT.GET.ATM_SNAPSHOTS.>"
          ] }
          subscribe: { allow: [
            "atm.{{ $group }}.live", "atm.{{ $group }}.heartbeat", "atm.{{ $group }}.command", "_INBOX.>"
          ] }
        }
      }
      {{- end }}
    ]
  }
  SYS {}
}
system_account: SYS
{{- if $callout.enabled }}
# Who comes with a token of its pod: the control plane says whether, and for which subjects.
authorization {
  # Seconds that it has; a validator that was not let in comes again. Below two: then the server pings, and some clients take that for
  # the end of their login.
  timeout: 1.5
  auth_callout {
    issuer: "{{ .Values.made.callout.publicKey }}"
    account: ATM
    auth_users: ["control-plane"{{ if $callout.keepPassword }}, "validator"{{ end }}]
  }
}
{{- end }}
{{- if gt (int .Values.nats.bundled.replicas) 1 }}
{{- $name := printf "%s-nats" (include "atm.fullname" .) }}
cluster {
  name: {{ $name }}
  listen: 0.0.0.0:6222
  authorization: { user: cluster, password: "{{ .Values.made.nats.cluster }}" }
  routes: [
    {{- range $i := until (int .Values.nats.bundled.replicas) }}
    nats://cluster:{{ $.Values.made.nats.cluster }}@{{ $name }}-{{ $i }}.{{ $name }}:6222
    {{- end }}
  ]
}
{{- end }}
{{- end }}
