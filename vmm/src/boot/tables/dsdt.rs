//! The DSDT's contents: the devices that an operating system cannot find by probing, and soft-off.

use super::Topology;
use super::aml::{
    bus_range, device, eisa_id, integer, io, io_range, irq, memory_range, memory32_fixed, name, package, processor,
    resources, scope,
};
use crate::chipset::platform::{
    COM1, HPET_BASE, IOAPIC_BASE, IRQ_AUX, IRQ_COM1, IRQ_KBD, IRQ_RTC, KBD_COMMAND, KBD_DATA, PCI_ADDRESS, PIRQ_IRQS,
    PM_BASE, RTC_INDEX, SLP_TYP_S5,
};
use crate::mmu::LOW_RAM_LIMIT;

/// PCI slots that `_PRT` routes.
const SLOTS: u32 = 32;

/// AML of the whole definition block.
pub fn terms(topology: Topology) -> Vec<u8> {
    let s5 = u32::from(SLP_TYP_S5);
    let processors: Vec<_> = (0..topology.processors).map(|i| processor(&format!("C{i:03X}"), i)).collect();
    [
        name("\\_S5_", package(&[integer(s5), integer(s5), integer(0), integer(0)])),
        scope("\\_PR_", &processors),
        scope("\\_SB_", &[pci_root(), hpet()]),
    ]
    .concat()
}

/// The host bridge: what it passes on, how its interrupt lines are wired, and the ISA bridge below it.
fn pci_root() -> Vec<u8> {
    let windows = resources(&[
        bus_range(0, 0xff),
        io(PCI_ADDRESS, 8),
        io_range(0, PCI_ADDRESS - 1),
        io_range(PCI_ADDRESS + 8, 0xffff),
        memory_range(LOW_RAM_LIMIT as u32, IOAPIC_BASE as u32 - 1),
    ]);
    device(
        "PCI0",
        &[
            name("_HID", eisa_id("PNP0A03")),
            name("_UID", integer(0)),
            name("_BBN", integer(0)),
            name("_CRS", windows),
            name("_PRT", interrupt_routing()),
            isa_bridge(),
        ],
    )
}

/// One entry a slot and pin: pin p of slot s reaches PIRQ (s + p − 1) mod 4, as on the i440FX's reference board. The
/// PIRQs are wired to ISA interrupts, which have the same numbers on the IOAPIC.
fn interrupt_routing() -> Vec<u8> {
    let mut entries = Vec::new();
    for slot in 0..SLOTS {
        for pin in 0..4 {
            let gsi = PIRQ_IRQS[((slot + pin + 3) % 4) as usize];
            let address = slot << 16 | 0xffff;
            entries.push(package(&[integer(address), integer(pin), integer(0), integer(u32::from(gsi))]));
        }
    }
    package(&entries)
}

fn isa_bridge() -> Vec<u8> {
    device(
        "ISA_",
        &[
            name("_ADR", integer(0x1_0000)),
            isa("COM1", "PNP0501", &[io(COM1, 8), irq(IRQ_COM1)]),
            isa("RTC_", "PNP0B00", &[io(RTC_INDEX, 2), irq(IRQ_RTC)]),
            isa("KBD_", "PNP0303", &[io(KBD_DATA, 1), io(KBD_COMMAND, 1), irq(IRQ_KBD)]),
            isa("MOU_", "PNP0F13", &[irq(IRQ_AUX)]),
            // Motherboard resources: what no driver claims but nobody else may use.
            isa("MBRD", "PNP0C02", &[io(PM_BASE, 0x40)]),
        ],
    )
}

/// A device on the ISA bus that is present and enabled.
fn isa(at: &str, id: &str, descriptors: &[Vec<u8>]) -> Vec<u8> {
    let terms = [
        name("_HID", eisa_id(id)),
        name("_UID", integer(u32::from(id == "PNP0501"))),
        name("_STA", integer(0xf)),
        name("_CRS", resources(descriptors)),
    ];
    device(at, &terms)
}

fn hpet() -> Vec<u8> {
    let window = resources(&[memory32_fixed(HPET_BASE as u32, 0x400)]);
    device("HPET", &[name("_HID", eisa_id("PNP0103")), name("_UID", integer(0)), name("_CRS", window)])
}
