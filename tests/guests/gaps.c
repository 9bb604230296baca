/* gaps DISK MICROSECONDS: reads random blocks of the first 16 MiB of a disk, one after the other, until it is killed.
 * Prints "gap" and the microseconds between two completed reads wherever they are more than so many. */
#include "rt.h"

enum { O_DIRECT = 0x4000, O_LARGEFILE = 0x8000 };

static u8 block[PAGE] __attribute__((aligned(4096)));

static u32 number(const char *text)
{
    u32 value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u32)(*text++ - '0');
    return value;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    u64 limit = (u64)number(argv[2]) * 1000;
    i32 disk = sys3(NR_open, argv[1], O_DIRECT | O_LARGEFILE, 0);
    if (disk < 0) {
        put("gaps: the disk cannot be opened\n");
        return 1;
    }
    for (u64 last = now_ns();;) {
        if (sys5(NR_pread64, disk, block, PAGE, random32() % PAGE * PAGE, 0) != (i32)PAGE) {
            put("gaps: a read failed\n");
            return 1;
        }
        u64 now = now_ns();
        if (now - last > limit) {
            put("gap ");
            put_dec(div64(now - last, 1000, 0));
            put_char('\n');
        }
        last = now;
    }
}
