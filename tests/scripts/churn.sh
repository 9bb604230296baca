# Writes a virtio disk of 16 MiB and reads it back, over and over, until /tmp/stop is there; then compares all of it with
# what was written. Usage: sh churn.sh DISK
disk=$1
bad=0
round=0
fail() { echo "$disk: round $round: $*"; bad=$((bad + 1)); }
seq 1 600000 > /tmp/numbers
dd if=/dev/$disk of=/tmp/shadow bs=1M 2>/dev/null

# Others read meanwhile, so that several requests are out.
readers=
for reader in 1 2 3; do
    while [ ! -e /tmp/stop ]; do
        dd if=/dev/$disk of=/dev/null bs=4k count=1024 skip=$((reader * 1000)) iflag=direct 2>/dev/null || echo "$disk: ""reader $reader failed"
    done &
    readers="$readers $!"
done

while [ ! -e /tmp/stop ]; do
    at=$((round * 37 % 64))
    dd if=/tmp/numbers of=/tmp/piece bs=64k skip=$((round % 40)) count=4 2>/dev/null
    dd if=/tmp/piece of=/tmp/shadow bs=256k seek=$at conv=notrunc 2>/dev/null
    dd if=/tmp/piece of=/dev/$disk bs=64k seek=$((at * 4)) oflag=direct conv=notrunc,fsync 2>/dev/null || fail "write error"
    dd if=/dev/$disk of=/tmp/again bs=64k skip=$((at * 4)) count=4 iflag=direct 2>/dev/null || fail "read error"
    cmp /tmp/piece /tmp/again || fail "not what was written"
    round=$((round + 1))
    [ $((round % 10)) = 0 ] && echo "$disk: round $round"
done
wait $readers
sync
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/$disk bs=1M 2>/dev/null | cmp - /tmp/shadow || fail "the whole is not what was written"
dmesg | grep -c "I/O error" | sed "s/^/$disk: errors in the kernel's log: /"
echo "$disk: bad $bad, hash $(sha256sum < /tmp/shadow | cut -c1-64)"
