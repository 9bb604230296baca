/* The whole run-time of a guest test program. A plain Debian gcc has no 32-bit libc, and none is needed: the same
 * static binary runs in an i386 guest and on an x86-64 host. System calls go through the vDSO entry that the kernel
 * announces in the auxiliary vector (sysenter on most processors), as libc's do. Include once, define main(). */
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

#define NOINLINE __attribute__((noinline))
#define PAGE 4096u
enum { MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 16, MAP_ANON = 32 };
enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4 };
enum {
    NR_exit = 1, NR_fork = 2, NR_read = 3, NR_write = 4, NR_open = 5, NR_close = 6, NR_unlink = 10, NR_execve = 11,
    NR_getpid = 20, NR_kill = 37, NR_pipe = 42, NR_dup2 = 63, NR_getppid = 64, NR_munmap = 91, NR_ftruncate = 93,
    NR_setitimer = 104, NR_wait4 = 114, NR_clone = 120, NR_modify_ldt = 123, NR_mprotect = 125, NR_sched_yield = 158,
    NR_nanosleep = 162, NR_mremap = 163, NR_rt_sigreturn = 173, NR_rt_sigaction = 174, NR_rt_sigprocmask = 175,
    NR_pread64 = 180, NR_pwrite64 = 181, NR_sigaltstack = 186, NR_mmap2 = 192, NR_madvise = 219, NR_futex = 240,
    NR_set_thread_area = 243, NR_exit_group = 252, NR_clock_gettime = 265, NR_memfd_create = 356,
};

u32 rt_sysinfo; /* AT_SYSINFO: the address of __kernel_vsyscall, or 0 */
char **rt_envp;

/* i32 rt_syscall(nr, a, b, c, d, e, f): six arguments, result or -errno. */
i32 rt_syscall(u32 nr, u32 a, u32 b, u32 c, u32 d, u32 e, u32 f);
/* Starts fn(arg) on a thread with its own stack; the thread ends with its function. */
i32 rt_clone(u32 flags, void *stack_top, void (*fn)(void *), void *arg, i32 *tid);
void rt_sigreturn(void);
__asm__(".text\n"
        "rt_syscall: push %ebp; push %ebx; push %esi; push %edi\n"
        " mov 20(%esp),%eax; mov 24(%esp),%ebx; mov 28(%esp),%ecx; mov 32(%esp),%edx\n"
        " mov 36(%esp),%esi; mov 40(%esp),%edi; mov 44(%esp),%ebp\n"
        " cmpl $0,rt_sysinfo; je 1f; call *rt_sysinfo; jmp 2f\n"
        "1: int $0x80\n"
        "2: pop %edi; pop %esi; pop %ebx; pop %ebp; ret\n"
        "rt_clone: push %ebx; push %esi; push %edi\n"
        " mov 16(%esp),%ebx; mov 20(%esp),%ecx; mov 32(%esp),%edx; mov %edx,%edi; xor %esi,%esi\n"
        " sub $16,%ecx; mov 24(%esp),%eax; mov %eax,(%ecx); mov 28(%esp),%eax; mov %eax,4(%ecx)\n"
        " mov $120,%eax; int $0x80; test %eax,%eax; jz 1f\n"
        " pop %edi; pop %esi; pop %ebx; ret\n"
        "1: pop %eax; call *%eax; mov $1,%eax; xor %ebx,%ebx; int $0x80; ud2\n"
        "rt_sigreturn: mov $173,%eax; int $0x80\n"
        ".globl _start\n"
        "_start: xor %ebp,%ebp; mov %esp,%eax; and $-16,%esp; sub $12,%esp; push %eax; call rt_start; hlt\n");

#define sys0(n) rt_syscall(n, 0, 0, 0, 0, 0, 0)
#define sys1(n, a) rt_syscall(n, (u32)(a), 0, 0, 0, 0, 0)
#define sys2(n, a, b) rt_syscall(n, (u32)(a), (u32)(b), 0, 0, 0, 0)
#define sys3(n, a, b, c) rt_syscall(n, (u32)(a), (u32)(b), (u32)(c), 0, 0, 0)
#define sys4(n, a, b, c, d) rt_syscall(n, (u32)(a), (u32)(b), (u32)(c), (u32)(d), 0, 0)
#define sys5(n, a, b, c, d, e) rt_syscall(n, (u32)(a), (u32)(b), (u32)(c), (u32)(d), (u32)(e), 0)
#define sys6(n, a, b, c, d, e, f) rt_syscall(n, (u32)(a), (u32)(b), (u32)(c), (u32)(d), (u32)(e), (u32)(f))

