//! What the translator emits is accepted; the same with one thing wrong is not.

mod corpus;
mod forbidden;
mod mutate;

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Instruction, Register};
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::{Subject, Violation, check, report};
use crate::cpu::{attr, cr0, cr4, seg};
use crate::engine::translate::block::{Origin, Point};
use crate::engine::translate::decode::{self, Trace};
use crate::engine::translate::emit::{Emitter, Transfer, by_chart, by_table};
use crate::engine::translate::mode::Mode;
use crate::engine::translate::tests::{CODE, machine};
use crate::engine::translate::trampoline::{self, Trampolines};
use crate::engine::translate::translate::{self, Translation};
use crate::mmu::FRAME_SIZE;

/// Where the common code of these tests would be.
const CACHE: u64 = 0x7f12_3400_0000;
/// Index of the first exit site.
const FIRST_SITE: u32 = 100;

/// The processor state that code is translated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    /// Ring 0 without paging.
    Flat,
    /// Ring 3 with paging, FS and GS with bases.
    User,
    /// Ring 0 with paging in the lower part of the address space: every access picks its window.
    LowKernel,
    /// No x87 or SSE.
    NoFloatingPoint,
}

const SETUPS: [Setup; 4] = [Setup::Flat, Setup::User, Setup::LowKernel, Setup::NoFloatingPoint];

/// A block as the translator made it, or changed.
#[derive(Clone)]
struct Emitted {
    code: Vec<u8>,
    start: u64,
    main: u32,
    origins: Vec<Origin>,
    sites: u32,
    fp: bool,
    trampolines: Trampolines,
}

impl Emitted {
    fn with_subject<R>(&self, f: impl FnOnce(&Subject<'_>) -> R) -> R {
        f(&Subject {
            code: &self.code,
            start: self.start,
            main: self.main,
            origins: &self.origins,
            sites: FIRST_SITE..FIRST_SITE + self.sites,
            restarts_load_fp: self.fp,
            trampolines: &self.trampolines,
            linked: &|_, _| false,
        })
    }

    fn check(&self) -> Result<(), Violation> {
        self.with_subject(check)
    }

    fn report(&self, violation: Violation) -> String {
        self.with_subject(|s| report(s, violation))
    }

    fn instructions(&self) -> Vec<Instruction> {
        Decoder::with_ip(64, &self.code, self.start, DecoderOptions::NONE).iter().collect()
    }
}

/// Translates `program` in `setup`; at most the first block of it.
fn emit(program: &[u8], setup: Setup) -> Emitted {
    let mut v = machine(program);
    let s = &mut v.state;
    s.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
    s.xcr0 = 7;
    match setup {
        Setup::Flat => {}
        Setup::User => {
            s.cr0 |= cr0::PG;
            s.cpl = 3;
            s.seg.iter_mut().for_each(|seg| seg.attr |= attr::DPL);
            s.seg[seg::FS].base = 0xb7f0_0000;
            s.seg[seg::GS].base = 0xffff_f000;
        }
        Setup::LowKernel => s.cr0 |= cr0::PG,
        Setup::NoFloatingPoint => s.cr0 |= cr0::TS,
    }
    let mode = Mode::of(&v).unwrap();
    let (mut page, mut trace, mut t) = ([0; FRAME_SIZE], Trace::default(), Translation::default());
    assert!(v.mmu.ram.read(CODE as u64, &mut page));
    decode::decode(&v, CODE, &page, |_| false, &mut trace);
    let (common, trampolines) = trampoline::assemble(CACHE).unwrap();
    let mut emitter = Emitter::new((CACHE + common.len() as u64).next_multiple_of(32));
    let environment = translate::Environment {
        mode,
        trampolines: &trampolines,
        dynamic: &Default::default(),
        interpreted: &Default::default(),
        faulting: &Default::default(),
        varied: &Default::default(),
        wrapping: &Default::default(),
        frame: CODE as u64,
        fixed: setup == Setup::Flat,
        checked: None,
        first_site: FIRST_SITE,
    };
    translate::translate(&mut emitter, &trace, &environment, &mut t);
    Emitted {
        code: emitter.code,
        start: emitter.origin,
        main: t.main,
        origins: t.origins,
        sites: t.exits.len() as u32,
        fp: t.fp,
        trampolines,
    }
}

#[track_caller]
fn accepted(program: &[u8], setup: Setup) -> Emitted {
    let block = emit(program, setup);
    if let Err(violation) = block.check() {
        panic!("{setup:?}, guest code {program:02x?}: {}", block.report(violation));
    }
    block
}

#[test]
fn snippets_are_accepted() {
    for program in [corpus::snippets(), corpus::shadows()].concat() {
        for setup in SETUPS {
            accepted(&program, setup);
        }
    }
}

/// Every instruction of the code table, with random operands and some prefixes, alone in its block.
#[test]
fn the_code_table_is_accepted() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut translated = 0;
    for code in corpus::codes() {
        let mut whole = false;
        for _ in 0..8 {
            let Some(insn) = corpus::instruction(code, &mut rng) else { continue };
            let after = insn.len() as u32;
            let program = [&insn[..], &[0xc3]].concat();
            for setup in SETUPS {
                let block = accepted(&program, setup);
                whole |= block.origins.iter().any(|o| o.eip == CODE + after);
            }
        }
        translated += whole as u32;
    }
    assert!(translated > 800, "only {translated} instructions were translated");
}

