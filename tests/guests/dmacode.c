/* dmacode DISK SECTORS ROUNDS: has the disk write code into a page that is being executed. Sector n of the disk holds a
 * function that returns n. After each read, whichever function is called must be the one that was read last. */
#include "rt.h"

enum { O_DIRECT = 0x4000, O_LARGEFILE = 0x8000, SECTOR = 512, PLACES = PAGE / SECTOR };

static u32 number(const char *text)
{
    u32 value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u32)(*text++ - '0');
    return value;
}

static int wrong(const char *what, u32 round)
{
    put("dmacode: ");
    put(what);
    put(" in round ");
    put_dec(round);
    put_char('\n');
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    u32 sectors = number(argv[2]), rounds = number(argv[3]), held[PLACES];
    i32 disk = sys3(NR_open, argv[1], O_DIRECT | O_LARGEFILE, 0);
    if (disk < 0)
        return wrong("the disk cannot be opened", 0);
    /* Written at one address and executed at another, which the processor never writes: only the disk tells. */
    i32 memory = sys2(NR_memfd_create, "code", 0);
    sys2(NR_ftruncate, memory, PAGE);
    u8 *page = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
    u8 *code = map(PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, memory);
    for (u32 round = 0; round < rounds + PLACES; round++) {
        /* First every place, then any. */
        u32 place = round < PLACES ? round : random32() % PLACES, sector = random32() % sectors;
        if (sys5(NR_pread64, disk, page + place * SECTOR, SECTOR, sector * SECTOR, 0) != SECTOR)
            return wrong("a read failed", round);
        held[place] = sector;
        u32 called = round < PLACES || random32() & 1 ? place : random32() % PLACES;
        u32 (*function)(void) = (u32(*)(void))(code + called * SECTOR);
        if (function() != held[called])
            return wrong("old code was executed", round);
    }
    put("dmacode: all right\n");
    return 0;
}
