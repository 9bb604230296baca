//! INT from ring 3 and IRET back, many times over, with the supervisor's part above the kernel split: what is remembered
//! serves, and no longer than it is right.

use iced_x86::code_asm::*;
use iced_x86::{IcedError, Mnemonic};

use super::{CACHE_SIZE, DATA, agree_within};
use crate::cpu::reg;

type Emit = Result<(), IcedError>;

const GDT: u32 = DATA + 0x1000;
const IDT: u32 = DATA + 0x2000;
const TSS: u32 = DATA + 0x3000;
const DIRECTORY: u32 = DATA + 0x4000;
/// Its tables: the first 4 MiB page by page, for all rings and above the split.
const LOW: u32 = DATA + 0x5000;
const HIGH: u32 = DATA + 0x6000;
const COUNT: u32 = DATA + 0x7000;
/// Linear addresses above the split are this far from physical ones.
const SPLIT: u32 = 0xc000_0000;
/// Top of the stacks of both rings, and of another one for ring 0.
const STACKS: [u32; 3] = [DATA + 0x2_0000, DATA + 0x3_0000, DATA + 0x4_0000];
const ROUNDS: u32 = 1000;

/// Gate `vector` leads to the code that `body` emits, above the split.
fn handler(a: &mut CodeAssembler, vector: u32, access: u32, body: impl FnOnce(&mut CodeAssembler) -> Emit) -> Emit {
    let mut over = a.create_label();
    a.call(over)?;
    body(a)?;
    a.set_label(&mut over)?;
    a.pop(eax)?;
    a.movzx(edx, ax)?;
    a.or(edx, 8 << 16)?;
    a.mov(dword_ptr(IDT + 8 * vector), edx)?;
    a.add(eax, SPLIT as i32)?;
    a.and(eax, 0xffff_0000u32 as i32)?;
    a.or(eax, (access << 8) as i32)?;
    a.mov(dword_ptr(IDT + 8 * vector + 4), eax)
}

fn tables(a: &mut CodeAssembler) -> Emit {
    for (selector, access) in [(0x08, 0x9b), (0x10, 0x93), (0x18, 0xfb), (0x20, 0xf3)] {
        a.mov(dword_ptr(GDT + selector), 0xffff)?;
        a.mov(dword_ptr(GDT + selector + 4), 0xcf_0000 | access << 8)?;
    }
    a.mov(dword_ptr(GDT + 0x28), (TSS & 0xffff) << 16 | 0x67)?;
    let tss = SPLIT + TSS;
    a.mov(dword_ptr(GDT + 0x2c), tss & 0xff00_0000 | 0x8900 | tss >> 16 & 0xff)?;
    a.mov(dword_ptr(TSS + 4), SPLIT + STACKS[0])?;
    a.mov(dword_ptr(TSS + 8), 0x10)?;
    for (at, table) in [(DATA, GDT), (DATA + 8, IDT)] {
        a.mov(dword_ptr(at), (SPLIT + table) << 16 | 0x7ff)?;
        a.mov(dword_ptr(at + 4), (SPLIT + table) >> 16)?;
    }
    a.lgdt(fword_ptr(DATA))?;
    a.lidt(fword_ptr(DATA + 8))?;
    for (table, rights) in [(LOW, 0x67), (HIGH, 0x163)] {
        let mut head = a.create_label();
        a.mov(ecx, rights)?;
        a.mov(edi, table)?;
        a.set_label(&mut head)?;
        a.mov(dword_ptr(edi), ecx)?;
        a.add(ecx, 0x1000)?;
        a.add(edi, 4)?;
        a.cmp(edi, table + 0x1000)?;
        a.jne(head)?;
    }
    a.mov(dword_ptr(DIRECTORY), LOW | 0x67)?;
    a.mov(dword_ptr(DIRECTORY + (SPLIT >> 20)), HIGH | 0x63)?;
    a.mov(eax, cr4)?;
    a.or(eax, 0x80)?;
    a.mov(cr4, eax)?;
    a.mov(eax, DIRECTORY)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8001_0000u32 as i32)?;
    a.mov(cr0, eax)?;
    a.mov(eax, 0x10)?;
    a.mov(ss, eax)?;
    a.mov(eax, 0x23)?;
    [ds, es].into_iter().try_for_each(|segment| a.mov(segment, eax))?;
    a.mov(eax, 0x28)?;
    a.ltr(ax)
}

/// Ring 3 does INT 30h in [`ROUNDS`] rounds of `body`, with the round in EBX, then INT 31h, which halts.
fn program(
    a: &mut CodeAssembler,
    entered: impl FnOnce(&mut CodeAssembler) -> Emit,
    body: impl FnOnce(&mut CodeAssembler) -> Emit,
) -> Emit {
    let (mut head, mut below) = (a.create_label(), a.create_label());
    tables(a)?;
    handler(a, 0x30, 0xee, |a| {
        entered(a)?;
        a.iretd()
    })?;
    handler(a, 0x31, 0xee, |a| a.hlt())?;
    a.xor(ebx, ebx)?;
    a.xor(esi, esi)?;
    a.call(below)?;
    // Ring 3 begins here.
    a.set_label(&mut head)?;
    body(a)?;
    a.inc(ebx)?;
    a.cmp(ebx, ROUNDS)?;
    a.jne(head)?;
    a.int(0x31)?;
    a.set_label(&mut below)?;
    a.pop(eax)?;
    a.push(0x23)?;
    a.push(STACKS[1])?;
    a.push(2)?;
    a.push(0x1b)?;
    a.push(eax)?;
    a.iretd()
}

