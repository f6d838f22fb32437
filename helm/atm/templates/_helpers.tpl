{{/* Names. */}}
{{- define "atm.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that names with a suffix and a pod's random part stay below 63. */}}
{{- define "atm.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "atm.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "atm.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change, for selectors. Takes (list . "component"). */}}
{{- define "atm.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "atm.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "atm.labels" -}}
{{- $root := index . 0 -}}
{{ include "atm.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: atm
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object. Takes (list . "component" "suffix" annotations); the annotations may be left out. */}}
{{- define "atm.metadata" -}}
{{- $root := index . 0 -}}
{{- $suffix := index . 2 -}}
name: {{ include "atm.fullname" $root }}{{ with $suffix }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "atm.labels" . | nindent 2 }}
{{- $annotations := dict }}
{{- if gt (len .) 3 }}{{ $annotations = merge (dict) (index . 3 | default dict) }}{{ end }}
{{- $annotations = merge $annotations $root.Values.commonAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* metadata of a pod template. Takes (list . "component" values checksum). */}}
{{- define "atm.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
labels:
  {{- $own := include "atm.labels" . | fromYaml }}
  {{- merge $own ($values.podLabels | default dict) | toYaml | nindent 2 }}
annotations:
  checksum/config: {{ index . 3 | sha256sum }}
  {{- with merge (dict) ($values.podAnnotations | default dict) $root.Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* An image. Takes (list . image); ours get the registry and the appVersion, a foreign one has its own tag. */}}
{{- define "atm.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $ours := not (hasKey $image "tag") -}}
{{- $name := $image.repository -}}
{{- if and $ours $root.Values.image.registry }}{{ $name = printf "%s/%s" $root.Values.image.registry $name }}{{ end -}}
{{- if $image.digest -}}
{{ $name }}@{{ $image.digest }}
{{- else -}}
{{ $name }}:{{ $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "atm.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where pods go. Takes (list . "component" values): spread over zones, then nodes, unless told otherwise. */}}
{{- define "atm.scheduling" -}}
{{- $values := index . 2 -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if hasKey $values "topologySpreadConstraints" }}
topologySpreadConstraints:
  {{- if $values.topologySpreadConstraints }}
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "atm.selector" $ | nindent 8 }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The pod's and the container's security contexts: no root, no capability, nothing writable but the volumes. */}}
{{- define "atm.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser }}
runAsGroup: {{ .Values.podSecurity.runAsGroup }}
fsGroup: {{ .Values.podSecurity.runAsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "atm.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- define "atm.serviceAccountName" -}}
{{- $account := .Values.controlPlane.serviceAccount -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-control-plane" (include "atm.fullname" .)) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Values that no schema can refuse, because two keys are wrong only together. All at once. */}}
{{- define "atm.check" -}}
{{- $wrong := list -}}
{{- $values := .Values -}}
{{- if and (not $values.issuer) $values.controlPlane.enabled -}}
{{- $wrong = append $wrong "issuer: is missing; set the URL at which clients reach the OAuth endpoints, as in https://id.example.com" -}}
{{- end -}}
{{- if and $values.nats.bundled.enabled $values.nats.url -}}
{{- $wrong = append $wrong "nats.url: is set, and so is nats.bundled.enabled; keep one of them" -}}
{{- end -}}
{{- if not (or $values.nats.bundled.enabled $values.nats.url) -}}
{{- $wrong = append $wrong "nats.url: is missing; set it, or nats.bundled.enabled: true" -}}
{{- end -}}
{{- if $values.nats.authCallout.enabled -}}
{{- if $values.nats.credentials.validator.existingSecret -}}
{{- $wrong = append $wrong "nats.credentials.validator.existingSecret: is set, and so is nats.authCallout.enabled; keep one of them" -}}
{{- end -}}
{{- if and $values.nats.bundled.enabled (not $values.controlPlane.enabled) -}}
{{- $wrong = append $wrong "nats.authCallout.enabled: needs controlPlane.enabled: true for the bundled NATS; nobody here could be asked who may come in" -}}
{{- end -}}
{{- if and $values.controlPlane.enabled (eq (include "atm.calloutServiceAccounts" .) "[]") -}}
{{- $wrong = append $wrong "nats.authCallout.serviceAccounts: is empty, and this release has no validators; list namespace/name, with * for any" -}}
{{- end -}}
{{- end -}}
{{- if $values.controlPlane.enabled -}}
{{- $store := $values.controlPlane.store -}}
{{- if and (eq $store.type "postgresql") (not $store.postgresql.url) -}}
{{- $wrong = append $wrong "controlPlane.store.postgresql.url: is missing; set it, as in postgres://atm@postgresql:5432/atm" -}}
{{- end -}}
{{- if and (eq $store.type "embedded") $values.controlPlane.autoscaling.enabled -}}
{{- $wrong = append $wrong "controlPlane.autoscaling: needs store.type: postgresql; the embedded store has one writer" -}}
{{- end -}}
{{- $tls := $values.controlPlane.admin.tls -}}
{{- if and (eq $tls.mode "secret") (not $tls.secretName) -}}
{{- $wrong = append $wrong "controlPlane.admin.tls.secretName: is missing; name the Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and (eq $tls.mode "certManager") (not $tls.certManager.name) -}}
{{- $wrong = append $wrong "controlPlane.admin.tls.certManager.name: is missing; name the issuer" -}}
{{- end -}}
{{- if and $values.controlPlane.oauth.httpRoute.enabled (not $values.controlPlane.oauth.httpRoute.parentRefs) -}}
{{- $wrong = append $wrong "controlPlane.oauth.httpRoute.parentRefs: is empty; name the Gateway" -}}
{{- end -}}
{{- else if not $values.secrets.existingSecret -}}
{{- if not $values.feedKeys -}}
{{- $wrong = append $wrong "feedKeys: is empty; without a control plane here, list the public feed keys of the one elsewhere" -}}
{{- end -}}
{{- end -}}
{{- if and $values.operator.enabled (not $values.controlPlane.enabled) -}}
{{- $wrong = append $wrong "operator.enabled: needs controlPlane.enabled: true; it applies resources to this release's control plane" -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n\nThese values cannot work:\n  %s\n" (join "\n  " $wrong)) -}}
{{- end -}}
{{- end -}}

{{/* A NetworkPolicy peer: the pods of this release. */}}
{{- define "atm.ofThisRelease" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/instance: {{ .Release.Name }}
      app.kubernetes.io/part-of: atm
{{- end }}
