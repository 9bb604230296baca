//! A processor and its memory as a hostile guest may have arranged them: every state here can be reached by legal
//! instructions, though no sane system would go there.

use rand::Rng;
use rand::rngs::SmallRng;
use vmm::cpu::{CpuState, Segment, TableRegister, XsaveArea, attr, cr0, cr4, eflags, reg, seg};

use super::code::{Taste, Writer, handler};
use super::tables::{descriptors, gdt, idt, paging_tables, tss};
use super::values::{place, selector, tame, word};
use crate::generate::values;

/// A machine before it starts.
pub struct Machine {
    /// RAM in bytes.
    pub memory: u64,
    /// The processor.
    pub state: CpuState,
    /// What lies where in RAM.
    pub image: Vec<(u64, Vec<u8>)>,
    /// In words, for messages.
    pub what: String,
}

/// How addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paging {
    Off,
    Legacy,
    Pae,
}

/// What kind of code runs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flat32,
    Segmented32,
    Protected16,
    Real,
    V8086,
}

const EFER_NXE: u32 = 1 << 11;

/// Makes a machine; everything follows from `rng` and the writer's own seed.
pub fn machine(rng: &mut SmallRng, writer: &mut Writer, taste: Taste) -> Machine {
    let exact = taste == Taste::Exact;
    let kind = match rng.random_range(0..12) {
        0 if !exact => Kind::Real,
        1 if !exact => Kind::V8086,
        2 if !exact => Kind::Protected16,
        3 | 4 => Kind::Segmented32,
        _ => Kind::Flat32,
    };
    let paging = match rng.random_range(0..8) {
        _ if kind == Kind::Real => Paging::Off,
        0 | 1 => Paging::Off,
        2..=4 => Paging::Legacy,
        _ => Paging::Pae,
    };
    let cpl = match kind {
        Kind::Real => 0,
        Kind::V8086 => 3,
        _ => [0, 0, 0, 3, 3, 1, 2][rng.random_range(0..7)],
    };
    let memory = [2u64, 16, 16, 64][rng.random_range(0..4)] << 20;
    let mut state = CpuState::default();
    control(rng, &mut state, kind, paging);
    segments(rng, &mut state, kind, cpl, exact);
    registers(rng, &mut state, kind, exact);
    let mut image = vec![
        (place::GDT.into(), gdt(rng, exact)),
        (place::IDT.into(), idt(rng, exact)),
        (place::TSS.into(), tss(rng)),
        (place::LDT.into(), descriptors(rng, 64)),
    ];
    image.extend(paging_tables(rng, paging, memory, exact));
    for page in 0..place::CODE_PAGES {
        let mut code = writer.code(rng, 0x1000, taste);
        code.truncate(0x1000);
        image.push(((place::CODE + 0x1000 * page).into(), code));
    }
    for i in 0..place::HANDLER_COUNT {
        let has_error = matches!(i, 8 | 10..=14 | 17);
        image.push(((place::HANDLERS + place::HANDLER_SIZE * i).into(), handler(rng, has_error, true)));
    }
    let mut data = vec![0; 0x1_0000];
    rng.fill(&mut data[..]);
    image.push((place::DATA.into(), data));
    if paging == Paging::Pae {
        for (i, entry) in state.pdpte.iter_mut().enumerate() {
            let directory = image.iter().find(|(at, _)| *at == place::PDPT as u64).map(|(_, b)| &b[8 * i..8 * i + 8]);
            *entry = directory.and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        }
    }
    let what = format!("{kind:?}, paging {paging:?}, CPL {cpl}, {} MiB", memory >> 20);
    Machine { memory, state, image, what }
}

fn control(rng: &mut SmallRng, s: &mut CpuState, kind: Kind, paging: Paging) {
    let mut maybe = |bit: u32, one_in: u32| if rng.random_ratio(1, one_in) { bit } else { 0 };
    s.cr0 = cr0::ET | maybe(cr0::NE, 2) | maybe(cr0::MP, 2) | maybe(cr0::AM, 2);
    s.cr0 |= maybe(cr0::EM, 12) | maybe(cr0::TS, 8);
    if kind != Kind::Real {
        s.cr0 |= cr0::PE | maybe(cr0::WP, 2);
    }
    s.cr4 = maybe(cr4::TSD, 8) | maybe(cr4::DE, 2) | maybe(cr4::PSE, 2) | maybe(cr4::PGE, 2);
    s.cr4 |= maybe(cr4::UMIP, 4) | maybe(cr4::SMEP, 4) | maybe(cr4::OSXMMEXCPT, 2);
    if rng.random_ratio(5, 6) {
        s.cr4 |= cr4::OSFXSR;
    }
    if rng.random_ratio(1, 2) {
        s.cr4 |= cr4::OSXSAVE;
        s.xcr0 = [1, 3, 7][rng.random_range(0..3)];
    }
    match paging {
        Paging::Off => {}
        Paging::Legacy => {
            s.cr0 |= cr0::PG;
            s.cr3 = place::DIRECTORIES;
        }
        Paging::Pae => {
            s.cr0 |= cr0::PG;
            s.cr4 |= cr4::PAE;
            s.cr3 = place::PDPT;
            s.msr.efer = if rng.random_ratio(2, 3) { EFER_NXE } else { 0 };
        }
    }
    s.msr.sysenter_cs = selector(rng) as u32;
    (s.msr.sysenter_esp, s.msr.sysenter_eip) = (word(rng), word(rng));
    s.gdtr = TableRegister { base: place::GDT, limit: [0xfff, 0xfff, 0x7f, 0xffff][rng.random_range(0..4)] };
    s.idtr = TableRegister { base: place::IDT, limit: [0x7ff, 0x7ff, 0x7ff, 0x37][rng.random_range(0..4)] };
}

