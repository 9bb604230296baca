/* forks N: a fork storm. Each child inherits a page by copy-on-write, changes it, forks once more, and returns a
 * checksum by its exit status; the parent's copy must not change. */
#include "rt.h"

static u32 grandchild(u32 *data, u32 i)
{
    i32 status = 0, pid = sys0(NR_fork);
    if (!pid) {
        data[i & 1023] ^= i;
        sys1(NR_exit_group, (data[i & 1023] + data[(i + 1) & 1023]) & 0x7f);
    }
    sys4(NR_wait4, pid, &status, 0, 0);
    return (u32)status >> 8;
}

int main(int argc, char **argv)
{
    u32 count = argc > 1 ? parse_dec(argv[1]) : 50, hash = 1, before = 1, after = 1;
    u32 *data = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    for (u32 i = 0; i < 1024; i++)
        before = mix(before, data[i] = random32());
    for (u32 batch = 0; batch < count; batch += 10) {
        i32 pids[10];
        for (u32 i = 0; i < 10; i++) {
            pids[i] = sys0(NR_fork);
            if (!pids[i]) {
                for (u32 j = 0; j < 1024; j++)
                    data[j] += batch + i;
                sys1(NR_exit_group, (data[i] + grandchild(data, i)) & 0x7f);
            }
        }
        for (u32 i = 0; i < 10; i++) {
            i32 status = 0;
            sys4(NR_wait4, pids[i], &status, 0, 0);
            hash = mix(hash, (u32)status);
        }
    }
    for (u32 i = 0; i < 1024; i++)
        after = mix(after, data[i]);
    report("forks", hash);
    report("parent-unchanged", before == after);
    return 0;
}
