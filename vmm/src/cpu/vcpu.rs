//! One processor: its state, its view of memory, its wires.

use std::sync::Arc;

use super::{Bus, CpuModel, CpuState, Lines};
use crate::mmu::{GuestRam, Mmu};

/// One virtual processor.
pub struct Vcpu {
    /// Index, also the initial APIC id.
    pub index: usize,
    /// What CPUID and the MSRs show.
    pub model: CpuModel,
    /// Architectural state.
    pub state: CpuState,
    /// Guest memory as this processor sees it.
    pub mmu: Mmu,
    /// The board.
    pub bus: Arc<dyn Bus>,
    /// Requests for this processor's attention.
    pub lines: Arc<Lines>,
}

impl Vcpu {
    /// A processor in its power-up state.
    pub fn new(index: usize, ram: Arc<GuestRam>, bus: Arc<dyn Bus>, lines: Arc<Lines>) -> Self {
        Self { index, model: CpuModel::default(), state: CpuState::default(), mmu: Mmu::new(ram), bus, lines }
    }
}
