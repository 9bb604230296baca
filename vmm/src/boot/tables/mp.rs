//! MP tables (MultiProcessor Specification 1.4): what kernels without ACPI read instead.

use super::{Area, Topology, set_checksum};
use crate::boot::layout;
use crate::chipset::platform::{IOAPIC_BASE, IOAPIC_PIN_PIT, IRQ_SCI, LAPIC_BASE, PIRQ_IRQS};

const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
/// PCI slots whose interrupts are listed.
const SLOTS: u8 = 32;

/// Interrupt types (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger as the bus has them.
const CONFORMING: u16 = 0;
/// Active high, level.
const HIGH_LEVEL: u16 = 1 | 3 << 2;

/// Version and integration as the local APIC's version register reports it.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;

/// Writes the configuration table and the floating pointer to it.
pub fn put(topology: Topology, area: &mut Area) {
    let table = area.put(16, &configuration(topology));
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(table as u32).to_le_bytes());
    pointer[8] = 1;
    pointer[9] = 4;
    set_checksum(&mut pointer, 10);
    let at = area.put(16, &pointer);
    debug_assert!(at < layout::HIGH_START);
}

/// The configuration table (§4.2), entries in ascending order of type.
fn configuration(topology: Topology) -> Vec<u8> {
    let entries = entries(topology);
    let mut b = Vec::new();
    b.extend(b"PCMP");
    b.extend([0, 0, 4, 0]);
    b.extend(b"BLKHD   ");
    b.extend(b"BULKHEAD    ");
    b.extend([0; 6]);
    b.extend((entries.len() as u16).to_le_bytes());
    b.extend((LAPIC_BASE as u32).to_le_bytes());
    b.extend([0; 4]);
    b.extend(entries.concat());
    let length = (b.len() as u16).to_le_bytes();
    b[4..6].copy_from_slice(&length);
    set_checksum(&mut b, 7);
    b
}

fn entries(topology: Topology) -> Vec<Vec<u8>> {
    let ioapic = topology.ioapic_id();
    let mut list: Vec<Vec<u8>> = (0..topology.processors).map(processor).collect();
    list.push([&[1, PCI_BUS], b"PCI   ".as_slice()].concat());
    list.push([&[1, ISA_BUS], b"ISA   ".as_slice()].concat());
    list.push([&[2, ioapic, IOAPIC_VERSION, 1], (IOAPIC_BASE as u32).to_le_bytes().as_slice()].concat());
    for irq in (0..16).filter(|irq| *irq != 2 && !PIRQ_IRQS.contains(irq)) {
        let pin = if irq == 0 { IOAPIC_PIN_PIT } else { irq };
        let flags = if irq == IRQ_SCI { HIGH_LEVEL } else { CONFORMING };
        list.push(interrupt(3, INT, flags, ISA_BUS, irq, ioapic, pin));
    }
    for slot in 0..SLOTS {
        for pin in 0..4 {
            let irq = PIRQ_IRQS[usize::from((slot + pin + 3) % 4)];
            list.push(interrupt(3, INT, HIGH_LEVEL, PCI_BUS, slot << 2 | pin, ioapic, irq));
        }
    }
    list.push(interrupt(4, EXT_INT, CONFORMING, ISA_BUS, 0, 0xff, 0));
    list.push(interrupt(4, NMI, CONFORMING, ISA_BUS, 0, 0xff, 1));
    list
}

/// A processor entry; the first is the bootstrap processor. Family 6, with on-chip APIC and FPU.
fn processor(id: u8) -> Vec<u8> {
    let mut b = vec![0, id, LAPIC_VERSION, if id == 0 { 3 } else { 1 }];
    b.extend(0x600u32.to_le_bytes());
    b.extend((1u32 << 9 | 1).to_le_bytes());
    b.extend([0; 8]);
    b
}

/// An interrupt assignment: `entry` 3 to an IOAPIC pin, 4 to a local APIC's LINT pin.
fn interrupt(entry: u8, kind: u8, flags: u16, bus: u8, source: u8, apic: u8, pin: u8) -> Vec<u8> {
    let f = flags.to_le_bytes();
    vec![entry, kind, f[0], f[1], bus, source, apic, pin]
}