/// What a handler finds on its stack goes into ESI.
fn gather(a: &mut CodeAssembler) -> Emit {
    a.inc(dword_ptr(COUNT))?;
    for word in 0..5 {
        a.lea(esi, dword_ptr(esi + esi * 4 + 1))?;
        a.add(esi, dword_ptr(esp + 4 * word))?;
    }
    a.add(esi, esp)
}

#[test]
fn both_ways_stay_in_the_cache() {
    let (state, translator) = agree_within(CACHE_SIZE, |a| {
        program(a, gather, |a| {
            // Flags and the stack pointer come back.
            a.cmp(ebx, 500)?;
            a.push(ebx)?;
            a.int(0x30)?;
            a.pop(eax)?;
            a.sbb(edi, eax)
        })
        .unwrap()
    });
    assert_eq!(state.gpr[reg::EBX], ROUNDS);
    let count = |kind: Mnemonic| translator.assists[kind as usize];
    assert!(count(Mnemonic::Int) < 20, "{} of {ROUNDS}", count(Mnemonic::Int));
    assert!(count(Mnemonic::Iretd) < 20, "{} of {ROUNDS}", count(Mnemonic::Iretd));
}

/// Every 100 rounds another stack: by the TSS, or another page behind the same address. What was pushed is where it belongs.
#[test]
fn frames_follow_the_stack() {
    let by_task = |a: &mut CodeAssembler| a.xor(dword_ptr(TSS + 4), (STACKS[0] ^ STACKS[2]) as i32);
    let by_page = |a: &mut CodeAssembler| {
        let [here, there] = [STACKS[0] - 0x1000, STACKS[2] - 0x1000];
        a.xor(dword_ptr(HIGH + (here >> 12) * 4), (here ^ there) as i32)?;
        a.invlpg(byte_ptr(SPLIT + STACKS[0] - 4))
    };
    for (name, change) in [("task", &by_task as &dyn Fn(&mut CodeAssembler) -> Emit), ("page", &by_page)] {
        let (state, translator) = agree_within(CACHE_SIZE, |a| {
            program(
                a,
                |a| {
                    let mut usual = a.create_label();
                    gather(a)?;
                    a.mov(eax, ebx)?;
                    a.xor(edx, edx)?;
                    a.mov(ecx, 100)?;
                    a.div(ecx)?;
                    a.cmp(edx, 99)?;
                    a.jne(usual)?;
                    if name == "task" {
                        return change(a).and_then(|()| a.set_label(&mut usual)).and_then(|()| a.nop());
                    }
                    // The frame is to be in the new page too.
                    for word in 0..5 {
                        let at = 4 * word;
                        a.mov(eax, dword_ptr(esp + at))?;
                        [STACKS[0], STACKS[2]].iter().try_for_each(|top| a.mov(dword_ptr(top - 20 + at), eax))?;
                    }
                    change(a)?;
                    a.set_label(&mut usual)?;
                    a.nop()
                },
                |a| a.int(0x30),
            )
            .unwrap()
        });
        assert_eq!(state.gpr[reg::EBX], ROUNDS, "{name}");
        let ints = translator.assists[Mnemonic::Int as usize];
        assert!((5..100).contains(&ints), "{name}: {ints}");
    }
}

/// Every ten rounds a page of the program's code is another one: ways between rings that do not lead there stay known.
#[test]
fn changing_code_leaves_the_ways_alone() {
    const CALLED: u32 = DATA + 0x5_0000;
    let frames = [DATA + 0x6_0000, DATA + 0x7_0000];
    let place = LOW + (CALLED >> 12) * 4;
    let (state, translator) = agree_within(CACHE_SIZE, |a| {
        // inc edi, or dec edi; ret
        frames.iter().zip([0xc347, 0xc34f]).try_for_each(|(frame, code)| a.mov(dword_ptr(*frame), code)).unwrap();
        program(
            a,
            |a| {
                let mut usual = a.create_label();
                a.inc(dword_ptr(COUNT))?;
                a.cmp(dword_ptr(COUNT), 10)?;
                a.jne(usual)?;
                a.mov(dword_ptr(COUNT), 0)?;
                a.mov(eax, dword_ptr(COUNT + 4))?;
                a.xor(dword_ptr(COUNT + 4), (frames[0] ^ frames[1]) as i32)?;
                a.xor(eax, (frames[0] | 0x67) as i32)?;
                a.mov(dword_ptr(place), eax)?;
                a.invlpg(byte_ptr(CALLED))?;
                a.set_label(&mut usual)?;
                a.nop()
            },
            |a| {
                let mut first = a.create_label();
                a.cmp(ebx, 10)?;
                a.jb(first)?;
                a.mov(eax, CALLED)?;
                a.call(eax)?;
                a.set_label(&mut first)?;
                a.int(0x30)
            },
        )
        .unwrap()
    });
    assert_eq!(state.gpr[reg::EBX], ROUNDS);
    let ways = translator.assists[Mnemonic::Iretd as usize];
    assert!(ways < ROUNDS as u64 / 20, "{ways} for {} changes", ROUNDS / 10);
}
