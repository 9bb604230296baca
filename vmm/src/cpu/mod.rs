//! The virtual processor: architectural state and the rules that change it.
//!
//! Plain data and functions named as in the Intel SDM. Nothing here knows how instructions are executed: both the
//! interpreter and the translator's assists call the same rules.

mod bus;
mod exception;
mod segmentation;
mod state;
mod vcpu;

pub use bus::{Bus, Lines};
pub use exception::{Exception, Flow, Stop, Unsupported, vector};
pub use state::{CpuState, InterruptShadow, Msrs, Segment, TableRegister, XsaveArea, attr, cr0, cr4, eflags, reg, seg};
pub use vcpu::Vcpu;
