//! Attacks with a purpose: guests that try to use up the host's mappings, its memory or its time.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vmm::cpu::{CpuState, Segment, attr, cr0, cr4, reg, seg};

use super::machine::Machine;
use super::values::place::{CODE, DATA, GDT, STACK};

const PRESENT: u32 = 0x67;
const LARGE: u32 = 0xe7;
/// Page directories and tables of these guests, from here on.
const TABLES: u32 = 0x40_0000;
const MIB: u64 = 1 << 20;

type Emit = Result<(), IcedError>;

/// An attack: its name and its machine.
pub type Attack = (&'static str, fn() -> Result<Machine, IcedError>);

/// All of them.
pub const ATTACKS: &[Attack] = &[
    ("scattered pages", scattered),
    ("scattered pages in the kernel half", scattered_high),
    ("every other page unmapped", alternating),
    ("large pages on one frame, many address spaces", aliases),
    ("aliases that become code", alias_code),
    ("thousands of address spaces", address_spaces),
    ("many modes in many address spaces", modes),
    ("code in every page of RAM", flood),
    ("one page of code at every address", everywhere),
    ("code that rewrites itself", rewrite),
    ("code that is rewritten page by page", rewrite_pages),
    ("kernel pages that move", moving),
    ("paging reconfigured all the time", reconfigure),
    ("strings over everything", strings),
    ("3 GiB, touched", three_gib),
    ("5 GiB by PAE, touched", five_gib),
    ("calls without returns", recursion),
    ("serial output without end", serial),
    ("A20 back and forth", a20),
    ("fw_cfg DMA on code", fw_cfg),
];

/// A flat 32-bit machine in ring 0 whose program is written by `program`.
fn flat(memory: u64, program: impl FnOnce(&mut CodeAssembler) -> Emit) -> Result<Machine, IcedError> {
    let mut state = CpuState::default();
    let rights = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
    let segment = |kind, selector| Segment { base: 0, limit: u32::MAX, attr: rights | kind, selector, pad: 0 };
    state.seg = [segment(0, 0x10); 6];
    state.seg[seg::CS] = segment(attr::CODE, 8);
    state.gdtr.base = GDT;
    state.idtr.limit = 0;
    state.cr0 = cr0::PE | cr0::ET | cr0::NE;
    state.gpr[reg::ESP] = STACK;
    state.eip = CODE;
    let mut a = CodeAssembler::new(32)?;
    program(&mut a)?;
    let image = vec![(CODE.into(), a.assemble(CODE.into())?)];
    Ok(Machine { memory, state, image, what: String::new() })
}

impl Machine {
    fn paged(mut self, directory: u32, features: u32) -> Self {
        self.state.cr3 = directory;
        self.state.cr4 = features;
        self.state.cr0 |= cr0::PG | cr0::WP;
        self
    }

    fn words(&mut self, at: u32, words: impl IntoIterator<Item = u32>) {
        self.image.push((at.into(), words.into_iter().flat_map(u32::to_le_bytes).collect()));
    }

    /// A directory that maps the first 4 MiB to themselves and, from directory entry `from` on, `count` tables that
    /// begin a page after it, whose entries `entry` gives by page number.
    fn tables(&mut self, from: u32, count: u32, entry: impl Fn(u32) -> u32) {
        let mut directory = vec![0; 1024];
        directory[0] = LARGE & !0x100;
        directory[0x300] = LARGE & !0x100;
        for i in 0..count {
            directory[(from + i) as usize] = (TABLES + 0x1000 * (i + 1)) | PRESENT;
        }
        self.words(TABLES, directory);
        self.words(TABLES + 0x1000, (0..count * 1024).map(entry));
    }
}

/// Touches `count` pages from `from` on, again and again.
fn touch(from: u32, count: u32) -> impl FnOnce(&mut CodeAssembler) -> Emit {
    move |a| {
        let mut top = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(edi, from)?;
        a.mov(ecx, count)?;
        a.set_label(&mut next)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, 0x1000)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.jmp(top)
    }
}

/// A frame for page `i` that is nowhere near that of page `i + 1`.
fn far(i: u32) -> u32 {
    (0x1000 + i.wrapping_mul(2741) % 0x2000) << 12 | PRESENT
}

fn scattered() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, touch(0x1000_0000, 130_000))?;
    m.tables(0x40, 128, far);
    Ok(m.paged(TABLES, cr4::PSE))
}

