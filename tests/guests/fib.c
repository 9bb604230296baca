/* fib N: the naive recursive Fibonacci; calls, returns and a predictable branch. */
#include "rt.h"

static NOINLINE u32 fib(u32 n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

int main(int argc, char **argv)
{
    report("fib", fib(argc > 1 ? parse_dec(argv[1]) : 24));
    return 0;
}
