//! The board's chips.
//!
//! A chip knows its registers and nothing else: plain data, and functions that take the time as `now` (nanoseconds on
//! the board's [`Clock`]) and give levels and messages back. So each is tested alone. [`Board`] is the one place that
//! attaches chips to ports, addresses and interrupt wires, and the only one that locks; [`platform`] names the
//! addresses. The machine room builds a board, hands it to the processors as their [`crate::cpu::Bus`], sleeps until
//! [`Board::next_deadline`] and calls [`Board::advance`].
//!
//! Timers are lazy. A chip is brought up to date when it is accessed or due; it is due only when an interrupt that the
//! guest has enabled would follow, so a guest that programmed no timer wakes nobody. Periodic timers that fell behind keep
//! their phase: one interrupt is raised at once, and those of PIT, RTC and HPET that went by unseen follow (`missed`). The
//! local APIC's timer coalesces: who uses it keeps time by counters (TSC, PM timer, HPET), which never lose any.

mod acpi_pm;
mod board;
mod clock;
mod fw_cfg;
mod hpet;
mod i8042;
mod i8254;
mod i8259;
mod ioapic;
mod lapic;
mod mc146818;
mod missed;
mod msi;
mod pci;
pub mod platform;
mod ps2;
mod uart16550;

pub use acpi_pm::register as pm_register;
pub use board::{Board, BoardConfig, BoardEvent, Hook, Hooks};
pub use clock::Clock;
pub use fw_cfg::key as fw_cfg_key;
pub use mc146818::index as cmos;
pub use pci::{Bar, BarKind, ConfigSpace, PciFunction};

/// Nothing will happen by itself.
const NEVER: u64 = u64::MAX;

/// Periodic timers are not served more often than this, in nanoseconds: a guest cannot make the host spin.
const MIN_PERIOD_NS: u64 = 50_000;

/// Replaces the byte lanes of `old` that a write of `width` bytes at byte `lane` (0 to 3) covers.
fn merge(old: u32, lane: u32, width: u8, value: u32) -> u32 {
    let mask = (u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 4)))) << (8 * (lane & 3));
    (old & !(mask as u32)) | (((u64::from(value) << (8 * (lane & 3))) & mask) as u32)
}

/// The `width` low bytes of `value`, from byte `lane`: how a narrow read sees a register.
fn extract(value: u64, lane: u32, width: u8) -> u64 {
    value.checked_shr(8 * lane).unwrap_or(0) & ones(width)
}

/// All ones, `width` bytes of them: what nothing decodes reads as.
fn ones(width: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)))
}
