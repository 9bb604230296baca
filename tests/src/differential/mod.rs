//! Differential testing: the same case on this host's processor and in the interpreter, or in the interpreter and in the
//! translator, and every difference told.

mod board;
pub mod compare;
mod pair;
mod prepare;
mod subject;
mod tables;
mod watchdog;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub use board::Place;
use pair::{Engines, Verdict};
pub use subject::Subject;

use crate::generate::codes::Group;
use crate::generate::{Generated, Generator};
use crate::oracle::layout::{BATCH, PAGE, RESERVED};
use crate::oracle::{Native, Outcome};

/// What a run did.
#[derive(Default)]
pub struct Report {
    /// Cases compared, by group.
    pub cases: BTreeMap<Group, u64>,
    /// Cases that ended with a fault rather than after their last instruction.
    pub faults: u64,
    /// Cases not run because they would have reached the child's own memory.
    pub skipped: u64,
    /// Cases that differed.
    pub different: u64,
    /// Differences by kind (instruction and what differs): how many, and the first in full.
    pub kinds: BTreeMap<String, (u64, String)>,
}

/// What a case is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// One instruction.
    Single,
    /// One instruction with a byte of it changed.
    Damaged,
    /// This many instructions in a row.
    Block(usize),
    /// About this many instructions with jumps, calls and stack frames between them. Not for the oracle.
    Program(usize),
    /// About this many instructions, many times over, under a storm of interrupts.
    Loop(usize),
}

impl Kind {
    fn generate(self, generator: &mut Generator, supervisor: bool) -> Generated {
        match self {
            Kind::Single => generator.single(),
            Kind::Damaged => generator.damaged(),
            Kind::Block(length) => generator.block(length),
            Kind::Program(length) => generator.program(length, supervisor),
            Kind::Loop(length) => generator.looped(length),
        }
    }
}

/// Translator against interpreter.
pub struct Versus {
    engines: Engines,
    generator: Generator,
    kind: Kind,
    place: Place,
}

impl Versus {
    /// Compares cases of one kind from `generator`, in one place.
    pub fn new(generator: Generator, kind: Kind, place: Place, seed: u64) -> Self {
        let storm = matches!(kind, Kind::Loop(_));
        Self { engines: Engines::new(seed, place, storm), generator, kind, place }
    }

    /// Runs until `budget` is spent.
    pub fn run(&mut self, budget: Duration) -> Report {
        let end = Instant::now() + budget;
        let mut report = Report::default();
        while Instant::now() < end {
            let image = self.generator.image();
            for _ in 0..BATCH {
                self.one(&image, &mut report);
            }
        }
        report
    }

    fn one(&mut self, image: &[u8], report: &mut Report) {
        let case = self.kind.generate(&mut self.generator, self.place != Place::User);
        match self.engines.run(image, &case) {
            Verdict::Skipped => report.skipped += 1,
            Verdict::Same(fault) => {
                *report.cases.entry(case.group).or_default() += 1;
                report.faults += fault as u64;
            }
            Verdict::Different(differences) => {
                *report.cases.entry(case.group).or_default() += 1;
                report.add(&case, &differences);
            }
        }
    }

    /// Counters of the translator in use at the end.
    pub fn stats(&self) -> Vec<(String, u64)> {
        self.engines.stats()
    }
}

impl Report {
    fn add(&mut self, case: &Generated, differences: &[String]) {
        self.different += 1;
        let kind = compare::kind(case, differences);
        let tell = || format!("{}\n    {}", compare::describe(case), differences.join("\n    "));
        self.kinds.entry(kind).or_insert_with(|| (0, tell())).0 += 1;
    }
}

/// Both sides of the comparison.
pub struct Differential {
    native: Native,
    subject: Subject,
    generator: Generator,
    kind: Kind,
}

impl Differential {
    /// Compares cases of one kind from `generator`.
    pub fn new(generator: Generator, kind: Kind) -> std::io::Result<Self> {
        let mut native = Native::new()?;
        let mut subject = Subject::new();
        let page: [u8; PAGE as usize] = std::array::from_fn(|i| ((i * 37) >> 3) as u8);
        native.set_read_only(&page)?;
        subject.set_read_only(&page);
        Ok(Self { native, subject, generator, kind })
    }

    /// Runs batches until `budget` is spent.
    pub fn run(&mut self, budget: Duration) -> std::io::Result<Report> {
        let end = Instant::now() + budget;
        let mut report = Report::default();
        while Instant::now() < end {
            self.batch(&mut report)?;
        }
        Ok(report)
    }

    fn batch(&mut self, report: &mut Report) -> std::io::Result<()> {
        let image = self.generator.image();
        let mut run: Vec<(Generated, Result<Outcome, String>)> = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            let case = self.kind.generate(&mut self.generator, false);
            let ours = self.subject.run(&image, &case);
            if ours.as_ref().is_ok_and(|o| o.vector == 14 && RESERVED.contains(&o.cr2)) {
                report.skipped += 1;
                continue;
            }
            run.push((case, ours));
        }
        let cases: Vec<_> = run.iter().map(|(g, _)| g.case.clone()).collect();
        let native = self.native.run(&image, &cases)?;
        for ((case, ours), host) in run.iter().zip(native) {
            *report.cases.entry(case.group).or_default() += 1;
            self.judge(report, case, ours, host.as_ref());
        }
        Ok(())
    }

    fn judge(&self, report: &mut Report, case: &Generated, ours: &Result<Outcome, String>, host: Option<&Outcome>) {
        let differences = match (ours, host) {
            (Ok(ours), Some(host)) => {
                report.faults += (host.vector != 3) as u64;
                compare::differences(case, host, ours)
            }
            (Err(why), None) if why == subject::ENDLESS => vec![],
            (Err(why), _) => vec![format!("interpreter: {why}")],
            (_, None) => vec!["the host did not end".into()],
        };
        if !differences.is_empty() {
            report.add(case, &differences);
        }
    }
}