#[test]
fn random_blocks_are_accepted() {
    let mut rng = SmallRng::seed_from_u64(2);
    let codes: Vec<_> = corpus::codes().collect();
    for _ in 0..3000 {
        let program = corpus::block(&codes, &mut rng);
        accepted(&program, SETUPS[rng.random_range(0..SETUPS.len())]);
    }
}

/// Blocks to spoil: all snippets, and some random ones.
fn specimens() -> Vec<Emitted> {
    let mut rng = SmallRng::seed_from_u64(3);
    let codes: Vec<_> = corpus::codes().collect();
    let mut programs = corpus::snippets();
    programs.extend((0..60).map(|_| corpus::block(&codes, &mut rng)));
    let each = |p: &Vec<u8>| SETUPS.map(|setup| accepted(p, setup));
    programs.iter().flat_map(each).collect()
}

/// Taking a block apart and putting it together again, or putting `nop` in, changes nothing.
#[test]
fn rebuilt_blocks_are_accepted() {
    for block in specimens() {
        let instructions = block.instructions();
        for i in 0..instructions.len() {
            let rebuilt = mutate::insert(&block, &instructions, i, &[0x90]).unwrap();
            if let Err(violation) = rebuilt.check() {
                panic!("{}", rebuilt.report(violation));
            }
        }
    }
}

#[track_caller]
fn rejected(mutant: &Emitted, name: &str) {
    if mutant.check().is_ok() {
        let shown = mutant.report(Violation { offset: u32::MAX, rule: "none was found broken" });
        panic!("mutant '{name}' was accepted: {shown}");
    }
}

/// Instructions that no block may hold, put in anywhere.
#[test]
fn forbidden_instructions_are_rejected() {
    let mut rng = SmallRng::seed_from_u64(4);
    let forbidden = forbidden::anywhere();
    let mut mutants = 0;
    for block in specimens() {
        let instructions = block.instructions();
        for (name, bytes) in &forbidden {
            // What is right somewhere is so twice, one after the other.
            let same = |i: usize| block.code[(instructions[i].ip() - block.start) as usize..].starts_with(bytes);
            let other = |i: &usize| !same(*i) && (*i == 0 || !same(*i - 1));
            let Some(at) = (0..instructions.len()).filter(other).choose(&mut rng) else { continue };
            let Some(mutant) = mutate::insert(&block, &instructions, at, bytes) else { continue };
            rejected(&mutant, name);
            mutants += 1;
        }
    }
    assert!(mutants > 10_000, "only {mutants} mutants");
}

/// A return needs a guest EIP in r8d, of which nothing is known where an instruction can be started again.
#[test]
fn returns_to_nowhere_are_rejected() {
    let mut mutants = 0;
    for block in specimens() {
        let instructions = block.instructions();
        let known = |i: &Instruction| block.origins.iter().find(|o| o.offset as u64 == i.ip() - block.start);
        let starts = |i: &Instruction| known(i).is_some_and(|o| matches!(o.point, Point::Start | Point::Shadowed));
        for at in (0..instructions.len()).filter(|at| starts(&instructions[*at])) {
            if let Some(mutant) = mutate::insert(&block, &instructions, at, forbidden::RETURN) {
                rejected(&mutant, "return");
                mutants += 1;
            }
        }
    }
    assert!(mutants > 1000, "only {mutants} mutants");
}

/// One instruction of a block, changed in each way that breaks a rule.
#[test]
fn spoilt_instructions_are_rejected() {
    let mut seen = std::collections::BTreeMap::<&str, u32>::new();
    for block in specimens() {
        for (name, mutant) in mutate::spoilt(&block) {
            rejected(&mutant, name);
            *seen.entry(name).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), mutate::WAYS, "{seen:?}");
    assert!(seen.values().all(|n| *n >= 10), "{seen:?}");
}

/// The common code of IRET reads what the block has read before, so that it cannot fault.
#[test]
fn frames_are_tried_at_both_ends() {
    let block = accepted(&corpus::interrupt_return(), Setup::Flat);
    let mutants = mutate::frames(&block);
    assert_eq!(mutants.len(), 12);
    mutants.iter().for_each(|(name, mutant)| rejected(mutant, name));
}

