/* sysbench [name] [N]: what one system operation costs. Prints "name nanoseconds-per-operation" for each. */
#include "rt.h"

static i32 file, to[2], from[2];
static u8 buffer[PAGE];
static volatile u32 signals;
static const char *running = "setting up";

/* A call that fails does not do the work that is measured: the run ends, and says which. */
static i32 must(i32 result)
{
    if (result < 0) {
        put(running);
        put(" failed: errno ");
        put_dec((u32)-result);
        put_char('\n');
        sys1(NR_exit_group, 1);
    }
    return result;
}

/* A child that did not exit with 0 failed: its status is no errno, but tells as much. */
static void wait_for(i32 pid)
{
    i32 status = 0;
    must(sys4(NR_wait4, pid, &status, 0, 0));
    must(-status);
}

static void op_getppid(void)
{
    must(sys0(NR_getppid));
}

static void op_open_close(void)
{
    must(sys1(NR_close, must(sys3(NR_open, "/tmp/bulkhead-bench", 0, 0))));
}

static void op_write_read(void)
{
    must(sys5(NR_pwrite64, file, buffer, PAGE, 0, 0) - (i32)PAGE);
    must(sys5(NR_pread64, file, buffer, PAGE, 0, 0) - (i32)PAGE);
}

static void op_ping_pong(void)
{
    must(sys3(NR_write, to[1], buffer, 1) - 1);
    must(sys3(NR_read, from[0], buffer, 1) - 1);
}

static void caught(int signal)
{
    signals += (u32)signal;
}

static void op_signal(void)
{
    u32 before = signals;
    must(sys2(NR_kill, sys0(NR_getpid), SIGUSR1));
    must(-(i32)(signals == before));
}

static void op_fork(void)
{
    i32 pid = must(sys0(NR_fork));
    if (!pid)
        sys1(NR_exit_group, 0);
    wait_for(pid);
}

static void op_exec(void)
{
    i32 pid = must(sys0(NR_fork));
    if (!pid) {
        char *argv[] = { "sysbench", "exit", 0 };
        must(sys3(NR_execve, "/proc/self/exe", argv, rt_envp));
    }
    wait_for(pid);
}

static void op_mmap(void)
{
    u8 *page = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    *page = 1;
    must(sys2(NR_munmap, page, PAGE));
}

static u8 *protected_page;
static void op_mprotect(void)
{
    must(sys3(NR_mprotect, protected_page, PAGE, PROT_READ));
    must(sys3(NR_mprotect, protected_page, PAGE, PROT_READ | PROT_WRITE));
    *(volatile u8 *)protected_page = 1;
}

static void echo(void)
{
    u8 byte;
    while (sys3(NR_read, to[0], &byte, 1) == 1 && byte != 0xff)
        sys3(NR_write, from[1], &byte, 1);
    sys1(NR_exit_group, 0);
}

static void pipes_open(void)
{
    must(sys1(NR_pipe, to));
    must(sys1(NR_pipe, from));
    if (!must(sys0(NR_fork)))
        echo();
    buffer[0] = 0;
}

static void pipes_close(void)
{
    buffer[0] = 0xff;
    must(sys3(NR_write, to[1], buffer, 1));
    wait_for(-1);
}

static const struct { const char *name; void (*run)(void); u32 count; } ops[] = {
    { "getppid", op_getppid, 50000 },    { "open+close", op_open_close, 5000 }, { "pwrite+pread", op_write_read, 5000 },
    { "ping-pong", op_ping_pong, 2000 }, { "signal", op_signal, 4000 },         { "fork+exit", op_fork, 200 },
    { "fork+exec", op_exec, 100 },       { "mmap+touch", op_mmap, 5000 },       { "mprotect", op_mprotect, 2000 },
};

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* Repeats the operation until it filled a quarter of a second, so that a fast host measures as well as a slow guest. */
static void measure(u32 which, u32 target_ms)
{
    u64 start, spent;
    u32 count = ops[which].count / 10 + 1;
    running = ops[which].name;
    ops[which].run();
    for (;;) {
        start = now_ns();
        for (u32 i = 0; i < count; i++)
            ops[which].run();
        spent = now_ns() - start;
        if (spent >= (u64)target_ms * 1000000 || count > 100000000)
            break;
        count *= 2;
    }
    put(ops[which].name);
    put_char(' ');
    put_dec(div64(spent, count, 0));
    put_char('\n');
}

int main(int argc, char **argv)
{
    if (argc > 1 && same(argv[1], "exit"))
        return 0;
    u32 target_ms = argc > 2 ? parse_dec(argv[2]) : 250;
    file = must(sys3(NR_open, "/tmp/bulkhead-bench", 0102, 0600));
    on_signal(SIGUSR1, caught, 0);
    protected_page = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    for (u32 i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (argc > 1 && !same(argv[1], "all") && !same(argv[1], ops[i].name))
            continue;
        if (ops[i].run == op_ping_pong)
            pipes_open();
        measure(i, target_ms);
        if (ops[i].run == op_ping_pong)
            pipes_close();
    }
    sys1(NR_unlink, "/tmp/bulkhead-bench");
    return 0;
}
