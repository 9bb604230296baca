# suite.sh SCALE: everything whose output must be the same in a guest and natively. Run by busybox sh, in an empty
# directory, with busybox's applets, the guest programs and python3 on PATH. SCALE multiplies the loops: 1 is little.
scale=${1:-1}
run() {
    name=$1
    shift
    echo "=== $name"
    "$@" 2>&1
    echo "status $?"
}
shell_loop() {
    i=0 sum=0
    while [ $i -lt $((2000 * scale)) ]; do
        i=$((i + 1)) sum=$(((sum * 31 + i) % 1000003))
    done
    echo $sum
}
make_data() {
    awk -v lines=$((1000 * scale)) 'BEGIN {
        seed = 42
        for (i = 0; i < lines; i++) {
            seed = (seed * 1103515245 + 12345) % 2147483648
            printf "%d %s%d line %x\n", seed % 1000, substr("abcdefghijklmnopqrstuvwxyz", seed % 20, 5), i, seed
        }
    }' >data
    wc data
}
compress() {
    gzip -c data >data.gz && gunzip -c data.gz | cmp - data && wc -c <data.gz
    bzip2 -c data | bunzip2 -c | cmp - data
    sha256sum data.gz
}
awk_floats() {
    awk -v n=$((500 * scale)) 'BEGIN {
        for (i = 1; i <= n; i++) s += sin(i) * exp(-i / n) + sqrt(i) / log(i + 1)
        printf "%.9f %.9e\n", s, s * 1e20
    }'
}
awk_words() {
    awk '{ count[$1 % 97] += length($2) } END { for (k in count) print k, count[k] }' data | sort -n | md5sum
}
pipeline() {
    cut -d' ' -f2 data | tr a-m n-z | sed 's/n\([a-z]\)/<\1>/g' | sort | uniq -c | sort -rn | head -n 20 | md5sum
}
files() {
    mkdir -p tree && cd tree || return
    for i in $(seq 1 $((20 * scale))); do
        mkdir -p d$((i % 7)) && echo "$i" >d$((i % 7))/f$i
    done
    find . -type f | sort | xargs cat | md5sum
    tar cf - . | tar tf - | wc -l
    cd .. && rm -r tree
}
background() {
    for i in 1 2 3 4 5; do
        (j=0; while [ $j -lt $((100 * scale)) ]; do j=$((j + 1)); done; echo $((i * j)) >bg$i) &
    done
    wait
    cat bg1 bg2 bg3 bg4 bg5
}
trapped() {
    trap 'echo got usr1' USR1
    kill -USR1 $$
    trap - USR1
    sh -c 'kill -SEGV $$'
    echo "child status $?"
}
run shell-loop shell_loop
run data make_data
run sha256sum sha256sum data
run sha512sum sha512sum data
run md5sum md5sum data
run compress compress
run awk-floats awk_floats
run awk-words awk_words
run pipeline pipeline
run files files
run background background
run trapped trapped
run bc sh -c 'echo "scale=50; 4*a(1); 2^200; sqrt(2)" | bc -l'
run fib fib $((16 + scale / 2))
run bytecode bytecode $((5000 * scale))
run qsort qsort $((1000 * scale))
run x87 x87 $((2000 * scale))
run sse sse $((500 * scale))
run forks forks $((10 * scale))
run mm mm $((25 * scale))
run signals signals $((50 * scale))
run threads threads $((50 * scale))
run jit jit $((100 * scale))
run python python3 "${SUITE_DIR:-}/suite.py" $scale
echo "=== end"
