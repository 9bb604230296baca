/* stream N: N passes of a = b + k * c over arrays far larger than a cache (3 x 8 MiB). */
#include "rt.h"

enum { WORDS = 2 * 1024 * 1024 };

int main(int argc, char **argv)
{
    u32 passes = argc > 1 ? parse_dec(argv[1]) : 2, hash = 1;
    u32 *a = map(WORDS * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    u32 *b = map(WORDS * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    u32 *c = map(WORDS * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    for (u32 i = 0; i < WORDS; i++)
        b[i] = i, c[i] = i * 3;
    for (u32 pass = 0; pass < passes; pass++) {
        for (u32 i = 0; i < WORDS; i++)
            a[i] = b[i] + 7 * c[i];
        u32 *t = a;
        a = b, b = c, c = t;
    }
    for (u32 i = 0; i < WORDS; i += 1024)
        hash = mix(hash, b[i]);
    report("stream", hash);
    return 0;
}
