# What a guest does to a virtio disk of 64 MiB, whose first 32 MiB the host has filled; the host checks the image
# afterwards. Usage: sh disk.sh DISK
disk=$1
say() { echo "$disk: $*"; }
hash() { sha256sum | cut -c1-64; }
for name in size serial ro queue/logical_block_size queue/physical_block_size queue/max_segments \
    queue/max_segment_size queue/discard_max_bytes queue/write_zeroes_max_bytes queue/write_cache; do
    say "$name $(cat "/sys/block/$disk/$name")"
done
say "queues $(ls "/sys/block/$disk/mq" | wc -l)"
say "content $(dd if=/dev/$disk bs=1M count=32 2>/dev/null | hash)"
say "direct $(dd if=/dev/$disk bs=512 count=300 skip=77 iflag=direct 2>/dev/null | hash)"

# Written in three ways: through the cache in large requests, directly in small ones, and over sectors written before.
[ -f /tmp/numbers ] || seq 1 2000000 > /tmp/numbers
dd if=/tmp/numbers of=/dev/$disk bs=64k seek=512 count=128 conv=notrunc,fsync 2>/dev/null && say "written large"
dd if=/tmp/numbers of=/dev/$disk bs=512 seek=90000 count=500 oflag=direct conv=notrunc 2>/dev/null && say "written small"
dd if=/tmp/numbers of=/dev/$disk bs=4k skip=3 seek=11300 count=7 oflag=direct conv=notrunc 2>/dev/null && say "written over"
sync
echo 3 > /proc/sys/vm/drop_caches
say "tail $(dd if=/dev/$disk bs=1M skip=32 2>/dev/null | hash)"

# Gone: 8 MiB in the middle of what the host filled.
blkdiscard -o 8388608 -l 8388608 /dev/$disk && say "discarded"
# Several readers at once, for all queues.
for part in 0 1 2 3; do
    dd if=/dev/$disk bs=4k iflag=direct skip=$((part * 2048)) count=2048 2>/dev/null | hash > /tmp/part$part &
done
wait
say "parts $(cat /tmp/part0 /tmp/part1 /tmp/part2 /tmp/part3 | hash)"
