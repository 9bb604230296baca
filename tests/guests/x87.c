/* x87 N: the x87 unit. Every result is printed by its bits, so a single rounding error shows. */
#include "rt.h"

static void put_double(const char *name, double value)
{
    union { double value; u64 bits; } as = { .value = value };
    put(name);
    put_char(' ');
    put_hex64(as.bits);
    put_char('\n');
}

static void set_control(u16 word)
{
    __asm__ volatile("fldcw %0" : : "m"(word));
}

/* A logistic map and a Newton square root: chains of dependent multiply, divide and add. */
static NOINLINE double chain(u32 loops)
{
    double x = 0.3, root = 1.0;
    for (u32 i = 0; i < loops; i++) {
        x = 3.7 * x * (1.0 - x);
        root = 0.5 * (root + (x + 2.0) / root);
    }
    return x + root;
}

/* Rounding of one division to memory in each mode of RC, and each precision of PC. */
static void rounding(void)
{
    for (u32 mode = 0; mode < 4; mode++)
        for (u32 precision = 0; precision < 4; precision++) {
            if (precision == 1)
                continue;
            volatile double one = 1.0, minus = -1.0, three = 3.0;
            set_control((u16)(0x3f | precision << 8 | mode << 10));
            double a = one / three, b = minus / three;
            set_control(0x37f);
            put_double("div", a);
            put_double("div", b);
        }
}

/* Integer and BCD conversions, extended loads and stores, compare flags, exceptions in the status word. */
static void formats(void)
{
    u8 ten[10] = { 0 };
    volatile double value = -1234567890.75;
    i32 rounded;
    u16 status;
    __asm__ volatile("fldl %1; fistpl %0" : "=m"(rounded) : "m"(value));
    report("fistp", (u32)rounded);
    __asm__ volatile("fldl %1; fbstp %0" : "=m"(ten) : "m"(value));
    for (int i = 9; i >= 0; i--)
        report("bcd", ten[i]);
    __asm__ volatile("fldpi; fldl2e; fmulp; fstpt %0" : "=m"(ten));
    for (int i = 9; i >= 0; i--)
        report("ext", ten[i]);
    __asm__ volatile("fnclex; fld1; fldz; fdivrp; fstp %%st(0); fnstsw %0" : "=m"(status));
    report("zero-divide", status & 0x7fff);
    __asm__ volatile("fnclex; fldz; fldz; fdivp; fstp %%st(0); fnstsw %0" : "=m"(status));
    report("invalid", status & 0x7fff);
    __asm__ volatile("fnclex; fld1; fldpi; fcompp; fnstsw %0" : "=m"(status));
    report("compare", status & 0x4700);
    __asm__ volatile("fninit; fstp %%st(0); fnstsw %0; fninit" : "=m"(status));
    report("underflow", status & 0x7fff);
}

/* Transcendental functions, cut to 40 bits: processors differ in the last ones. */
static void transcendental(void)
{
    union { double value; u64 bits; } r;
#define SHOW(name, code)                                                   \
    __asm__ volatile(code "; fstpl %0" : "=m"(r.value));                   \
    r.bits = (r.bits + (1u << 15)) & ~0xffffull;                           \
    put_double(name, r.value)
    SHOW("fsin", "fldpi; fld1; fadd %%st(0); fdivrp; fsin");
    SHOW("fcos", "fldl2e; fcos");
    SHOW("fptan", "fldln2; fptan; fstp %%st(0)");
    SHOW("fpatan", "fldl2t; fldpi; fpatan");
    SHOW("f2xm1", "fldlg2; f2xm1");
    SHOW("fyl2x", "fldpi; fldl2t; fyl2x");
    SHOW("fsqrt", "fldpi; fsqrt");
    SHOW("fprem", "fldln2; fldpi; fprem; fstp %%st(1)");
    SHOW("fscale", "fld1; fadd %%st(0); fldpi; fscale; fstp %%st(1)");
}

int main(int argc, char **argv)
{
    put_double("chain", chain(argc > 1 ? parse_dec(argv[1]) : 20000));
    if (argc < 3) {
        rounding();
        formats();
        transcendental();
    }
    return 0;
}
