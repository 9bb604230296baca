/* mm N: mmap, mprotect, mremap, copy-on-write and shared mappings, checked by their contents. */
#include "rt.h"

static u32 sum(const u32 *at, u32 words)
{
    u32 hash = 1;
    for (u32 i = 0; i < words; i++)
        hash = mix(hash, at[i]);
    return hash;
}

static void fill(u32 *at, u32 words)
{
    for (u32 i = 0; i < words; i++)
        at[i] = random32();
}

/* Copy-on-write against a child that writes every second page. */
static void copy_on_write(u32 pages)
{
    u32 words = pages * 1024;
    u32 *private = map(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    u32 *shared = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1);
    fill(private, words);
    u32 before = sum(private, words);
    i32 pid = sys0(NR_fork), status;
    if (!pid) {
        for (u32 i = 0; i < pages; i += 2)
            private[i * 1024 + i] ^= 0xffffffffu;
        shared[0] = sum(private, words);
        sys1(NR_exit_group, 0);
    }
    sys4(NR_wait4, pid, &status, 0, 0);
    report("cow-parent", before == sum(private, words));
    report("cow-child", shared[0]);
    sys2(NR_munmap, private, pages * PAGE);
}

/* The same file mapped twice: writes by one address are seen by the other, and a private map keeps its own. */
static void aliases(void)
{
    i32 fd = sys2(NR_memfd_create, "alias", 0);
    sys2(NR_ftruncate, fd, 4 * PAGE);
    u32 *a = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    u32 *b = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    u32 *c = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
    fill(a, 4096);
    report("alias", sum(b, 4096));
    report("private-read", sum(c, 4096));
    c[1024] = 42;
    b[2048] = 43;
    report("alias-kept", sum(a, 4096));
    report("private-own", c[1024]);
    report("private-sees", c[2048]);
    sys1(NR_close, fd);
}

/* Protection flips with an access between them, then the page moves. */
static void flips(u32 count)
{
    u32 *page = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1), hash = 1;
    for (u32 i = 0; i < count; i++) {
        page[i & 2047] = i;
        sys3(NR_mprotect, page, 2 * PAGE, PROT_READ);
        hash = mix(hash, page[(i * 7) & 2047]);
        sys3(NR_mprotect, page, 2 * PAGE, PROT_READ | PROT_WRITE);
    }
    report("flips", hash);
    u32 *moved = (u32 *)sys4(NR_mremap, page, 2 * PAGE, 64 * PAGE, 1);
    report("moved", sum(moved, 2048));
    moved[64 * 1024 - 1] = 5;
    report("grown", moved[64 * 1024 - 1] + moved[32 * 1024]);
    sys3(NR_madvise, moved, PAGE, 4);
    report("dropped", sum(moved, 2048));
}

/* Many small mappings that come and go. */
static void churn(u32 count)
{
    u32 *slots[32] = { 0 }, hash = 1;
    for (u32 i = 0; i < count; i++) {
        u32 slot = random32() & 31;
        if (slots[slot]) {
            hash = mix(hash, slots[slot][0] + slots[slot][1024 * (slot & 3)]);
            sys2(NR_munmap, slots[slot], 4 * PAGE);
        }
        slots[slot] = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
        slots[slot][0] = i;
        slots[slot][1024 * (slot & 3)] += slot;
    }
    report("churn", hash);
}

int main(int argc, char **argv)
{
    u32 count = argc > 1 ? parse_dec(argv[1]) : 100;
    copy_on_write(64);
    aliases();
    flips(count);
    churn(count * 4);
    return 0;
}