/// Bytes that do not decode, and ones that belong to no instruction.
#[test]
fn broken_bytes_are_rejected() {
    for block in specimens() {
        let mut cut = block.clone();
        cut.code.pop();
        rejected(&cut, "cut short");
        let mut longer = block.clone();
        longer.code.push(0x90);
        rejected(&longer, "runs off the end");
        longer.code.pop();
        longer.code.push(0x06);
        rejected(&longer, "not an instruction");
        let mut moved = block.clone();
        moved.main = 1;
        rejected(&moved, "entry inside an instruction");
    }
}

/// Starting again in the middle needs x87 and SSE state loaded as much as the entry does.
#[test]
fn resuming_without_floating_point_is_rejected() {
    let program = corpus::floating_point();
    let mut block = accepted(&program, Setup::User);
    assert!(block.fp);
    block.fp = false;
    rejected(&block, "resumed without x87 and SSE state");
}

/// A branch may go to the main entry of a live block, and nowhere else outside its own.
#[test]
fn links_are_asked_for() {
    let mut a = CodeAssembler::new(32).unwrap();
    let mut head = a.create_label();
    a.set_label(&mut head).unwrap();
    a.dec(eax).unwrap();
    a.jne(head).unwrap();
    a.ret().unwrap();
    let mut block = accepted(&a.assemble(CODE as u64).unwrap(), Setup::Flat);
    let at = block.code.windows(2).position(|w| w == [0x0f, 0x85]).unwrap();
    let other = CACHE + 0x10_0000;
    let displacement = (other - (block.start + at as u64 + 6)) as u32;
    block.code[at + 2..at + 6].copy_from_slice(&displacement.to_le_bytes());
    rejected(&block, "wild branch");
    block.with_subject(|s| {
        let live = Subject { linked: &|to, _| to == other, sites: s.sites.clone(), ..*s };
        assert_eq!(check(&live), Ok(()));
        let needs_fp = Subject { linked: &|to, fp| to == other && fp, sites: s.sites.clone(), ..*s };
        assert!(check(&needs_fp).is_err(), "a branch into a block whose x87 and SSE state is not loaded");
    });
}

/// An indirect branch may go by the chart: by the EIP in r8d, and exactly there.
#[test]
fn the_chart_is_gone_by_as_it_is() {
    for (transfer, code) in [(Transfer::Call, &[0xff, 0xd7, 0xc3][..]), (Transfer::Jump, &[0xff, 0xe7])] {
        let mut block = accepted(code, Setup::User);
        let table = by_table(transfer);
        let at = block.code.windows(table.len()).position(|w| w == table).unwrap();
        block.code[at..at + table.len()].copy_from_slice(&by_chart(transfer));
        if let Err(violation) = block.check() {
            panic!("{}", block.report(violation));
        }
        let instructions = block.instructions();
        let branch =
            instructions.iter().position(|i| i.memory_base() == Register::R15 && i.memory_index() == Register::R8);
        let (at, insn) = (branch.unwrap(), instructions[branch.unwrap()]);
        for mutant in mutate::off_the_chart(&block, &instructions, at, &insn) {
            rejected(&mutant, "beside the chart");
        }
        let unknown = mutate::insert(&block, &instructions, at, &[0x4d, 0x89, 0xf8]).unwrap();
        rejected(&unknown, "something of the host's on the chart");
    }
}

/// What only reads goes without a prefix; what is stored through keeps it.
#[test]
fn prefixes_are_where_they_pay() {
    let prefixed = |build: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        let mut a = CodeAssembler::new(32).unwrap();
        build(&mut a).unwrap();
        a.ret().unwrap();
        let block = accepted(&a.assemble(CODE as u64).unwrap(), Setup::User);
        block.instructions().iter().filter(|i| i.segment_prefix() == Register::GS).count()
    };
    assert_eq!(prefixed(&|a| a.mov(eax, dword_ptr(ebx + 4))), 0);
    assert_eq!(prefixed(&|a| a.mov(dword_ptr(ebx + 4), eax)), 1);
    assert_eq!(prefixed(&|a| a.mov(dword_ptr(ebx * 4 + 0x80_0000), eax)), 0);
    assert_eq!(prefixed(&|a| a.mov(eax, dword_ptr(ebp - 4))), 1);
    assert_eq!(prefixed(&|a| a.mov(ah, byte_ptr(ebx))), 1);
    assert_eq!(prefixed(&|a| a.mov(eax, dword_ptr(ebx + 0xc000_0000u32))), 1);
    // Read and stored through, then another pointer.
    let both = |a: &mut CodeAssembler| {
        a.mov(eax, dword_ptr(ebx))?;
        a.add(ebx, 4)?;
        a.mov(dword_ptr(ebx), eax)?;
        a.mov(ebx, eax)?;
        a.mov(eax, dword_ptr(ebx))
    };
    assert_eq!(prefixed(&both), 2);
}
