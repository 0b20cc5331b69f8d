#!/bin/busybox sh
# The first process of the guest. Runs the programs that /plan names, each line "NAME SECONDS COMMAND...", and tells of
# them on the second serial port, where no message of the kernel comes in between. Or runs a shell on the first one.
export PATH=/bin HOME=/root TERM=linux TMPDIR=/tmp
/bin/busybox mkdir -p /proc /sys /dev /tmp /root /run
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
ip link set lo up 2>/dev/null
hostname guest
cd /tmp

if [ "$PVX_MODE" = shell ]; then
    cat /shell
    setsid cttyhack sh
    poweroff -f
fi

exec >/dev/ttyS1 2>&1 </dev/null
echo "@ready $(uname -r)"
while read -r name seconds command; do
    echo "@begin $name"
    echo "pvx: $name" >/dev/kmsg
    timeout -s KILL "$seconds" sh -c "exec $command" </dev/null
    status=$?
    echo
    echo "@end $status"
done </plan
echo "@done"
poweroff -f
