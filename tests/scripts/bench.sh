# bench.sh prepare | NAME | system MS: one measurement of the benchmark, run by busybox sh in a guest and natively.
# Prints "ns N status 0" for a program, or one "NAME nanoseconds" line for each system operation.
loop='i=0 sum=0; while [ $i -lt 150000 ]; do i=$((i + 1)) sum=$(((sum * 31 + i) % 1000003)); done; echo $sum'
words='{ count[$1 % 997] += length($2); sum += $1 * 1.5 } END { for (k in count) n++; printf "%d %.1f\n", n, sum }'
dir=${BENCH_DIR:-/tmp/bulkhead-bench-data}
# timeit does not search PATH.
measure() {
    program=$(which "$1")
    shift
    timeit "$program" "$@"
}
case $1 in
prepare)
    mkdir -p $dir
    awk 'BEGIN {
        seed = 42
        for (i = 0; i < 30000; i++) {
            seed = (seed * 1103515245 + 12345) % 2147483648
            printf "%d %s%d line %x\n", seed % 1000, substr("abcdefghijklmnopqrstuvwxyz", seed % 20, 5), i, seed
        }
    }' >$dir/text
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat $dir/text; done >$dir/medium
    for i in 1 2 3; do cat $dir/medium; done >$dir/large
    ;;
clean) rm -r $dir ;;
shell) measure sh -c "$loop" ;;
sha256sum) measure sha256sum $dir/large ;;
md5sum) measure md5sum $dir/large $dir/large ;;
gzip) measure gzip -c $dir/medium ;;
awk) measure awk "$words" $dir/medium ;;
fib) measure fib 40 ;;
bytecode) measure bytecode 30000000 ;;
qsort) measure qsort 1500000 ;;
x87) measure x87 10000000 only ;;
# At this scale the program prints integers of more digits than python3 allows of itself.
python) measure python3 -X int_max_str_digits=0 "$SUITE_DIR/suite.py" 320 ;;
python-start) measure python3 "$SUITE_DIR/suite.py" 12 ;;
stream) measure stream 25 ;;
system) sysbench all $2 ;;
esac
