//! Where things are on this board: well-known ports, interrupt lines and addresses, in one place. Tables for the guest
//! (ACPI, MP) are written from these same names.
#![allow(missing_docs)]

/// i8259 pair: command ports; data ports follow.
pub const PIC_MASTER: u16 = 0x20;
pub const PIC_SLAVE: u16 = 0xa0;
/// Edge/level control registers of the pair, two bytes.
pub const ELCR: u16 = 0x4d0;
/// i8254: three counters and the control word.
pub const PIT: u16 = 0x40;
/// i8042 data, NMI status and speaker (timer 2 gate), i8042 command.
pub const KBD_DATA: u16 = 0x60;
pub const PORT_B: u16 = 0x61;
pub const KBD_COMMAND: u16 = 0x64;
/// RTC index and data.
pub const RTC_INDEX: u16 = 0x70;
pub const RTC_DATA: u16 = 0x71;
/// Fast A20 and reset.
pub const PORT_92: u16 = 0x92;
/// APM control port: ACPI enable and disable commands (FADT SMI_CMD).
pub const SMI_CMD: u16 = 0xb2;
pub const ACPI_ENABLE: u8 = 0xf1;
pub const ACPI_DISABLE: u8 = 0xf0;
/// ISA debug exit: a write of v ends the VM with code (v << 1) | 1.
pub const DEBUG_EXIT: u16 = 0xf4;
/// First serial port, eight registers.
pub const COM1: u16 = 0x3f8;
/// fw_cfg: selector (16 bits), data (8 bits), DMA address (2 × 32 bits, big-endian).
pub const FW_CFG_SELECT: u16 = 0x510;
pub const FW_CFG_DATA: u16 = 0x511;
pub const FW_CFG_DMA: u16 = 0x514;
/// ACPI PM block as firmware would place it (PIIX4 PMBASE), 64 bytes.
pub const PM_BASE: u16 = 0x600;
/// PCI configuration mechanism 1, and the reset control register between its two.
pub const PCI_ADDRESS: u16 = 0xcf8;
pub const RESET_CONTROL: u16 = 0xcf9;
pub const PCI_DATA: u16 = 0xcfc;

pub const IRQ_PIT: u8 = 0;
pub const IRQ_KBD: u8 = 1;
pub const IRQ_COM1: u8 = 4;
pub const IRQ_RTC: u8 = 8;
/// ACPI's SCI: level, active high.
pub const IRQ_SCI: u8 = 9;
pub const IRQ_AUX: u8 = 12;
/// The IOAPIC pin that IRQ 0 is wired to.
pub const IOAPIC_PIN_PIT: u8 = 2;
/// ISA IRQs of PIRQ A to D, as firmware would program them; level.
pub const PIRQ_IRQS: [u8; 4] = [10, 10, 11, 11];

/// The PIRQ (0 is A) that interrupt `pin` (0 is INTA) of PCI device `device` is wired to.
pub const fn pirq(device: u8, pin: u8) -> usize {
    (device.wrapping_add(pin).wrapping_sub(1) & 3) as usize
}
/// The interrupt line, and IOAPIC pin, of interrupt `pin` of PCI device `device` as firmware routes it.
pub const fn pci_irq(device: u8, pin: u8) -> u8 {
    PIRQ_IRQS[pirq(device, pin)]
}

pub const IOAPIC_BASE: u64 = 0xfec0_0000;
pub const HPET_BASE: u64 = 0xfed0_0000;
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// First PCI slot of virtio devices, and where firmware puts their BARs: 1 MiB a slot.
pub const VIRTIO_SLOT: u8 = 4;
pub const VIRTIO_BARS: u32 = 0xe000_0000;

/// SLP_TYP of S5, for the DSDT's \_S5 package (PIIX4: soft off).
pub const SLP_TYP_S5: u8 = 0;
