//! What firmware leaves in memory for an operating system: ACPI tables, MP tables and the BIOS data area.
//!
//! All addresses come from [`crate::chipset::platform`], the same names the board is wired by, so tables and chips
//! cannot disagree. Everything lies in the reserved 64 KiB below 1 MiB, where both kinds of root pointer are searched.

mod acpi;
mod aml;
mod dsdt;
mod mp;

use super::{BootError, layout};
use crate::chipset::platform;
use crate::mmu::GuestRam;

/// What the tables need to know of this board beside its fixed addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Number of processors; APIC ids count from 0.
    pub processors: u8,
}

impl Topology {
    /// The IOAPIC's id, distinct from every local APIC's.
    fn ioapic_id(&self) -> u8 {
        self.processors
    }
}

/// Places tables one after the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Physical address that the next table of this alignment gets.
    fn align(&mut self, alignment: usize) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        layout::TABLES + self.bytes.len() as u64
    }

    /// Appends a table and returns its physical address.
    fn put(&mut self, alignment: usize, table: &[u8]) -> u64 {
        let at = self.align(alignment);
        self.bytes.extend_from_slice(table);
        at
    }
}

/// Sets byte `at` such that all bytes add up to 0 modulo 256.
fn set_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg();
}

/// Writes all tables for `topology` into `ram`.
pub fn write(topology: Topology, ram: &GuestRam) -> Result<(), BootError> {
    let mut area = Area { bytes: Vec::new() };
    acpi::put(topology, &mut area);
    mp::put(topology, &mut area);
    if area.bytes.len() as u64 > layout::HIGH_START - layout::TABLES {
        return Err(BootError::Tables("the ACPI and MP tables"));
    }
    layout::write(ram, "firmware tables", layout::TABLES, &area.bytes)?;
    write_bios_data(ram)
}

/// The words of the BIOS data area at 400h that operating systems read, and the EBDA's size in its first byte.
fn write_bios_data(ram: &GuestRam) -> Result<(), BootError> {
    let put = |at: u64, value: u16| layout::write(ram, "the BIOS data area", at, &value.to_le_bytes());
    put(0x400, platform::COM1)?;
    put(0x40e, (layout::EBDA >> 4) as u16)?;
    // Equipment: one serial port, no display, no floppy; an x87.
    put(0x410, 1 << 9 | 1 << 1)?;
    put(0x413, (layout::EBDA >> 10) as u16)?;
    put(layout::EBDA, ((0xa_0000 - layout::EBDA) >> 10) as u16)
}

#[cfg(test)]
mod tests;
