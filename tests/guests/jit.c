/* jit N: code that is written and run at once: fresh functions, a changed immediate in a hot loop, code changed through
 * another mapping, an instruction across two pages, and code that changes the instruction right after itself. */
#include "rt.h"

typedef u32 (*function)(u32);

static u8 *emit32(u8 *at, u32 value)
{
    __builtin_memcpy(at, &value, 4);
    return at + 4;
}

/* mov 4(%esp),%eax; add $imm,%eax; xor $imm,%eax; ret */
static void compile(u8 *at, u32 add, u32 xor)
{
    *at++ = 0x8b, *at++ = 0x44, *at++ = 0x24, *at++ = 4;
    *at++ = 0x05;
    at = emit32(at, add);
    *at++ = 0x35;
    at = emit32(at, xor);
    *at = 0xc3;
}

static u32 fresh(u8 *code, u32 count)
{
    u32 value = 1;
    for (u32 i = 0; i < count; i++) {
        u8 *at = code + (random32() & 0xfc0);
        compile(at, random32(), i);
        value = ((function)at)(value);
    }
    return value;
}

/* Only an immediate changes between calls, as inline caches do. */
static u32 patched(u8 *code, u32 count)
{
    u32 value = 1;
    compile(code, 5, 6);
    for (u32 i = 0; i < count; i++) {
        if ((i & 7) == 0)
            emit32(code + 5, i);
        value = ((function)code)(value);
    }
    return value;
}

static u32 aliased(u32 count)
{
    i32 fd = sys2(NR_memfd_create, "code", 0);
    sys2(NR_ftruncate, fd, 2 * PAGE);
    u8 *write = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    u8 *run = map(2 * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd);
    u32 value = 1;
    for (u32 i = 0; i < count; i++) {
        u32 offset = PAGE - 8 + (i & 7); /* the instructions lie across the page border */
        compile(write + offset, random32(), i);
        value = ((function)(run + offset))(value);
    }
    return value;
}

/* movb $imm,next+1 ; next: mov $0,%al ; ... : the store changes the instruction that follows it. */
static u32 next_instruction(u8 *code, u32 count)
{
    u32 value = 0;
    for (u32 i = 0; i < count; i++) {
        u8 *at = code;
        *at++ = 0x31, *at++ = 0xc0; /* xor %eax,%eax */
        *at++ = 0xc6, *at++ = 0x05; /* movb $imm8,disp32 */
        at = emit32(at, (u32)code + 10);
        *at++ = (u8)(i * 7);
        *at++ = 0xb0, *at++ = 0; /* mov $0,%al */
        *at = 0xc3;
        value = mix(value, ((function)code)(0));
    }
    return value;
}

/* A loop that increments its own immediate: add $imm,%eax ; incl imm ; dec %ecx ; jnz. */
static u32 own_loop(u8 *code, u32 count)
{
    u8 *at = code;
    *at++ = 0x8b, *at++ = 0x4c, *at++ = 0x24, *at++ = 4; /* mov 4(%esp),%ecx */
    *at++ = 0x31, *at++ = 0xc0;
    *at++ = 0x05; /* offset 6: add $1,%eax */
    at = emit32(at, 1);
    *at++ = 0xff, *at++ = 0x05; /* incl code+7 */
    at = emit32(at, (u32)code + 7);
    *at++ = 0x49; /* dec %ecx */
    *at++ = 0x75, *at++ = (u8)-14;
    *at = 0xc3;
    return ((function)code)(count);
}

int main(int argc, char **argv)
{
    u32 count = argc > 1 ? parse_dec(argv[1]) : 500;
    u8 *code = map(2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANON, -1);
    report("fresh", fresh(code, count));
    report("patched", patched(code, count * 4));
    report("aliased", aliased(count));
    report("next", next_instruction(code, count));
    report("own-loop", own_loop(code, count));
    sys3(NR_mprotect, code, 2 * PAGE, PROT_READ | PROT_WRITE);
    compile(code, 1, 2);
    sys3(NR_mprotect, code, 2 * PAGE, PROT_READ | PROT_EXEC);
    report("flipped", ((function)code)(40));
    return 0;
}
