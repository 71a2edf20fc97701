{{/* The programs know their namespace by this name, wherever the release is recorded. */}}
{{- define "culvert.namespace" -}}culvert-system{{- end }}

{{/* Labels of an object. Takes (list $ COMPONENT); the component may be empty. */}}
{{- define "culvert.labels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{ include "culvert.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels that pods are selected by; they never change. */}}
{{- define "culvert.selector" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
app.kubernetes.io/name: culvert
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with $component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* metadata of an object in the mesh's namespace. Takes (list $ COMPONENT NAME). */}}
{{- define "culvert.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ include "culvert.namespace" $root }}
labels: {{- include "culvert.labels" . | nindent 2 }}
{{- with $root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The documents of a file, with the labels of the chart. Takes a dict of root, component, file, annotations. */}}
{{- define "culvert.documents" -}}
{{- $root := .root }}
{{- $annotations := merge dict (.annotations | default dict) $root.Values.commonAnnotations }}
{{- $labels := include "culvert.labels" (list $root .component) | fromYaml }}
{{- range splitList "\n---\n" ($root.Files.Get .file) }}
{{- $object := fromYaml . }}
{{- if $object.Error }}{{ fail (printf "a file of the chart does not parse: %s" $object.Error) }}{{ end }}
{{- $_ := set $object.metadata "labels" (merge dict $labels ($object.metadata.labels | default dict)) }}
{{- if $annotations }}{{ $_ := set $object.metadata "annotations" $annotations }}{{ end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}

{{/* The image of a program. Takes (list $ PROGRAM). */}}
{{- define "culvert.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{ with $image.repository }}{{ trimSuffix "/" . }}/{{ end }}{{ index . 1 }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* Where the platform's nodes keep things, as YAML. */}}
{{- define "culvert.platform" -}}
{{- $paths := dict "binDir" "/opt/cni/bin" "confDir" "/etc/cni/net.d" "netnsDir" "/var/run/netns" "resourceQuota" false }}
{{- $differ := dict
  "k3s" (dict "binDir" "/var/lib/rancher/k3s/data/cni" "confDir" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
  "k3d" (dict "binDir" "/bin" "confDir" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
  "microk8s" (dict "binDir" "/var/snap/microk8s/current/opt/cni/bin" "confDir" "/var/snap/microk8s/current/args/cni-network")
  "minikube" (dict "netnsDir" "/var/run/docker/netns")
  "gke" (dict "binDir" "/home/kubernetes/bin" "resourceQuota" true) }}
{{- $paths = merge dict (get $differ .Values.platform | default dict) $paths }}
{{- range $name, $value := .Values.cni }}
{{- if and $value (hasKey $paths $name) }}{{ $_ := set $paths $name $value }}{{ end }}
{{- end }}
{{- toYaml $paths }}
{{- end }}

{{/* What every pod of the mesh mounts: the token that proves who it is, and the roots. */}}
{{- define "culvert.credentials" -}}
- name: token
  projected:
    sources:
      - serviceAccountToken: {path: token, audience: culvert.dev, expirationSeconds: 3600}
# Not optional: the kubelet tries again after seconds until the CA has written it, but would look for what is new in a
# volume already mounted only after a minute.
- name: trust
  configMap: {name: culvert-trust-bundle}
{{- end }}

{{- define "culvert.credentialMounts" -}}
- {name: token, mountPath: /var/run/secrets/culvert, readOnly: true}
- {name: trust, mountPath: /etc/culvert/trust, readOnly: true}
{{- end }}

{{/* Replicas on different nodes, where that is possible. Takes (list $ COMPONENT). */}}
{{- define "culvert.apart" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "culvert.selector" . | nindent 12 }}
{{- end }}

{{- define "culvert.nodeSelector" -}}
kubernetes.io/os: linux
{{- with . }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A pod that needs no rights of its node. */}}
{{- define "culvert.ordinaryPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "culvert.ordinaryContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Probes of a program. Takes a dict of port and, where they are not the pod's, host and the command for readiness. */}}
{{- define "culvert.probes" -}}
# It may wait for others for as long as it takes: only readiness says so.
readinessProbe:
  {{- if .command }}
  exec:
    command: {{- toYaml .command | nindent 6 }}
  {{- else }}
  httpGet: {{- include "culvert.probe" (merge (dict "path" "/healthz/ready") .) | nindent 4 }}
  {{- end }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  httpGet: {{- include "culvert.probe" (merge (dict "path" "/healthz/live") .) | nindent 4 }}
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{- define "culvert.probe" -}}
path: {{ .path }}
port: {{ .port }}
{{- with .host }}
host: {{ . | quote }}
{{- end }}
{{- end }}

{{/* A pod that works on its node. */}}
{{- define "culvert.nodePod" -}}
seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeProxy.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "culvert.nodeContainer" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}
# The profile that runtimes give containers forbids to look at the namespaces of other pods' processes.
appArmorProfile: {type: Unconfined}
{{- end }}
capabilities:
  drop: [ALL]
  add: {{- toYaml .Values.nodeProxy.capabilities | nindent 4 }}
{{- end }}

{{- define "culvert.nodeMounts" -}}
{{- $platform := include "culvert.platform" . | fromYaml -}}
- {name: state, mountPath: {{ .Values.nodeProxy.stateDir }}}
- {name: run, mountPath: {{ .Values.nodeProxy.runDir }}}
- {name: cni-conf, mountPath: /etc/cni/net.d}
- {name: cni-bin, mountPath: /opt/cni/bin}
# Kernel settings of pods' networks; /proc/sys is read-only in containers without all privileges.
- {name: sysctl, mountPath: /host/proc/sys/net}
# Under the runtime's own paths, by which the CNI plugin names them; those made later appear too.
- {name: netns, mountPath: {{ $platform.netnsDir }}, mountPropagation: HostToContainer, readOnly: true}
{{- if hasPrefix "/var/run/" $platform.netnsDir }}
- {name: netns, mountPath: {{ trimPrefix "/var" $platform.netnsDir }}, mountPropagation: HostToContainer, readOnly: true}
{{- end }}
{{- end }}

{{- define "culvert.nodeVolumes" -}}
{{- $platform := include "culvert.platform" . | fromYaml -}}
- name: state
  hostPath: {path: {{ .Values.nodeProxy.stateDir }}, type: DirectoryOrCreate}
- name: run
  hostPath: {path: {{ .Values.nodeProxy.runDir }}, type: DirectoryOrCreate}
- name: cni-conf
  hostPath: {path: {{ $platform.confDir }}, type: DirectoryOrCreate}
- name: cni-bin
  hostPath: {path: {{ $platform.binDir }}, type: DirectoryOrCreate}
- name: sysctl
  hostPath: {path: /proc/sys/net, type: Directory}
- name: netns
  hostPath: {path: {{ $platform.netnsDir }}, type: DirectoryOrCreate}
{{- end }}

{{/* A container that takes Culvert off its node. Takes a dict of root and arguments. */}}
{{- define "culvert.cleaner" -}}
image: {{ include "culvert.image" (list .root "node-proxy") }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args:
  - uninstall
  - --state-dir={{ .root.Values.nodeProxy.stateDir }}
  - --enrolment-socket={{ .root.Values.nodeProxy.runDir }}/enrolment.sock
  {{- range .arguments }}
  - {{ . }}
  {{- end }}
env:
  - {name: CULVERT_LOG, value: {{ .root.Values.log.filter | quote }}}
resources:
  requests: {cpu: 10m, memory: 32Mi}
securityContext: {{- include "culvert.nodeContainer" .root | nindent 2 }}
volumeMounts: {{- include "culvert.nodeMounts" .root | nindent 2 }}
{{- end }}
