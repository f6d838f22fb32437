{{/*
Secrets are made once. What a Secret in the cluster holds already is kept; the rest is made now. Templates are rendered one by
one and each call of a random function gives something new, so the outcome is kept in .Values for the others.
*/}}

{{/* base64url without padding, of base64. */}}
{{- define "atm.url64" -}}
{{- . | replace "+" "-" | replace "/" "_" | trimAll "=" -}}
{{- end -}}

{{/*
The Ed25519 public key of a seed of 32 bytes, both in base64. Helm has no function for it, but makes certificates for keys: the seed is
wrapped as PKCS #8 (RFC 8410, a fixed head of 16 bytes), a certificate made for it, and the 32 bytes taken that
follow the algorithm's identifier in its SubjectPublicKeyInfo.
*/}}
{{- define "atm.ed25519PublicKey" -}}
{{- $head := b64dec "MC4CAQAwBQYDK2VwBCIEIA==" -}}
{{- $pem := printf "-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n" (printf "%s%s" $head (b64dec .) | b64enc) -}}
{{- $certificate := (genSelfSignedCertWithKey "atm" nil nil 1 $pem).Cert -}}
{{- $der := $certificate | replace "-----BEGIN CERTIFICATE-----" "" | replace "-----END CERTIFICATE-----" "" | replace "\n" "" | b64dec -}}
{{- index (splitList (b64dec "MCowBQYDK2VwAyEA") $der) 1 | substr 0 32 | b64enc -}}
{{- end -}}

{{/* The public half of a feed key, both in base64url. */}}
{{- define "atm.feedPublicKey" -}}
{{- $seed := printf "%s=" . | replace "-" "+" | replace "_" "/" | b64dec -}}
{{- if ne (len $seed) 32 }}{{ fail "\n\nfeed.key: must be 32 random bytes in base64url without padding (43 characters)\n" }}{{ end -}}
{{- include "atm.url64" (include "atm.ed25519PublicKey" ($seed | b64enc)) -}}
{{- end -}}

{{- define "atm.secretName" -}}
{{- .Values.secrets.existingSecret | default (printf "%s-secrets" (include "atm.fullname" .)) -}}
{{- end -}}

{{- define "atm.natsSecretName" -}}
{{ include "atm.fullname" . }}-nats-users
{{- end -}}

{{- define "atm.calloutSecretName" -}}
{{- .Values.nats.authCallout.existingSecret | default (printf "%s-nats-callout" (include "atm.fullname" .)) -}}
{{- end -}}

{{- define "atm.adminTlsSecretName" -}}
{{- $tls := .Values.controlPlane.admin.tls -}}
{{- if eq $tls.mode "secret" }}{{ $tls.secretName }}{{ else }}{{ include "atm.fullname" . }}-admin-tls{{ end -}}
{{- end -}}

