//! Attacks by code: what is executed is everywhere, never the same, or comes from nowhere.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::*;

/// Writes through 20,000 aliases of one frame, then executes it, again and again.
pub(super) fn alias_code() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, |a| {
        let mut top = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(edi, 0x1000_0000)?;
        a.mov(ecx, 20_000)?;
        a.set_label(&mut next)?;
        a.mov(byte_ptr(edi), 0xc3)?;
        a.add(edi, 0x1000)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.mov(eax, 0x1000_0000)?;
        a.call(eax)?;
        a.jmp(top)
    })?;
    m.tables(0x40, 24, |_| 0x200_0000 | PRESENT);
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Every combination of flat, based and limited data segments, and of x87 and SSE switched on and off, in many spaces.
pub(super) fn modes() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(ebp)?;
        for segment in [ds, es, fs, gs] {
            a.mov(eax, ebp)?;
            a.xor(edx, edx)?;
            a.mov(ebx, [3, 9, 27, 81][[ds, es, fs, gs].iter().position(|s| *s == segment).unwrap_or(0)])?;
            a.div(ebx)?;
            a.mov(eax, edx)?;
            a.xor(edx, edx)?;
            a.mov(ebx, 3)?;
            a.div(ebx)?;
            a.lea(eax, ptr(edx * 8 + 0x10))?;
            a.mov(segment, eax)?;
        }
        a.mov(eax, ebp)?;
        a.and(eax, 8)?;
        a.or(eax, (cr0::PE | cr0::ET | cr0::NE | cr0::PG | cr0::WP) as i32)?;
        a.mov(cr0, eax)?;
        a.mov(eax, ebp)?;
        a.and(eax, 0xff)?;
        a.shl(eax, 12)?;
        a.add(eax, TABLES as i32)?;
        a.mov(cr3, eax)?;
        a.push(edi)?;
        a.pop(edi)?;
        a.jmp(top)
    })?;
    m.words(GDT, [0, 0, 0xffff, 0xcf_9b00, 0xffff, 0xcf_9300, 0x1000_ffff, 0xcf_9300, 0xffff, 0x4f_9300]);
    m.state.gdtr.limit = 0x27;
    for space in 0..0x100 {
        m.words(TABLES + 0x1000 * space, [LARGE]);
    }
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Each page of RAM holds a jump to the next.
pub(super) fn flood() -> Result<Machine, IcedError> {
    const PAGES: u32 = 30_000;
    let mut m = flat(128 * MIB, |a| {
        a.mov(eax, TABLES)?;
        a.jmp(eax)
    })?;
    for page in 0..PAGES {
        let at = TABLES + 0x1000 * page;
        let to = if page + 1 == PAGES { TABLES } else { at + 0x1000 };
        let mut code = vec![0x40, 0xe9];
        code.extend(to.wrapping_sub(at + 6).to_le_bytes());
        m.image.push((at.into(), code));
    }
    Ok(m)
}

/// One page of code mapped at every address from 256 MiB on: each block goes to the next one a page further.
pub(super) fn everywhere() -> Result<Machine, IcedError> {
    let mut m = flat(16 * MIB, |a| {
        a.mov(eax, 0x1000_0000)?;
        a.jmp(eax)
    })?;
    let mut directory = vec![0; 1024];
    directory[0] = LARGE;
    (0..512).for_each(|i| directory[0x40 + i] = (TABLES + 0x1000 * (1 + i as u32)) | PRESENT);
    m.words(TABLES, directory);
    // inc eax; jmp to eight bytes further in the next page.
    m.image.push((0x20_0000, [0x40, 0xe9, 2, 0x10, 0, 0, 0x90, 0x90].repeat(0x200)));
    // The last pages go back to the first: mov eax, 0x10000000; jmp eax.
    m.image.push((0x20_1000, [0xb8, 0, 0, 0, 0x10, 0xff, 0xe0, 0x90].repeat(0x200)));
    let frame = |i| if i < 511 * 1024 { 0x20_0000 } else { 0x20_1000 };
    m.words(TABLES + 0x1000, (0..512 * 1024).map(|i| frame(i) | PRESENT));
    Ok(m.paged(TABLES, cr4::PSE))
}

pub(super) fn rewrite() -> Result<Machine, IcedError> {
    flat(16 * MIB, |a| {
        let mut top = a.create_label();
        let mut site = a.create_label();
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.call(site)?;
        a.set_label(&mut site)?;
        a.pop(edi)?;
        // The immediate of the MOV that follows: one byte of POP, three of this, one of MOV.
        a.mov(dword_ptr(edi + 5), eax)?;
        a.mov(ebx, 0x1234_5678u32)?;
        a.jmp(top)
    })
}

/// Fills 1,000 pages with returns and calls into each, with other bytes each time.
pub(super) fn rewrite_pages() -> Result<Machine, IcedError> {
    flat(16 * MIB, |a| {
        let mut top = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(ebx, TABLES)?;
        a.inc(ebp)?;
        a.set_label(&mut next)?;
        a.mov(edi, ebx)?;
        a.mov(dword_ptr(edi), 0xb8)?;
        a.mov(dword_ptr(edi + 1), ebp)?;
        a.mov(byte_ptr(edi + 5), 0xc3)?;
        a.call(edi)?;
        a.add(ebx, 0x1004)?;
        a.cmp(ebx, TABLES + 0x1004 * 1000)?;
        a.jb(next)?;
        a.jmp(top)
    })
}

pub(super) fn recursion() -> Result<Machine, IcedError> {
    flat(16 * MIB, |a| {
        let mut top = a.create_label();
        let mut deeper = a.create_label();
        let mut back = a.create_label();
        a.set_label(&mut top)?;
        a.mov(esp, 0xf0_0000)?;
        a.mov(ecx, 100_000)?;
        a.set_label(&mut deeper)?;
        a.dec(ecx)?;
        a.je(back)?;
        a.call(deeper)?;
        a.set_label(&mut back)?;
        a.mov(ecx, 1)?;
        a.ret()
    })
}

/// fw_cfg's DMA reads its signature over the page after the program's, which the program then calls.
pub(super) fn fw_cfg() -> Result<Machine, IcedError> {
    let mut m = flat(16 * MIB, |a| {
        let mut top = a.create_label();
        a.mov(byte_ptr(CODE + 0x1800), 0xc3)?;
        a.set_label(&mut top)?;
        a.mov(eax, CODE + 0x1800)?;
        a.call(eax)?;
        // Select item 0 and read 64 bytes of it: big-endian control, length, address.
        a.mov(dword_ptr(DATA), 0x0a00_0000)?;
        a.mov(dword_ptr(DATA + 4), 0x4000_0000)?;
        a.mov(dword_ptr(DATA + 8), 0)?;
        a.mov(dword_ptr(DATA + 12), (CODE + 0x1000).swap_bytes())?;
        a.xor(eax, eax)?;
        a.mov(edx, 0x514)?;
        a.out(dx, eax)?;
        a.mov(eax, DATA.swap_bytes())?;
        a.mov(edx, 0x518)?;
        a.out(dx, eax)?;
        a.jmp(top)
    })?;
    m.image.push(((CODE + 0x1000).into(), vec![0x90; 64]));
    Ok(m)
}