fn scattered_high() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, touch(0xc800_0000, 130_000))?;
    m.tables(0x320, 128, far);
    m.state.eip += 0xc000_0000;
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Maps runs, then unmaps every other page with INVLPG, then maps them again.
fn alternating() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for round in 0..3 {
            let mut next = a.create_label();
            let mut skip = a.create_label();
            a.mov(edi, 0x1000_0000)?;
            a.mov(esi, TABLES + 0x1000)?;
            a.mov(ecx, 60_000)?;
            a.set_label(&mut next)?;
            match round {
                0 => {
                    a.or(dword_ptr(esi), 1)?;
                    a.inc(dword_ptr(edi))?;
                    a.jmp(skip)?;
                }
                _ => {
                    a.test(ecx, 1)?;
                    a.je(skip)?;
                    a.and(dword_ptr(esi), !1)?;
                    a.invlpg(ptr(edi))?;
                }
            }
            a.set_label(&mut skip)?;
            a.nop()?;
            a.add(esi, 4)?;
            a.add(edi, 0x1000)?;
            a.dec(ecx)?;
            a.jne(next)?;
        }
        a.jmp(top)
    })?;
    m.tables(0x40, 60, |i| (0x1000 + i % 0x2000) << 12 | PRESENT);
    // The tables themselves are reached by a large page.
    let directory = &mut m.image[1].1;
    directory[4..8].copy_from_slice(&(0x40_0000 | LARGE).to_le_bytes());
    Ok(m.paged(TABLES, cr4::PSE))
}