{{/* Fills .Values.made once in a rendering: { secrets, publicKeys, nats, callout, tls }. */}}
{{- define "atm.make" -}}
{{- if not (hasKey .Values "made") -}}
{{- include "atm.check" . -}}
{{- $made := dict -}}
{{- $old := (lookup "v1" "Secret" .Release.Namespace (include "atm.secretName" .)).data | default dict -}}
{{- $secrets := dict -}}
{{- if not .Values.secrets.existingSecret -}}
{{- range $key := list "wrapping.key" "feed.key" "admin.token" -}}
{{- $kept := index $old $key | default "" | b64dec -}}
{{- $_ := set $secrets $key ($kept | default (include "atm.url64" (randBytes 32))) -}}
{{- end -}}
{{- else if hasKey $old "feed.key" -}}
{{- $_ := set $secrets "feed.key" (index $old "feed.key" | b64dec | trim) -}}
{{- end -}}
{{- $_ := set $made "secrets" $secrets -}}
{{- $keys := .Values.feedKeys -}}
{{- if hasKey $secrets "feed.key" -}}
{{- $keys = concat (list (include "atm.feedPublicKey" (index $secrets "feed.key"))) $keys | uniq -}}
{{- else if not $keys -}}
{{- fail (printf "\n\nfeedKeys: is empty, and the Secret %q cannot be read while rendering; list its public feed key\n" .Values.secrets.existingSecret) -}}
{{- end -}}
{{- $_ := set $made "publicKeys" $keys -}}
{{- $old = (lookup "v1" "Secret" .Release.Namespace (include "atm.natsSecretName" .)).data | default dict -}}
{{- $nats := dict -}}
{{- range $key := list "control-plane" "validator" "cluster" -}}
{{- $_ := set $nats $key (index $old $key | default "" | b64dec | default (randAlphaNum 40)) -}}
{{- end -}}
{{- $_ := set $made "nats" $nats -}}
{{- if and .Values.nats.authCallout.enabled .Values.controlPlane.enabled -}}
{{- $_ := set $made "callout" (include "atm.makeCallout" . | fromYaml) -}}
{{- end -}}
{{- $_ := set $made "tls" (include "atm.makeTls" . | fromYaml) -}}
{{- $_ := set .Values "made" $made -}}
{{- end -}}
{{- end -}}

{{/* The account key that signs answers to NATS's auth callout: { seed, publicKey }; no seed where a Secret of the operator's cannot be read. */}}
{{- define "atm.makeCallout" -}}
{{- $callout := .Values.nats.authCallout -}}
{{- $old := (lookup "v1" "Secret" .Release.Namespace (include "atm.calloutSecretName" .)).data | default dict -}}
{{- $seed := index $old "callout.seed" | default "" | b64dec | trim -}}
{{- if not (or $seed $callout.existingSecret) }}{{ $seed = include "atm.nkeySeed" (randBytes 32) }}{{ end -}}
{{- $publicKey := $callout.publicKey -}}
{{- if $seed }}{{ $publicKey = include "atm.nkeyPublicKey" $seed }}{{ end -}}
{{- if not $publicKey -}}
{{- fail (printf "\n\nnats.authCallout.publicKey: is empty, and the Secret %q cannot be read while rendering; give the public half (A...) of its seed\n" $callout.existingSecret) -}}
{{- end -}}
seed: {{ $seed | quote }}
publicKey: {{ $publicKey }}
{{- end -}}

{{/* The admin listener's certificate: kept until its last year, then made anew by the next upgrade. */}}
{{- define "atm.makeTls" -}}
{{- $old := lookup "v1" "Secret" .Release.Namespace (include "atm.adminTlsSecretName" .) -}}
{{- $annotations := ($old.metadata | default dict).annotations | default dict -}}
{{- $until := index $annotations "atm.dev/renew-after" | default "0" | int64 -}}
{{- if and $old.data (gt $until (now | unixEpoch | int64)) -}}
ca: {{ index $old.data "ca.crt" }}
certificate: {{ index $old.data "tls.crt" }}
key: {{ index $old.data "tls.key" }}
renewAfter: {{ $until | quote }}
{{- else -}}
{{- $service := printf "%s-admin" (include "atm.fullname" .) -}}
{{- $names := list $service (printf "%s.%s" $service .Release.Namespace) (printf "%s.%s.svc" $service .Release.Namespace) (printf "%s.%s.svc.cluster.local" $service .Release.Namespace) "localhost" -}}
{{- $ca := genCA (printf "%s admin CA" (include "atm.fullname" .)) 1825 -}}
{{- $leaf := genSignedCert $service (list "127.0.0.1") $names 1825 $ca -}}
ca: {{ $ca.Cert | b64enc }}
certificate: {{ $leaf.Cert | b64enc }}
key: {{ $leaf.Key | b64enc }}
renewAfter: {{ now | dateModify "+35040h" | unixEpoch | quote }}
{{- end -}}
{{- end -}}
