//! The configuration space of a virtio function, and where its structures lie in its one BAR (virtio 1.2, §4.1.4).

use super::super::kind::Kind;
use crate::chipset::{BarKind, ConfigSpace};

/// Red Hat's vendor id, which is virtio's.
const VENDOR: u16 = 0x1af4;
/// Modern devices have 1040h plus their virtio id (§4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;

/// The BAR that holds everything.
pub const BAR: u8 = 0;
/// Its size in bytes.
pub const BAR_SIZE: u64 = 0x8000;
/// A structure has a page of the BAR.
pub const PAGE: u64 = 0x1000;
/// Pages of the structures.
pub mod page {
    #![allow(missing_docs)]
    pub const COMMON: u64 = 0;
    pub const ISR: u64 = 1;
    pub const DEVICE: u64 = 2;
    pub const NOTIFY: u64 = 3;
    pub const MSIX_TABLE: u64 = 4;
    pub const MSIX_PENDING: u64 = 5;
}
/// Bytes between the notification addresses of two queues.
pub const NOTIFY_STEP: u64 = 4;

/// Offset of the window through which configuration space reaches the BAR (§4.1.4.9): its BAR number, offset and
/// length fields, then its data.
pub const WINDOW: u8 = 0x84;
/// See [`WINDOW`].
pub const WINDOW_DATA: u8 = WINDOW + 16;
/// Offset of MSI-X's message control.
pub const MSIX_CONTROL: u8 = MSIX + 2;

const COMMON: u8 = 0x40;
const NOTIFY: u8 = 0x50;
const ISR: u8 = 0x64;
const DEVICE: u8 = 0x74;
const MSIX: u8 = 0x98;

const COMMAND: u8 = 4;
const STATUS: u8 = 6;
const HAS_CAPABILITIES: u8 = 0x10;
const SUBSYSTEM: u8 = 0x2c;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT_LINE: u8 = 0x3c;
const VENDOR_SPECIFIC: u8 = 9;

/// What firmware assigns to a function.
#[derive(Clone, Copy, Debug)]
pub struct Assigned {
    /// Where the BAR starts.
    pub base: u32,
    /// What the interrupt line register says.
    pub irq: u8,
}

/// The configuration space as firmware leaves it: BAR assigned and memory decoding on.
pub fn space(kind: &dyn Kind, vectors: u16, assigned: Assigned) -> ConfigSpace {
    let mut s = ConfigSpace::new(VENDOR, DEVICE_BASE + kind.id(), kind.class(), REVISION);
    s.set(SUBSYSTEM, &VENDOR.to_le_bytes());
    s.set(SUBSYSTEM + 2, &(DEVICE_BASE + kind.id()).to_le_bytes());
    s.add_bar(BAR, BarKind::Memory, BAR_SIZE);
    s.set(STATUS, &[HAS_CAPABILITIES]);
    s.set(CAPABILITIES, &[COMMON]);
    s.set(INTERRUPT_LINE, &[assigned.irq, 1]);
    structure(&mut s, COMMON, NOTIFY, 1, page::COMMON, 0x38);
    structure(&mut s, NOTIFY, ISR, 2, page::NOTIFY, PAGE as u32);
    s.set(NOTIFY + 2, &[20]);
    s.set(NOTIFY + 16, &(NOTIFY_STEP as u32).to_le_bytes());
    structure(&mut s, ISR, DEVICE, 3, page::ISR, 1);
    structure(&mut s, DEVICE, WINDOW, 4, page::DEVICE, kind.config_size() as u32);
    s.set(WINDOW, &[VENDOR_SPECIFIC, MSIX, 20, 5]);
    s.allow(WINDOW + 4, &[0xff]);
    s.allow(WINDOW + 8, &[0xff; 8]);
    s.set(MSIX, &[0x11, 0]);
    s.set(MSIX_CONTROL, &vectors.saturating_sub(1).to_le_bytes());
    s.allow(MSIX_CONTROL, &[0, 0xc0]);
    s.set(MSIX + 4, &((page::MSIX_TABLE * PAGE) as u32).to_le_bytes());
    s.set(MSIX + 8, &((page::MSIX_PENDING * PAGE) as u32).to_le_bytes());
    s.write(0x10, 4, assigned.base);
    s.write(COMMAND, 2, 2);
    s
}

/// A vendor capability: structure of type `kind` in page `page` of the BAR.
fn structure(s: &mut ConfigSpace, at: u8, next: u8, kind: u8, page: u64, length: u32) {
    s.set(at, &[VENDOR_SPECIFIC, next, 16, kind, BAR]);
    s.set(at + 8, &((page * PAGE) as u32).to_le_bytes());
    s.set(at + 12, &length.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::super::block::Block;
    use super::*;

    #[test]
    fn the_capability_list_ends_and_names_every_structure() {
        let s = space(&Block, 3, Assigned { base: 0xe000_0000, irq: 10 });
        assert_eq!((s.read(0, 4), s.read(0x3c, 2)), (0x1042_1af4, 0x010a));
        assert_eq!(s.bars()[0].base, 0xe000_0000);
        let (mut at, mut types) = (s.read(CAPABILITIES, 1) as u8, Vec::new());
        while at != 0 && types.len() < 10 {
            match s.read(at, 1) {
                9 => types.push(s.read(at + 3, 1)),
                id => types.push(0x100 + id),
            }
            at = s.read(at + 1, 1) as u8;
        }
        assert_eq!(types, [1, 2, 3, 4, 5, 0x111]);
        assert_eq!(s.read(MSIX_CONTROL, 2), 2, "one less than there are");
    }
}
