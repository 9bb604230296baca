//! How guest instructions are executed. Nothing outside this room knows which engine runs.

mod choose;
mod features;
pub mod interp;
pub mod translate;

pub use choose::{EngineError, create};

use crate::cpu::{Unsupported, Vcpu};

/// Why an engine gave the thread back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `Lines::request` was raised: the machine has something to do.
    Requested,
    /// HLT with nothing pending; `CpuState::halted` is set. The machine sleeps until `Lines::any`.
    Halted,
    /// Triple fault: the board resets the processor.
    Shutdown,
    /// The guest needs something that Bulkhead does not do.
    Unsupported(Box<Unsupported>),
}

/// An execution engine for one processor.
///
/// The engine services interrupts and NMIs from [`Vcpu::lines`] itself, at instruction boundaries. While `run` is on
/// the stack the engine may hold parts of the architectural state elsewhere; between calls `Vcpu::state` is complete.
pub trait Engine: Send {
    /// The name an operator selects it by.
    fn name(&self) -> &'static str;
    /// Executes until something needs the machine.
    fn run(&mut self, vcpu: &mut Vcpu) -> Exit;
    /// Guest RAM in `start..end` (physical bytes) was changed by a device or the loader: code from there is stale.
    fn invalidate(&mut self, vcpu: &mut Vcpu, start: u64, end: u64);
    /// Counters since the start, in a stable order: name and value. Printed by `--stats`.
    fn stats(&self) -> Vec<(String, u64)>;
}
