# Has fio write a virtio disk of 16 MiB and verify what it wrote, over and over until /tmp/stop is there.
# Usage: sh verify.sh DISK
export DISK=$1
bad=0
round=0
while [ ! -e /tmp/stop ]; do
    if ! fio /suite/verify.fio > /tmp/fio 2>&1; then
        bad=$((bad + 1))
        echo "$DISK: round $round failed:"
        tail -n 40 /tmp/fio
    fi
    round=$((round + 1))
    echo "$DISK: round $round"
done
sync
echo 3 > /proc/sys/vm/drop_caches
dmesg | grep -c "I/O error" | sed "s/^/$DISK: errors in the kernel's log: /"
echo "$DISK: bad $bad, hash $(sha256sum < /dev/$DISK | cut -c1-64)"
