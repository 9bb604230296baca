//! ACPI's fixed tables (ACPI 6.5, §5.2): RSDP, RSDT, XSDT, FADT, FACS, MADT, HPET. There is no MCFG: configuration
//! space is reached by ports alone.

use super::{Area, Topology, dsdt, set_checksum};
use crate::boot::layout;
use crate::chipset::platform::{
    ACPI_DISABLE, ACPI_ENABLE, HPET_BASE, IOAPIC_BASE, IOAPIC_PIN_PIT, IRQ_SCI, LAPIC_BASE, PIRQ_IRQS, PM_BASE,
    RESET_CONTROL, SMI_CMD,
};

const OEM: &[u8; 6] = b"BLKHD ";
const OEM_TABLE: &[u8; 8] = b"BULKHEAD";
/// CMOS register of the century, as PCs have it.
const RTC_CENTURY: u8 = 0x32;
/// Value written to [`RESET_CONTROL`] for a hard reset.
const RESET_VALUE: u8 = 0x06;

/// FADT flags (§5.2.9, table 5.10): WBINVD works; C1 everywhere; no sleep button; the power button is the fixed one
/// (its flag stays clear); the RTC wakes from no sleep state; the reset register works.
const FADT_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10;
/// IAPC_BOOT_ARCH: legacy devices, an 8042, no VGA.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 1 | 1 << 2;

/// Interrupt source override flags: active high, level.
const HIGH_LEVEL: u16 = 1 | 3 << 2;

/// A description table: its 36-byte header, then `body`.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend(signature);
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(OEM);
    bytes.extend(OEM_TABLE);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"BLKH");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    set_checksum(&mut bytes, 9);
    bytes
}

/// Writes all ACPI tables; the RSDP first, at the start of the area.
pub fn put(topology: Topology, area: &mut Area) {
    let rsdp = area.put(16, &[0; 36]);
    let dsdt = area.put(16, &table(b"DSDT", 2, &dsdt::terms(topology)));
    let facs = area.put(64, &facs());
    let tables = [area.put(16, &fadt(facs as u32, dsdt as u32)), area.put(16, &madt(topology)), area.put(16, &hpet())];
    let narrow: Vec<u8> = tables.iter().flat_map(|t| (*t as u32).to_le_bytes()).collect();
    let wide: Vec<u8> = tables.iter().flat_map(|t| t.to_le_bytes()).collect();
    let rsdt = area.put(16, &table(b"RSDT", 1, &narrow));
    let xsdt = area.put(16, &table(b"XSDT", 1, &wide));
    let at = (rsdp - layout::TABLES) as usize;
    area.bytes[at..at + 36].copy_from_slice(&root(rsdt as u32, xsdt));
}

/// The root pointer, revision 2 (§5.2.5.3).
fn root(rsdt: u32, xsdt: u64) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(OEM);
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[20] = 36;
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    set_checksum(&mut bytes[..20], 8);
    set_checksum(&mut bytes, 32);
    bytes
}

/// Firmware control structure: the global lock and a waking vector that nothing uses.
fn facs() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes[32] = 1;
    bytes
}

/// A generic address in I/O space (§5.2.3.2): `width` in bits, accessed by `size` (1 byte, 2 word, 3 dword).
fn io_address(port: u16, width: u8, size: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&[1, width, 0, size]);
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// The fixed description table, revision 3: PM1 event, PM1 control and the PM timer of a PIIX4-like block.
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    let mut b = [0u8; 244];
    let mut put = |at: usize, value: &[u8]| b[at..at + value.len()].copy_from_slice(value);
    let (event, control, timer) = (PM_BASE, PM_BASE + 4, PM_BASE + 8);
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &u16::from(IRQ_SCI).to_le_bytes());
    put(48, &u32::from(SMI_CMD).to_le_bytes());
    put(52, &[ACPI_ENABLE, ACPI_DISABLE]);
    put(56, &u32::from(event).to_le_bytes());
    put(64, &u32::from(control).to_le_bytes());
    put(76, &u32::from(timer).to_le_bytes());
    // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN; no GPE blocks.
    put(88, &[4, 2, 0, 4]);
    // Worst-case latencies above these mean: no C2, no C3.
    put(96, &101u16.to_le_bytes());
    put(98, &1001u16.to_le_bytes());
    put(108, &[RTC_CENTURY]);
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(116, &io_address(RESET_CONTROL, 8, 1));
    put(128, &[RESET_VALUE]);
    put(132, &u64::from(facs).to_le_bytes());
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &io_address(event, 32, 2));
    put(172, &io_address(control, 16, 2));
    put(208, &io_address(timer, 32, 3));
    table(b"FACP", 3, &b[36..])
}

/// The multiple APIC description table (§5.2.12).
fn madt(topology: Topology) -> Vec<u8> {
    let mut b = Vec::new();
    b.extend((LAPIC_BASE as u32).to_le_bytes());
    // PCAT_COMPAT: there is an i8259 pair too.
    b.extend(1u32.to_le_bytes());
    for id in 0..topology.processors {
        b.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    b.extend([1, 12, topology.ioapic_id(), 0]);
    b.extend((IOAPIC_BASE as u32).to_le_bytes());
    b.extend(0u32.to_le_bytes());
    let mut override_source = |irq: u8, gsi: u8, flags: u16| {
        b.extend([2, 10, 0, irq]);
        b.extend(u32::from(gsi).to_le_bytes());
        b.extend(flags.to_le_bytes());
    };
    override_source(0, IOAPIC_PIN_PIT, 0);
    override_source(IRQ_SCI, IRQ_SCI, HIGH_LEVEL);
    let mut shared = PIRQ_IRQS.to_vec();
    shared.dedup();
    for irq in shared {
        override_source(irq, irq, HIGH_LEVEL);
    }
    // NMI on LINT1 of every processor.
    b.extend([4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 3, &b)
}

/// The HPET's table (IA-PC HPET 1.0a, §3.2.4): Intel, three comparators, 64-bit counter, legacy replacement capable.
fn hpet() -> Vec<u8> {
    let mut b = Vec::new();
    b.extend(0x8086_a201u32.to_le_bytes());
    b.extend([0, 64, 0, 0]);
    b.extend(HPET_BASE.to_le_bytes());
    b.extend([0, 0, 0, 0]);
    table(b"HPET", 1, &b)
}
