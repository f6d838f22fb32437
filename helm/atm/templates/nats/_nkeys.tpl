{{/*
Account nkeys of NATS: base32 of a prefix, an Ed25519 key and its CRC-16. Helm computes no checksum and knows no bits, so that they are
texts of 0 and 1 here.
*/}}

{{/* The seed (SA...) of 32 random bytes in base64. */}}
{{- define "atm.nkeySeed" -}}
{{- include "atm.nkey" (printf "9000%x" (b64dec .)) -}}
{{- end -}}

{{/* The public key (A...) of an account's seed. */}}
{{- define "atm.nkeyPublicKey" -}}
{{- if not (regexMatch "^SA[A-Z2-7]{56}$" .) }}{{ fail "\n\ncallout.seed: must be the seed of an account nkey (SA..., 58 characters); make one with nk -gen account\n" }}{{ end -}}
{{- $seed := printf "%s======" . | b32dec | substr 2 34 -}}
{{- include "atm.nkey" (printf "00%x" (include "atm.ed25519PublicKey" ($seed | b64enc) | b64dec)) -}}
{{- end -}}

{{/* base32 without padding, of a prefix and a key in hexadecimal and their checksum. */}}
{{- define "atm.nkey" -}}
{{- $nibbles := dict -}}
{{- range $i := until 16 }}{{ $_ := set $nibbles (printf "%x" $i) (printf "%04b" $i) }}{{ end -}}
{{- $letters := dict -}}
{{- range $i, $letter := splitList "" "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" }}{{ $_ := set $letters (printf "%05b" $i) $letter }}{{ end -}}
{{- $bits := "" -}}
{{- range $digit := splitList "" . }}{{ $bits = printf "%s%s" $bits (index $nibbles $digit) }}{{ end -}}
{{- $crc := include "atm.crc16" $bits -}}
{{- /* The checksum's low byte goes first. */ -}}
{{- $bits = printf "%s%s%s0000" $bits (substr 8 16 $crc) (substr 0 8 $crc) -}}
{{- range $i := until (div (len $bits) 5 | int) }}{{ index $letters (substr (mul $i 5 | int) (mul (add $i 1) 5 | int) $bits) }}{{ end -}}
{{- end -}}

{{/* CRC-16/XMODEM of bits, as 16 bits: the remainder of the division by x^16 + x^12 + x^5 + 1. */}}
{{- define "atm.crc16" -}}
{{- $crc := 0 -}}
{{- range $bit := splitList "" (printf "%s0000000000000000" .) -}}
{{- $crc = add (mul $crc 2) (atoi $bit) -}}
{{- if ge $crc 65536 -}}
{{- $crc = sub $crc 65536 -}}
{{- range $power := list 4096 32 1 -}}
{{- $crc = ternary (sub $crc $power) (add $crc $power) (eq (mod (div $crc $power) 2) 1) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- printf "%016b" $crc -}}
{{- end -}}
