//! Self-modifying code: on this processor a store is seen by the very next fetch, through any address (SDM 3A, 11.6).

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::tables::pte;
use tests::bare::{Bare, Emit, at};

/// `mov eax, value; ret`
fn function(b: &mut Bare, place: u32, value: u32) -> Emit {
    b.poke(place, 0xb8 | value << 8)?;
    b.poke(place + 4, value >> 24 | 0xc300)
}

fn call(b: &mut Bare, place: u32) -> Emit {
    b.asm.mov(ebx, place)?;
    b.asm.call(ebx)
}

/// A function's immediate is changed before each call: by bytes, words, string stores, and by itself.
#[test]
fn changed_between_calls() -> Outcome {
    check(
        |b| {
            function(b, at::FREE, 0x1111_1111)?;
            call(b, at::FREE)?;
            b.show("first")?;
            b.asm.mov(byte_ptr(at::FREE + 1), 0x22)?;
            call(b, at::FREE)?;
            b.show("byte")?;
            b.asm.mov(word_ptr(at::FREE + 3), 0x3333)?;
            call(b, at::FREE)?;
            b.show("word")?;
            b.asm.mov(edi, at::FREE + 1)?;
            b.asm.mov(eax, 0x44)?;
            b.asm.mov(ecx, 4)?;
            b.asm.rep().stosb()?;
            call(b, at::FREE)?;
            b.show("rep stosb")?;
            b.asm.lock().xadd(dword_ptr(at::FREE + 1), eax)?;
            call(b, at::FREE)?;
            b.show("xadd")?;
            // A thousand calls, each after an increment of the immediate.
            function(b, at::FREE, 0)?;
            b.asm.mov(esi, 1000)?;
            let mut again = b.asm.create_label();
            b.asm.set_label(&mut again)?;
            b.asm.inc(dword_ptr(at::FREE + 1))?;
            call(b, at::FREE)?;
            b.asm.dec(esi)?;
            b.asm.jnz(again)?;
            b.show("thousand")
        },
        "first 11111111
         byte 11111122
         word 33331122
         rep stosb 44444444
         xadd 88888888
         thousand 000003e8",
        &[],
    )
}

/// The store changes the instruction right after it, and one further down in the same straight line.
#[test]
fn changed_ahead() -> Outcome {
    check(
        |b| {
            // 0: mov byte [FREE+8], 0x77   7: mov al, 0   9: ret
            let store = |b: &mut Bare, offset: u32, filler: &[u8]| -> Emit {
                let mut code = vec![0xc6, 0x05];
                code.extend_from_slice(&(at::FREE + offset).to_le_bytes());
                code.push(0x77);
                code.extend_from_slice(filler);
                code.extend_from_slice(&[0xb0, 0, 0xc3]);
                for (index, byte) in code.iter().enumerate() {
                    b.asm.mov(byte_ptr(at::FREE + index as u32), u32::from(*byte))?;
                }
                b.asm.xor(eax, eax)?;
                call(b, at::FREE)
            };
            store(b, 8, &[])?;
            b.show("next")?;
            store(b, 12, &[0x90; 4])?;
            b.show("further")?;
            call(b, at::FREE)?;
            b.show("again")?;
            // rep movsb copies new code over the instruction that follows it.
            own_copy(b)
        },
        "next 00000077
         further 00000077
         again 00000077
         copied 00000099",
        &[],
    )
}

/// A `rep movsb` in FREE replaces the `mov eax, 55h` behind it by `mov eax, 99h`.
fn own_copy(b: &mut Bare) -> Emit {
    let code = [0xf3u8, 0xa4, 0xb8, 0x55, 0, 0, 0, 0xc3];
    for (index, byte) in code.iter().enumerate() {
        b.asm.mov(byte_ptr(at::FREE + index as u32), u32::from(*byte))?;
    }
    function(b, at::SCRATCH, 0x99)?;
    b.asm.mov(esi, at::SCRATCH)?;
    b.asm.mov(edi, at::FREE + 2)?;
    b.asm.mov(ecx, 5)?;
    call(b, at::FREE)?;
    b.show("copied")
}

/// Code is reached by one linear address and written by another; and one linear address changes what it maps.
#[test]
fn aliases() -> Outcome {
    const ALIAS: u32 = at::FREE + 0x10_0000;
    check(
        |b| {
            function(b, at::FREE, 0x1111)?;
            function(b, at::FREE + 0x1000, 0x2222)?;
            b.page_4k()?;
            b.poke(pte(ALIAS), at::FREE | 7)?;
            b.asm.invlpg(byte_ptr(ALIAS))?;
            call(b, at::FREE)?;
            b.show("first")?;
            b.poke(ALIAS + 1, 0x3333)?;
            call(b, at::FREE)?;
            b.show("by alias")?;
            call(b, ALIAS)?;
            b.show("at alias")?;
            b.poke(at::FREE + 1, 0x4444)?;
            call(b, ALIAS)?;
            b.show("reverse")?;
            b.poke(pte(ALIAS), (at::FREE + 0x1000) | 7)?;
            b.asm.invlpg(byte_ptr(ALIAS))?;
            call(b, ALIAS)?;
            b.show("remapped")?;
            call(b, at::FREE)?;
            b.show("the other")?;
            // Back again, by loading CR3.
            b.poke(pte(ALIAS), at::FREE | 7)?;
            b.flush()?;
            call(b, ALIAS)?;
            b.show("back")?;
            // Across a page border whose second page changes.
            let border = ALIAS + 0x1000 - 2;
            b.poke(pte(ALIAS + 0x1000), (at::FREE + 0x5000) | 7)?;
            b.asm.invlpg(byte_ptr(ALIAS + 0x1000))?;
            function(b, border, 0x5555)?;
            call(b, border)?;
            b.show("border")?;
            b.poke(at::FREE + 0x5000, 0xc300_0000)?;
            call(b, border)?;
            b.show("border written")?;
            b.poke(at::FREE + 0x6000, 0xc300_0066)?;
            b.poke(pte(ALIAS + 0x1000), (at::FREE + 0x6000) | 7)?;
            b.asm.invlpg(byte_ptr(ALIAS + 0x1000))?;
            call(b, border)?;
            b.show("border remapped")
        },
        "first 00001111
         by alias 00003333
         at alias 00003333
         reverse 00004444
         remapped 00002222
         the other 00004444
         back 00004444
         border 00005555
         border written 00000055
         border remapped 00006655",
        &[],
    )
}

/// Code that becomes a fault: an instruction is replaced by UD2, then its page is taken away.
#[test]
fn replaced_by_faults() -> Outcome {
    check(
        |b| {
            function(b, at::FREE, 7)?;
            b.page_4k()?;
            call(b, at::FREE)?;
            b.show("works")?;
            b.poke(at::FREE, 0x0b0f)?;
            b.fault("ud2", |b| b.poke(tests::bare::runtime::EXPECTED, at::FREE), |b| call(b, at::FREE))?;
            b.poke(pte(at::FREE), 0)?;
            b.asm.invlpg(byte_ptr(at::FREE))?;
            b.fault("gone", |b| b.poke(tests::bare::runtime::EXPECTED, at::FREE), |b| call(b, at::FREE))?;
            b.poke(pte(at::FREE), at::FREE | 7)?;
            function(b, at::FREE, 9)?;
            call(b, at::FREE)?;
            b.show("works again")
        },
        "works 00000007
         ud2: #06 at +00000000 cs 0008 fl 00010002
         gone: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00800000
         works again 00000009",
        &[],
    )
}
