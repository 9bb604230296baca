//! Attacks with a purpose: guests that try to use up the host's mappings, its memory or its time.

mod code;

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
    ("aliases that become code", code::alias_code),
    ("thousands of address spaces", address_spaces),
    ("many modes in many address spaces", code::modes),
    ("code in every page of RAM", code::flood),
    ("one page of code at every address", code::everywhere),
    ("code that rewrites itself", code::rewrite),
    ("code that is rewritten page by page", code::rewrite_pages),
    ("kernel pages that move", moving),
    ("paging reconfigured all the time", reconfigure),
    ("strings over everything", strings),
    ("3 GiB, touched", three_gib),
    ("5 GiB by PAE, touched", five_gib),
    ("calls without returns", code::recursion),
    ("serial output without end", serial),
    ("A20 back and forth", a20),
    ("fw_cfg DMA on code", code::fw_cfg),
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
