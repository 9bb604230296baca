/* bytecode N: a small stack machine run for N loops; indirect branches through a table of labels. */
#include "rt.h"

enum { PUSH, ADD, XOR, MUL, DUP, SWAP, SHR, DEC, JNZ, HALT };

static const u8 program[] = {
    PUSH, 7, PUSH, 3,                      /* accumulator, then a constant on top */
    ADD, DUP, PUSH, 13, SHR, XOR, PUSH, 5, MUL, PUSH, 9, ADD, /* mix the accumulator */
    PUSH, 3,                               /* the constant again */
    DEC, JNZ, 4, HALT,
};

static NOINLINE u32 run(u32 loops)
{
    static const void *const table[] = { &&push, &&add, &&xor, &&mul, &&dup, &&swap, &&shr, &&dec, &&jnz, &&halt };
    u32 stack[16], *sp = stack, left = loops, t;
    const u8 *pc = program;
#define NEXT goto *table[*pc++]
    NEXT;
push: *sp++ = *pc++; NEXT;
add: sp--; sp[-1] += sp[0]; NEXT;
xor: sp--; sp[-1] ^= sp[0]; NEXT;
mul: sp--; sp[-1] *= sp[0]; NEXT;
dup: sp[0] = sp[-1]; sp++; NEXT;
swap: t = sp[-1]; sp[-1] = sp[-2]; sp[-2] = t; NEXT;
shr: sp--; sp[-1] >>= sp[0] & 31; NEXT;
dec: left--; NEXT;
jnz: t = *pc++; if (left) pc = program + t; NEXT;
halt: return sp[-2];
}

int main(int argc, char **argv)
{
    report("bytecode", run(argc > 1 ? parse_dec(argv[1]) : 20000));
    return 0;
}
