/* depth DISK [w]SECTOR...: asks for 4 KiB at each sector, all at once and past the page cache, and waits for all. A read
 * must find in its first four bytes the sector's number, a write puts it there. Prints a line for each, in order, and how
 * long all took. */
#include "rt.h"
enum { NR_io_setup = 245, NR_io_getevents = 247, NR_io_submit = 248, O_RDWR = 2, O_DIRECT = 040000, O_LARGEFILE = 0100000 };
enum { MOST = 64, BYTES = 4096, IOCB_READ = 0, IOCB_WRITE = 1 };

/* struct iocb and struct io_event of linux/aio_abi.h. */
struct iocb {
    u64 data;
    u32 key, rw_flags;
    u16 opcode, priority;
    u32 fd;
    u64 buffer, bytes, offset, reserved;
    u32 flags, eventfd;
};
struct event {
    u64 data, iocb;
    i64 result, result2;
};

static struct iocb requests[MOST];
static struct iocb *list[MOST];
static struct event events[MOST];

int main(int argc, char **argv)
{
    i32 count = argc - 2, done = 0, results[MOST];
    if (count < 1 || count > MOST) {
        put("usage: depth DISK [w]SECTOR...\n");
        return 2;
    }
    i32 fd = sys3(NR_open, argv[1], O_RDWR | O_DIRECT | O_LARGEFILE, 0);
    u32 context = 0;
    if (fd < 0 || sys2(NR_io_setup, MOST, &context) < 0) {
        put("cannot use the disk\n");
        return 1;
    }
    u8 *buffers = map(MOST * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1);
    for (i32 i = 0; i < count; i++) {
        const char *word = argv[i + 2];
        u32 writes = word[0] == 'w', sector = parse_dec(word + writes);
        u32 *buffer = (u32 *)(buffers + i * BYTES);
        buffer[0] = writes ? sector : ~0u;
        requests[i] = (struct iocb){ .data = (u32)i, .opcode = writes ? IOCB_WRITE : IOCB_READ, .fd = (u32)fd,
                                     .buffer = (u32)buffer, .bytes = BYTES, .offset = (u64)sector << 9 };
        list[i] = &requests[i];
    }
    u64 start = now_ns();
    if (sys3(NR_io_submit, context, count, list) != count) {
        put("cannot submit\n");
        return 1;
    }
    while (done < count) {
        i32 found = sys5(NR_io_getevents, context, 1, MOST, events, 0);
        for (i32 i = 0; i < found; i++)
            results[events[i].data] = (i32)events[i].result;
        done += found > 0 ? found : 0;
    }
    u64 took = now_ns() - start;
    for (i32 i = 0; i < count; i++) {
        const char *word = argv[i + 2];
        u32 sector = parse_dec(word + (word[0] == 'w'));
        put(word);
        if (results[i] < 0) {
            put(": error ");
            put_dec((u64)-results[i]);
        } else {
            put(results[i] == BYTES && *(u32 *)(buffers + i * BYTES) == sector ? ": good" : ": wrong");
        }
        put_char('\n');
    }
    put("all came back after ");
    put_dec(div64(took, 1000000, 0));
    put(" ms\n");
    return 0;
}
