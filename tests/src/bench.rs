//! Measuring native, Bulkhead and QEMU side by side: what is run, where, and what the numbers mean.
//!
//! Every work is a line of `tests/scripts/bench.sh`, run by the same i386 binaries everywhere. `seat` gives each
//! contender a shell that answers with nanoseconds; `report` makes ratios of medians and prints them with the goals.
//! Disks have contenders of their own (`disk`), and so has what only Bulkhead does: `recovery` kills a disk's process,
//! `start` times the way to the first guest instruction.
//!
//! Python has two rows. `python-start` imports modules and runs each part of a program for the first time: a tenth of a
//! second natively, most of which a translator spends on code that it has not seen. `python` is the same program on
//! enough data to take more than a second, so that the speed of translated code counts. Only the latter is in the mean.

pub mod disk;
pub mod recovery;
pub mod report;
pub mod seat;
pub mod start;

/// How a work's ratios are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// User code: part of the geometric mean.
    User,
    /// Streaming memory: reported apart.
    Stream,
    /// Programs so short that most of their code runs for the first time: reported apart.
    Start,
    /// One system operation.
    System,
    /// Page-table churn.
    Churn,
}

impl Group {
    /// What this group is to reach, as printed beside its rows.
    pub fn goal(self) -> &'static str {
        match self {
            Self::User => "mean: at most 1.15 x native, 5 x faster than qemu",
            Self::Stream => "reported apart",
            Self::Start => "reported apart: code that runs for the first time",
            Self::System => "3 x faster than qemu, at most 2.5 x native",
            Self::Churn => "1.5 x faster than qemu",
        }
    }
}

/// User programs, by their names in `bench.sh`.
pub const PROGRAMS: &[(&str, Group)] = &[
    ("shell", Group::User),
    ("sha256sum", Group::User),
    ("md5sum", Group::User),
    ("gzip", Group::User),
    ("awk", Group::User),
    ("fib", Group::User),
    ("bytecode", Group::User),
    ("qsort", Group::User),
    ("x87", Group::User),
    ("python", Group::User),
    ("stream", Group::Stream),
    ("python-start", Group::Start),
];

/// System operations, by their names in `sysbench.c`.
pub const OPERATIONS: &[(&str, Group)] = &[
    ("getppid", Group::System),
    ("open+close", Group::System),
    ("pwrite+pread", Group::System),
    ("ping-pong", Group::System),
    ("signal", Group::System),
    ("fork+exit", Group::Churn),
    ("fork+exec", Group::Churn),
    ("mmap+touch", Group::Churn),
    ("mprotect", Group::Churn),
];
