//! The virtual processor: architectural state and the rules that change it.
//!
//! Plain data and functions named as in the Intel SDM. Nothing here knows how instructions are executed: both the
//! interpreter and the translator's assists call the same rules.

mod bus;
mod control;
mod cpuid;
mod debug;
mod descriptor;
mod exception;
mod inspect;
mod interrupt;
mod io_permission;
mod model;
mod msr;
mod mtrr;
mod raise;
mod returns;
mod segment_load;
mod segmentation;
mod selection;
mod stack;
mod state;
mod sysenter;
mod task;
mod transfer;
mod tsc;
mod tss;
mod vcpu;

pub use bus::{Bus, EmptyBus, Lines};
pub use exception::{Exception, Flow, Stop, Unsupported, vector};
pub use model::{CpuModel, Feature, arch_capabilities};
pub use raise::SoftwareInterrupt;
pub use selection::{SelectionError, selectable};
pub use state::{CpuState, InterruptShadow, Msrs, Segment, TableRegister, XsaveArea, attr, cr0, cr4, eflags, reg, seg};
pub use tsc::host_tsc;
pub use vcpu::Vcpu;

#[cfg(test)]
mod tests;
