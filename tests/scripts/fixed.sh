# What a guest can and cannot do to a read-only virtio disk. Usage: sh fixed.sh DISK
disk=$1
echo "$disk: ro $(cat /sys/block/$disk/ro)"
dd if=/dev/zero of=/dev/$disk bs=512 count=1 oflag=direct conv=notrunc 2>/dev/null || echo "$disk: writing fails"
echo "$disk: content $(dd if=/dev/$disk bs=64k 2>/dev/null | sha256sum | cut -c1-64)"
echo "$disk: end"