fn aliases() -> Result<Machine, IcedError> {
    const SPACES: u32 = 256;
    let mut m = flat(16 * MIB, |a| {
        let mut top = a.create_label();
        let mut space = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, TABLES)?;
        a.set_label(&mut space)?;
        a.mov(cr3, eax)?;
        a.mov(edi, 0x40_0000)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut next)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, 0x40_0000)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.add(eax, 0x1000)?;
        a.cmp(eax, TABLES + 0x1000 * SPACES)?;
        a.jb(space)?;
        a.jmp(top)
    })?;
    for space in 0..SPACES {
        let entry = |i| if i % 768 == 0 { LARGE } else { 0x80_0000 | LARGE };
        m.words(TABLES + 0x1000 * space, (0..1024).map(entry));
    }
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Writes through 20,000 aliases of one frame, then executes it, again and again.
fn alias_code() -> Result<Machine, IcedError> {
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

fn address_spaces() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, |a| {
        let mut top = a.create_label();
        let mut space = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, TABLES)?;
        a.set_label(&mut space)?;
        a.mov(cr3, eax)?;
        a.inc(dword_ptr(DATA))?;
        a.add(eax, 0x1000)?;
        a.cmp(eax, TABLES + (0x1000 << 12))?;
        a.jb(space)?;
        a.jmp(top)
    })?;
    for space in 0..0x1000 {
        m.words(TABLES + 0x1000 * space, [LARGE]);
    }
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Every combination of flat, based and limited data segments, and of x87 and SSE switched on and off, in many spaces.
fn modes() -> Result<Machine, IcedError> {
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
fn flood() -> Result<Machine, IcedError> {
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
fn everywhere() -> Result<Machine, IcedError> {
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

fn rewrite() -> Result<Machine, IcedError> {
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
fn rewrite_pages() -> Result<Machine, IcedError> {
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

/// A page of the kernel half whose frame changes before each access.
fn moving() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, |a| {
        let mut top = a.create_label();
        a.mov(edi, 0xc800_0000u32)?;
        a.set_label(&mut top)?;
        a.add(dword_ptr(0xc000_0000u32 + TABLES + 0x1000), 0x1000)?;
        a.and(dword_ptr(0xc000_0000u32 + TABLES + 0x1000), 0x1ff_ffff)?;
        a.or(dword_ptr(0xc000_0000u32 + TABLES + 0x1000), 0x200_0000)?;
        a.invlpg(ptr(edi))?;
        a.inc(dword_ptr(edi))?;
        a.jmp(top)
    })?;
    m.state.eip += 0xc000_0000;
    m.tables(0x320, 1, |i| (0x2000 + i) << 12 | PRESENT);
    let directory = &mut m.image[1].1;
    directory[4 * 0x301..4 * 0x302].copy_from_slice(&(0x40_0000 | LARGE).to_le_bytes());
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Touches much, then changes CR4.PGE, which empties every window.
fn reconfigure() -> Result<Machine, IcedError> {
    let mut m = flat(64 * MIB, |a| {
        let mut top = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(edi, 0x1000_0000)?;
        a.mov(ecx, 200)?;
        a.set_label(&mut next)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, 0x40_0000)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.mov(eax, cr4)?;
        a.xor(eax, cr4::PGE as i32)?;
        a.mov(cr4, eax)?;
        a.jmp(top)
    })?;
    m.words(TABLES, (0..1024u32).map(|i| if i == 0 { LARGE } else { (2 + i % 14) << 22 | LARGE }));
    Ok(m.paged(TABLES, cr4::PSE))
}

/// Repeated strings with the largest count, forward and backward, over the whole address space.
fn strings() -> Result<Machine, IcedError> {
    let mut m = flat(16 * MIB, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.cld()?;
        a.xor(edi, edi)?;
        a.mov(ecx, u32::MAX)?;
        a.db(&[0xf2, 0xaf])?;
        a.mov(esi, 0xffff_ff01u32)?;
        a.mov(ecx, 0x2000)?;
        a.db(&[0xf3, 0xac])?;
        a.std()?;
        a.mov(edi, 0x1000)?;
        a.mov(ecx, u32::MAX)?;
        a.db(&[0xf3, 0xae])?;
        a.mov(esi, 0x10_0000)?;
        a.mov(edi, 0xf000_0003u32)?;
        a.mov(ecx, u32::MAX)?;
        a.db(&[0xf3, 0xa7])?;
        a.mov(edi, u32::MAX)?;
        a.mov(ecx, u32::MAX)?;
        a.db(&[0xf3, 0xab])?;
        a.jmp(top)
    })?;
    m.words(TABLES, (0..1024u32).map(|i| if i == 0 { LARGE } else { 0xc0_0000 | LARGE }));
    Ok(m.paged(TABLES, cr4::PSE))
}

fn three_gib() -> Result<Machine, IcedError> {
    // A page in each 256 KiB; the legacy area and the program are left alone.
    flat(3072 * MIB, |a| {
        let mut top = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(edi, 0x20_0000)?;
        a.set_label(&mut next)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, 0x4_1000)?;
        a.cmp(edi, 0xbff0_0000u32)?;
        a.jb(next)?;
        a.jmp(top)
    })
}

fn five_gib() -> Result<Machine, IcedError> {
    const DIRECTORIES: u32 = TABLES;
    let mut m = flat(5120 * MIB, |a| {
        let mut top = a.create_label();
        let mut next = a.create_label();
        a.set_label(&mut top)?;
        a.mov(edi, 0x60_0000)?;
        a.set_label(&mut next)?;
        a.inc(dword_ptr(edi))?;
        a.add(edi, 0x4_1000)?;
        a.cmp(edi, 0xfff0_0000u32)?;
        a.jb(next)?;
        a.jmp(top)
    })?;
    // 2 MiB pages: the first two to themselves, all others from 4 GiB on, the last ones past the end of RAM.
    let entry = |i: u32| if i < 2 { (i << 21 | LARGE, 0) } else { ((i - 2) << 21 | LARGE, 1) };
    m.words(DIRECTORIES, (0..2048).map(entry).flat_map(|(low, high)| [low, high]));
    for i in 0..4 {
        m.state.pdpte[i as usize] = (DIRECTORIES + 0x1000 * i) as u64 | 1;
    }
    Ok(m.paged(0, cr4::PAE))
}

fn recursion() -> Result<Machine, IcedError> {
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

fn serial() -> Result<Machine, IcedError> {
    flat(16 * MIB, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(edx, 0x3f8)?;
        a.mov(ecx, u32::MAX)?;
        a.xor(esi, esi)?;
        a.db(&[0xf3, 0x6e])?;
        a.jmp(top)
    })
}

fn a20() -> Result<Machine, IcedError> {
    let mut m = flat(16 * MIB, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(eax, 2)?;
        a.and(eax, 2)?;
        a.out(0x92, al)?;
        a.inc(dword_ptr(0x31_0000))?;
        a.jmp(top)
    })?;
    // Code where bit 20 makes no difference.
    (m.image[0].0, m.state.eip) = (0x20_0000, 0x20_0000);
    Ok(m)
}

/// fw_cfg's DMA reads its signature over the page after the program's, which the program then calls.
fn fw_cfg() -> Result<Machine, IcedError> {
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