fn segments(rng: &mut SmallRng, s: &mut CpuState, kind: Kind, cpl: u8, exact: bool) {
    let rights = attr::P | attr::S | attr::RW | attr::ACCESSED | (cpl as u32) << attr::DPL_SHIFT;
    let wide = attr::DB | attr::G;
    s.cpl = cpl;
    let table = |index: u16| index << 3 | cpl as u16;
    let data_index = [2, 13, 15, 4][cpl as usize];
    let flat = |kind: u32, index| Segment {
        base: 0,
        limit: u32::MAX,
        attr: rights | wide | kind,
        selector: table(index),
        pad: 0,
    };
    match kind {
        Kind::Real | Kind::V8086 => {
            let cs = Segment::real((place::DATA >> 4) as u16);
            s.seg = std::array::from_fn(|_| Segment::real(if rng.random_ratio(1, 4) { rng.random() } else { 0x9000 }));
            s.seg[seg::CS] = cs;
            if kind == Kind::V8086 {
                s.seg.iter_mut().for_each(|x| x.attr = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DPL);
                s.eflags |= eflags::VM | if rng.random_ratio(1, 2) { eflags::IOPL } else { 0 };
            }
        }
        _ => {
            s.seg = [flat(0, data_index); 6];
            s.seg[seg::CS] = flat(attr::CODE, data_index - 1);
            let limited = match kind {
                Kind::Flat32 => 0,
                _ => rng.random_range(1..5),
            };
            for _ in 0..limited {
                let which = [seg::DS, seg::ES, seg::FS, seg::GS, seg::SS, seg::CS][rng.random_range(0..6)];
                if which == seg::CS && exact {
                    continue;
                }
                let x = &mut s.seg[which];
                x.base = if rng.random_ratio(1, 2) { word(rng) } else { rng.random_range(0..0x1000) };
                x.limit = match rng.random_range(0..3) {
                    0 => rng.random_range(0..1 << 20),
                    1 => word(rng) | 0xfff,
                    _ => u32::MAX,
                };
                if which != seg::CS && which != seg::SS && rng.random_ratio(1, 4) {
                    *x = Segment::null(0);
                } else if which != seg::CS && rng.random_ratio(1, 5) {
                    x.attr |= attr::EC;
                } else if which != seg::CS && rng.random_ratio(1, 6) {
                    x.attr &= !attr::DB;
                }
            }
            if kind == Kind::Protected16 {
                s.seg[seg::CS].attr &= !attr::DB;
            }
        }
    }
    let system =
        |kind: u32, base, index: u16| Segment { base, limit: 0x67, attr: attr::P | kind, selector: index << 3, pad: 0 };
    s.tr = system(if kind == Kind::Protected16 { 3 } else { 11 }, place::TSS, 5);
    s.tr.limit = [0x67, 0x67, 0x2067, 0xfff][rng.random_range(0..4)];
    s.ldtr = match rng.random_ratio(1, 3) {
        true => Segment::null(0),
        false => Segment { limit: 0x1ff, ..system(2, place::LDT, 6) },
    };
}

fn registers(rng: &mut SmallRng, s: &mut CpuState, kind: Kind, exact: bool) {
    s.gpr = std::array::from_fn(|_| if exact { tame(rng) } else { word(rng) });
    s.gpr[reg::ESP] = match rng.random_range(0..10) {
        _ if exact => place::STACK,
        0 => 0,
        1 => rng.random_range(0..8),
        2 => 0xffff_fffc,
        3 => word(rng),
        _ => place::STACK,
    };
    let from = if matches!(kind, Kind::Real | Kind::V8086) { 0 } else { place::CODE };
    s.eip = match rng.random_range(0..20) {
        0 if !exact => word(rng),
        1 if !exact => from + 0xfff,
        2 if from != 0 && !exact => 0xc000_0000 + from,
        3 if from != 0 => 0xc000_0000 + from,
        _ => from,
    };
    if kind == Kind::Real || kind == Kind::V8086 {
        s.eip &= 0xffff;
    }
    let wild =
        eflags::ARITH | eflags::DF | eflags::TF | eflags::NT | eflags::AC | eflags::RF | eflags::IOPL | eflags::ID;
    s.eflags |= eflags::FIXED | rng.random::<u32>() & eflags::ARITH;
    if rng.random_ratio(1, 6) && !exact {
        s.eflags |= rng.random::<u32>() & wild;
    }
    if rng.random_ratio(1, 2) && !exact {
        s.eflags |= eflags::IF;
    }
    if rng.random_ratio(1, 8) && !exact {
        s.dr = std::array::from_fn(|_| word(rng));
        s.dr7 = (rng.random::<u32>() & 0xffff_2bff) | 0x400;
    }
    if rng.random_ratio(1, 16) && !exact {
        s.a20_mask = !(1 << 20);
    }
    let area = values::xsave(rng);
    if let Ok(area) = area.as_slice().try_into() {
        s.xsave = XsaveArea(area);
        // As the engines keep it: every component explicit, and the promised mask of MXCSR.
        s.xsave.0[512..520].copy_from_slice(&7u64.to_le_bytes());
        s.xsave.0[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    }
}
