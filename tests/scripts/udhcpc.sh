#!/bin/sh
# What busybox's udhcpc has done with what it was told: an address, a route, a resolver.
case $1 in
bound | renew)
    ip address replace "$ip/$mask" dev "$interface"
    ip route replace default via "$router"
    echo "nameserver $dns" > /etc/resolv.conf
    echo "lease $ip/$mask via $router, names from $dns, $lease s"
    ;;
esac