/* gcc may emit calls to these two. */
void *memset(void *to, int byte, u32 len)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(len) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, u32 len)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(len) : : "memory");
    return to;
}

static char out_buf[1024];
static u32 out_len;

static NOINLINE void out_flush(void)
{
    u32 done = 0;
    while (done < out_len) {
        i32 n = sys3(NR_write, 1, out_buf + done, out_len - done);
        if (n <= 0)
            break;
        done += (u32)n;
    }
    out_len = 0;
}

static NOINLINE void put_char(char c)
{
    out_buf[out_len++] = c;
    if (c == '\n' || out_len == sizeof out_buf)
        out_flush();
}

static NOINLINE void put(const char *text)
{
    while (*text)
        put_char(*text++);
}

static NOINLINE void put_hex(u32 value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put_char("0123456789abcdef"[(value >> shift) & 15]);
}

static void put_hex64(u64 value)
{
    put_hex((u32)(value >> 32));
    put_hex((u32)value);
}

/* 64 by 32 bits without libgcc: two divl. */
static u64 div64(u64 value, u32 by, u32 *rest)
{
    u32 high = (u32)(value >> 32), low = (u32)value, quot_high = high / by, remainder = high % by, quot_low;
    __asm__("divl %4" : "=a"(quot_low), "=d"(remainder) : "0"(low), "1"(remainder), "rm"(by) : "cc");
    if (rest)
        *rest = remainder;
    return (u64)quot_high << 32 | quot_low;
}

static NOINLINE void put_dec(u64 value)
{
    char digits[20];
    u32 n = 0, digit;
    do {
        value = div64(value, 10, &digit);
        digits[n++] = (char)('0' + digit);
    } while (value);
    while (n)
        put_char(digits[--n]);
}

/* "name hex\n": the line that guest and native runs are compared by. */
static void report(const char *name, u32 value)
{
    put(name);
    put_char(' ');
    put_hex(value);
    put_char('\n');
}

static u32 parse_dec(const char *text)
{
    u32 value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u32)(*text++ - '0');
    return value;
}

/* CLOCK_MONOTONIC in nanoseconds. */
static u64 now_ns(void)
{
    u32 time[2];
    sys2(NR_clock_gettime, 1, time);
    return (u64)time[0] * 1000000000u + time[1];
}

static void *map(u32 len, u32 prot, u32 flags, i32 fd)
{
    i32 at = sys6(NR_mmap2, 0, len, prot, flags, fd, 0);
    if ((u32)at >= 0xfffff001u) {
        put("mmap failed\n");
        sys1(NR_exit_group, 2);
    }
    return (void *)at;
}

/* A 32-bit xorshift: test data that is the same everywhere. */
static u32 rt_seed = 0x9e3779b9u;
static u32 random32(void)
{
    rt_seed ^= rt_seed << 13;
    rt_seed ^= rt_seed >> 17;
    rt_seed ^= rt_seed << 5;
    return rt_seed;
}

/* FNV-1a over whole words. */
static u32 mix(u32 hash, u32 value)
{
    return (hash ^ value) * 16777619u;
}

struct sigaction32 {
    void *handler;
    u32 flags;
    void (*restorer)(void);
    u32 mask[2];
};
enum { SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGFPE = 8, SIGUSR1 = 10, SIGSEGV = 11, SIGALRM = 14 };
enum { SA_SIGINFO = 4, SA_ONSTACK = 0x08000000, SA_RESTORER = 0x04000000, SA_NODEFER = 0x40000000 };

static void on_signal(int signal, void *handler, u32 flags)
{
    struct sigaction32 action = { handler, flags | SA_SIGINFO | SA_RESTORER, rt_sigreturn, { 0, 0 } };
    sys4(NR_rt_sigaction, signal, &action, 0, 8);
}

int main(int argc, char **argv);

__attribute__((used)) static void rt_start(u32 *stack)
{
    int argc = (int)stack[0];
    char **argv = (char **)(stack + 1);
    u32 *aux = stack + argc + 2;
    rt_envp = (char **)aux;
    while (*aux)
        aux++;
    for (aux++; aux[0]; aux += 2)
        if (aux[0] == 32)
            rt_sysinfo = aux[1];
    int status = main(argc, argv);
    out_flush();
    sys1(NR_exit_group, status);
}
