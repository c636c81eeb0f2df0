#!/bin/sh
# sidecar.sh LAST APP SELF: the original set-up's sidecar: its rules, then tcpdump as its log, or sleep.
last=$1 app=$2 self=$3
PATH=/usr/sbin:/usr/bin:/bin
set -e
iptables -P INPUT DROP
iptables -P FORWARD DROP
iptables -P OUTPUT DROP
iptables -t nat -A PREROUTING -p tcp --dport 5000 -j DNAT --to-destination "$app:5000"
iptables -t nat -A POSTROUTING -p tcp -d "$app" --dport 5000 -j SNAT --to-source "$self"
iptables -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
iptables -A FORWARD -p tcp -d "$app" -j ACCEPT
iptables -A FORWARD -p tcp -s "$app" -j ACCEPT
if [ "$last" = tcpdump ]; then exec tcpdump port 5000; fi
exec sleep 2147483647
