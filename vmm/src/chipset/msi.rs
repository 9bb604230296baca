//! Interrupt messages: what the IOAPIC, a device's MSI and a processor's ICR send to local APICs (SDM vol. 3, §11.11
//! and §11.6).

/// Delivery mode (SDM vol. 3, §11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
    /// Reserved encodings: nobody accepts them.
    Reserved,
}

impl Delivery {
    /// From the three-bit field.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination: an APIC id, or a set by LDR when `logical`. FFh (xAPIC) and FFFFFFFFh (x2APIC) are everyone.
    pub destination: u32,
    /// Destination mode.
    pub logical: bool,
    /// Delivery mode.
    pub delivery: Delivery,
    /// Vector.
    pub vector: u8,
    /// Level-triggered: EOI is broadcast to the IOAPIC.
    pub level: bool,
}

impl Message {
    /// Decodes a device's write of `data` to `address`; None if it is not an interrupt (FEE00000h to FEEFFFFFh).
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let redirected = address & 8 != 0;
        Some(Self {
            destination: (address >> 12 & 0xff) as u32,
            logical: address & 4 != 0,
            delivery: match Delivery::from_bits(data >> 8) {
                // The redirection hint sends a fixed interrupt to one processor of the set.
                Delivery::Fixed if redirected => Delivery::LowestPriority,
                other => other,
            },
            vector: data as u8,
            level: data & 0x8000 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let m = Message::from_msi(0xfee0_300c, 0x4941).unwrap();
        assert_eq!((m.destination, m.logical, m.vector, m.level), (3, true, 0x41, false));
        assert_eq!(m.delivery, Delivery::LowestPriority);
        assert_eq!(Message::from_msi(0xfee0_0008, 0x41).unwrap().delivery, Delivery::LowestPriority);
        assert_eq!(Message::from_msi(0xfee0_0000, 0x41).unwrap().delivery, Delivery::Fixed);
        assert_eq!(Message::from_msi(0xfed0_0000, 0), None);
        assert_eq!(Message::from_msi(0x1_fee0_0000, 0), None);
    }
}
