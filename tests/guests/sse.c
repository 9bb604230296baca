/* sse N: SSE and SSE2 by gcc's vector types: floats, doubles, integers, shuffles, rounding and MXCSR flags. */
#include "rt.h"
typedef float v4sf __attribute__((vector_size(16)));
typedef double v2df __attribute__((vector_size(16)));
typedef u32 v4su __attribute__((vector_size(16)));
typedef u16 v8hu __attribute__((vector_size(16)));
typedef u8 v16qu __attribute__((vector_size(16)));
typedef char v16qi __attribute__((vector_size(16)));
typedef i32 v4si __attribute__((vector_size(16)));

static void put_vector(const char *name, v4su v)
{
    put(name);
    for (int i = 0; i < 4; i++) {
        put_char(' ');
        put_hex(v[i]);
    }
    put_char('\n');
}

static NOINLINE v4sf floats(u32 loops)
{
    v4sf x = { 0.1f, 0.2f, 0.3f, 0.4f }, k = { 3.6f, 3.7f, 3.8f, 3.9f }, one = { 1, 1, 1, 1 };
    while (loops--)
        x = k * x * (one - x);
    return x / (one + x) + __builtin_ia32_sqrtps(x);
}

static NOINLINE v2df doubles(u32 loops)
{
    v2df x = { 0.1, 0.7 }, k = { 3.61, 3.99 }, one = { 1, 1 };
    while (loops--)
        x = k * x * (one - x);
    return x / (one + x) + __builtin_ia32_sqrtpd(x);
}

static NOINLINE v4su integers(u32 loops)
{
    v4su a = { 1, 2, 3, 4 }, b = { 0x9e3779b9u, 0x7f4a7c15u, 0xf39cc060u, 0x5cedc834u };
    while (loops--) {
        a = a * (v4su){ 1664525, 22695477, 1103515245, 134775813 } + b;
        b ^= (a >> 7) | (a << 25);
        b = (v4su)((v8hu)b + (v8hu)a);
        b = __builtin_shuffle(b, (v4su){ 1, 2, 3, 0 });
    }
    return a ^ b;
}

static void bytes(void)
{
    v16qi a, b;
    for (int i = 0; i < 16; i++) {
        a[i] = (char)(i * 37 + 11);
        b[i] = (char)(i * 59 + 97);
    }
    put_vector("paddusb", (v4su)__builtin_ia32_paddusb128(a, b));
    put_vector("psubsb", (v4su)__builtin_ia32_psubsb128(a, b));
    put_vector("pavgb", (v4su)__builtin_ia32_pavgb128(a, b));
    put_vector("psadbw", (v4su)__builtin_ia32_psadbw128(a, b));
    put_vector("packuswb", (v4su)__builtin_ia32_packuswb128((short __attribute__((vector_size(16))))a, (short __attribute__((vector_size(16))))b));
    report("pmovmskb", (u32)__builtin_ia32_pmovmskb128(a));
    put_vector("pcmpeqb", (v4su)(a == b));
}

static void control(void)
{
    u32 csr = 0x1f80;
    for (u32 mode = 0; mode < 4; mode++) {
        volatile v4sf one = { 1, -1, 2, 1e-40f }, three = { 3, 3, 7, 3 };
        csr = 0x1f80 | mode << 13;
        __asm__ volatile("ldmxcsr %0" : : "m"(csr));
        v4sf q = one / three;
        v4si converted = __builtin_ia32_cvtps2dq(one * (v4sf){ 2.5f, 3.5f, -0.5f, 1e30f });
        __asm__ volatile("stmxcsr %0" : "=m"(csr));
        put_vector("divps", (v4su)q);
        put_vector("cvtps2dq", (v4su)converted);
        report("mxcsr", csr);
    }
    csr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(csr));
}

int main(int argc, char **argv)
{
    u32 loops = argc > 1 ? parse_dec(argv[1]) : 5000;
    put_vector("floats", (v4su)floats(loops));
    put_vector("doubles", (v4su)doubles(loops));
    put_vector("integers", integers(loops));
    bytes();
    control();
    return 0;
}
