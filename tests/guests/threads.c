/* threads N: threads that share memory: locked adds, a futex, segment-based thread storage, an LDT segment's limit. */
#include "rt.h"

enum { THREADS = 4, CLONE_VM_FS_FILES_SIGHAND_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000, CLONE_CHILD_CLEARTID = 0x200000, CLONE_PARENT_SETTID = 0x100000 };
struct user_desc { u32 entry, base, limit, flags; };

static volatile u32 atomic_total, exchanged, locked_total, lock_word;
static volatile i32 tids[THREADS];
static u32 loops, storage[THREADS][4];

static void lock(void)
{
    u32 seen = __sync_val_compare_and_swap(&lock_word, 0, 1);
    while (seen) {
        if (seen == 2 || __sync_val_compare_and_swap(&lock_word, 1, 2))
            sys4(NR_futex, &lock_word, 0, 2, 0);
        seen = __sync_val_compare_and_swap(&lock_word, 0, 2);
    }
}

static void unlock(void)
{
    if (__sync_fetch_and_sub(&lock_word, 1) != 1) {
        lock_word = 0;
        sys3(NR_futex, &lock_word, 1, 1);
    }
}

static void work(void *argument)
{
    u32 id = (u32)argument;
    struct user_desc tls = { 0xffffffffu, (u32)storage[id], 0xfffff, 0x51 };
    i32 set = sys1(NR_set_thread_area, &tls);
    if (set == 0)
        __asm__ volatile("movw %w0,%%gs" : : "r"(tls.entry * 8 + 3));
    for (u32 i = 0; i < loops; i++) {
        __sync_fetch_and_add(&atomic_total, id + 1);
        u32 own;
        __asm__ volatile("addl %1,%%gs:4; movl %%gs:4,%0" : "=r"(own) : "r"(id + 1) : "memory");
        lock();
        locked_total = locked_total * 3 / 3 + 1;
        unlock();
        if ((i & 31) == 0)
            sys0(NR_sched_yield);
    }
    exchanged += __sync_bool_compare_and_swap(&storage[id][0], 0, id);
}

/* An LDT data segment of 16 bytes: the last byte is readable, the next one faults. */
static volatile u32 ldt_faults;
static void ldt_fault(int signal, u32 *info, u32 *context)
{
    (void)signal, (void)info;
    context[5 + 14] += 4; /* movb %fs:(%edx),%al with its prefix is 3 bytes and a nop */
    ldt_faults++;
}

static void ldt(void)
{
    static u8 bytes[32];
    struct user_desc entry = { 0, (u32)bytes, 15, 0x51 & ~0x10u };
    for (u32 i = 0; i < 32; i++)
        bytes[i] = (u8)(i + 100);
    if (sys3(NR_modify_ldt, 1, &entry, sizeof entry)) {
        put("no ldt\n");
        return;
    }
    on_signal(SIGSEGV, ldt_fault, SA_SIGINFO);
    u32 value = 0;
    __asm__ volatile("movw %w0,%%fs" : : "r"(7));
    for (u32 i = 12; i < 20; i++) {
        value = 0;
        __asm__ volatile("movb %%fs:(%%edx),%%al; nop" : "+a"(value) : "d"(i));
        report("ldt", value);
    }
    report("ldt-faults", ldt_faults);
    __asm__ volatile("movw %w0,%%fs" : : "r"(0));
}

int main(int argc, char **argv)
{
    loops = argc > 1 ? parse_dec(argv[1]) : 200;
    for (u32 i = 0; i < THREADS; i++) {
        u8 *stack = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
        tids[i] = 1;
        rt_clone(CLONE_VM_FS_FILES_SIGHAND_THREAD | CLONE_CHILD_CLEARTID, stack + 4 * PAGE, work, (void *)i, (i32 *)&tids[i]);
    }
    for (u32 i = 0; i < THREADS; i++)
        while (tids[i])
            sys4(NR_futex, &tids[i], 0, 1, 0);
    report("atomic", atomic_total);
    report("locked", locked_total);
    for (u32 i = 0; i < THREADS; i++)
        report("storage", storage[i][1]);
    ldt();
    return 0;
}
