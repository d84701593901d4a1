/**
 * The systemd unit of `vbdkit daemon`: a service that can do no more than serve disks. Pure text. Why each line that
 * one would expect is missing is said in the unit itself, where whoever hardens it further will read it.
 */

export interface UnitOptions {
  /** Absolute path of node. */
  readonly node: string
  /** Absolute path of the vbdkit script. */
  readonly script: string
  /** Arguments of `vbdkit daemon`. */
  readonly arguments: readonly string[]
  /** Directories with images, writable for the service. */
  readonly writable: readonly string[]
  /** Block devices (/dev/vg/lv), or classes of them (block-device-mapper), for disks. */
  readonly devices: readonly string[]
  /** Within which the service has to show that its threads are alive. Seconds. */
  readonly watchdogSeconds: number
}

/** The text of the unit. */
export function systemdUnit(options: UnitOptions): string {
  const { node, script, writable, devices, watchdogSeconds } = options
  const command = [node, script, 'daemon', ...options.arguments].map(word).join(' ')
  const home = [node, script].some((path) => /^\/(home|root|run\/user)\//.test(path))
  return `# Printed by vbdkit unit. Own settings belong into a drop-in (systemctl edit vbdkit).
[Unit]
Description=Virtual disks for Xen guests
Documentation=man:xl-disk-configuration(5)
After=xenstored.service xen-init-dom0.service local-fs.target
Before=xendomains.service

[Service]
Type=notify
NotifyAccess=main
ExecStart=${command}
# Fed only while every thread that serves guests turns; one that a guest holds up in a grant call counts as alive.
WatchdogSec=${watchdogSeconds}
# After a crash or a hang the next process goes on with the guests' rings. Exit code 2 is a mistake of the operator
# (another backend has the kind, no Xen): trying again would not help.
Restart=on-failure
RestartSec=1
RestartPreventExitStatus=2
TimeoutStopSec=20
RuntimeDirectory=vbdkit
RuntimeDirectoryPreserve=yes
UMask=0077

# A ring takes two descriptors and a mapping, a disk one more. Registered buffers are locked memory.
LimitNOFILE=65536
LimitMEMLOCK=infinity
LimitCORE=0
OOMScoreAdjust=-500
TasksMax=4096

# No device but these. Disks on block devices need a line each, or their class: DeviceAllow=block-device-mapper rw
DevicePolicy=closed
DeviceAllow=/dev/xen/gntdev rw
DeviceAllow=/dev/xen/evtchn rw
DeviceAllow=/dev/xen/xenbus rw
${devices.map((device) => `DeviceAllow=${word(device)} rw\n`).join('')}# PrivateDevices= would hide /dev/xen.

# Everything is read-only but the images. Others: ReadWritePaths=/another/directory
ProtectSystem=strict
${writable.map((path) => `ReadWritePaths=-${word(path)}\n`).join('')}ProtectHome=${home ? 'read-only' : 'yes'}
PrivateTmp=yes

# root owns /dev/xen and xenstore's socket; beyond owning them it needs nothing. Images that belong to another user
# need CapabilityBoundingSet=CAP_DAC_OVERRIDE.
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
# xenstore, the control socket and the service manager are Unix sockets.
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
IPAddressDeny=any
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
KeyringMode=private
LockPersonality=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
# io_uring is in @aio. A list with ~ has to be a line of its own.
SystemCallFilter=@system-service @aio @io-event
SystemCallFilter=~@privileged @resources @mount @swap @debug @clock @module @raw-io @reboot @obsolete @cpu-emulation
# Not possible: MemoryDenyWriteExecute=, because V8 compiles at run time; ProcSubset=pid, because /proc/xen says whether
# this is dom0; ProtectProc=, because other backends are looked for among the processes.

[Install]
WantedBy=multi-user.target
`
}

/** A word of a command line or a path, as systemd reads it. */
function word(text: string): string {
  const escaped = text.replaceAll('%', '%%').replaceAll('$', '$$$$')
  return /[\s"'\\;]/.test(escaped) ? `"${escaped.replace(/["\\]/g, '\\$&')}"` : escaped
}
