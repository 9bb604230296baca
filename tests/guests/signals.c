/* signals N: delivery, exact fault addresses, every exception that user code can raise, single step, alternate stack. */
#include "rt.h"

static volatile u32 caught, last_signal, fault_address, fault_trap, fault_error, steps, on_stack;
static u32 skip;
static u8 alternate[8192];

/* Words of the i386 sigcontext, which follows the first 5 words of ucontext. */
enum { REG_EDI = 5 + 4, REG_ESP = 5 + 7, REG_TRAP = 5 + 12, REG_ERR = 5 + 13, REG_EIP = 5 + 14, REG_EFL = 5 + 16 };

static void count(int signal)
{
    caught += (u32)signal;
}

static void fault(int signal, u32 *info, u32 *context)
{
    last_signal = (u32)signal;
    fault_address = info[3];
    fault_trap = context[REG_TRAP];
    fault_error = context[REG_ERR];
    on_stack = (u32)&signal >= (u32)alternate && (u32)&signal < (u32)alternate + sizeof alternate;
    context[REG_EIP] += skip;
    caught++;
}

static void step(int signal, u32 *info, u32 *context)
{
    (void)signal, (void)info;
    steps++;
    if (steps > 1000)
        context[REG_EFL] &= ~0x100u;
}

static void show(const char *name, u32 base)
{
    put(name);
    put(" signal ");
    put_dec(last_signal);
    put(" trap ");
    put_dec(fault_trap);
    put(" error ");
    put_hex(fault_error);
    put(" address ");
    put_hex(fault_address - base);
    put(" caught ");
    put_dec(caught);
    put_char('\n');
    caught = 0;
}

static void faults(void)
{
    u8 *page = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    sys3(NR_mprotect, page + PAGE, PAGE, PROT_NONE);
    skip = 2; /* mov %al,(%edx) and the like are two bytes */
    __asm__ volatile("movb %%al,(%%edx)" : : "a"(1), "d"(page + PAGE + 5) : "memory");
    show("write-none", (u32)page);
    sys3(NR_mprotect, page + PAGE, PAGE, PROT_READ);
    __asm__ volatile("movl %%eax,(%%edx)" : : "a"(1), "d"(page + PAGE - 2) : "memory");
    show("write-across", (u32)page);
    report("untouched", page[PAGE - 1] + page[PAGE - 2]);
    __asm__ volatile("movb (%%edx),%%al" : : "a"(1), "d"(0x10) : "memory");
    show("read-null", 0);
    __asm__ volatile("ud2");
    show("ud2", last_signal == SIGILL ? fault_address : 0);
    __asm__ volatile("divl %%ecx" : : "a"(1), "c"(0), "d"(0) : "cc");
    show("divide", last_signal == SIGFPE ? fault_address : 0);
    __asm__ volatile("divl %%ecx" : : "a"(1), "c"(2), "d"(2) : "cc");
    show("divide-overflow", last_signal == SIGFPE ? fault_address : 0);
    skip = 1;
    __asm__ volatile("hlt");
    show("hlt", 0);
    __asm__ volatile("cli");
    show("cli", 0);
    skip = 2;
    __asm__ volatile("int $0x21");
    show("int-21", 0);
    skip = 0;
    __asm__ volatile("int3");
    show("int3", 0);
}

static u32 single_step(void)
{
    u32 result;
    steps = 0;
    __asm__ volatile("pushf; orl $0x100,(%%esp); popf\n\t"
                     "movl $10,%%ecx; xorl %%eax,%%eax\n"
                     "1: addl %%ecx,%%eax; decl %%ecx; jnz 1b\n\t"
                     "pushf; andl $~0x100,(%%esp); popf\n\t"
                     : "=a"(result) : : "ecx", "cc", "memory");
    return result;
}

/* A floating-point exception that is not masked: reported at the next waiting instruction. */
static u16 control = 0x37b;
static void fpu_fault(int signal, u32 *info, u32 *context)
{
    (void)context;
    last_signal = (u32)signal;
    fault_address = info[2]; /* si_code: FPE_FLTDIV is 3 */
    __asm__ volatile("fnclex; fninit");
    u32 *fpu = (u32 *)context[5 + 19];
    fpu[0] |= 0x3f;  /* mask all */
    fpu[1] &= ~0xffu; /* clear what is pending */
    fpu[1] &= ~0x8000u;
    caught++;
}

static void alarm_and_mask(void)
{
    u32 timer[4] = { 0, 0, 0, 2000 }, set[2] = { 1u << (SIGUSR1 - 1), 0 }, left = 0;
    on_signal(SIGALRM, count, 0);
    caught = 0;
    sys3(NR_setitimer, 0, timer, 0);
    for (u64 start = now_ns(); !caught && now_ns() - start < 10000000000ull;)
        left++;
    report("alarm", caught);
    caught = 0;
    sys4(NR_rt_sigprocmask, 0, set, 0, 8);
    sys2(NR_kill, sys0(NR_getpid), SIGUSR1);
    report("masked", caught);
    sys4(NR_rt_sigprocmask, 1, set, 0, 8);
    report("unmasked", caught);
}

int main(int argc, char **argv)
{
    u32 loops = argc > 1 ? parse_dec(argv[1]) : 200;
    on_signal(SIGUSR1, count, 0);
    for (u32 i = 0; i < loops; i++)
        sys2(NR_kill, sys0(NR_getpid), SIGUSR1);
    report("raised", caught);
    caught = 0;
    u32 stack[3] = { (u32)alternate, 0, sizeof alternate };
    sys2(NR_sigaltstack, stack, 0);
    on_signal(SIGSEGV, fault, SA_SIGINFO | SA_ONSTACK);
    on_signal(SIGBUS, fault, SA_SIGINFO);
    on_signal(SIGILL, fault, SA_SIGINFO);
    on_signal(SIGFPE, fault, SA_SIGINFO);
    on_signal(SIGTRAP, fault, SA_SIGINFO);
    faults();
    on_signal(SIGTRAP, step, SA_SIGINFO);
    report("stepped-sum", single_step());
    report("steps", steps);
    on_signal(SIGFPE, fpu_fault, SA_SIGINFO);
    __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait; fninit" : : "m"(control));
    show("x87", 0);
    alarm_and_mask();
    return 0;
}
