# What a guest does with its network card. Usage: sh net.sh PORT OTHER-PORT, where a web server is at PORT of the host, and
# nothing that the guest may reach at OTHER-PORT.
say() { echo "net: $*"; }
hash() { sha256sum | cut -c1-64; }
say "address $(cat /sys/class/net/eth0/address), mtu $(cat /sys/class/net/eth0/mtu)"
ip link set eth0 up
udhcpc -i eth0 -n -q -s /suite/udhcpc.sh 2>/dev/null | grep lease | grep -v udhcpc
ping -c 3 10.0.2.2 | grep received
say "web.test is $(nslookup -type=a web.test | grep -A1 'Name:' | grep Address | cut -d' ' -f2)"
say "fetched $(wget -q -O - "http://web.test:$1/file" | hash)"
seq 1 1000000 > /tmp/numbers
say "sent $(wget -q -O - --post-file /tmp/numbers "http://web.test:$1/")"
# Several at once.
for n in 1 2 3 4; do
    wget -q -O - "http://web.test:$1/file" | hash > "/tmp/fetched$n" &
done
wait
say "fetched four times $(cat /tmp/fetched? | sort -u)"
wget -O - "http://10.0.2.2:$2/" 2>&1 | grep "can't"
wget -O - "http://127.0.0.1:$1/" 2>&1 | grep "can't"
say "end"
