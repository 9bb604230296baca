//! The common configuration structure (virtio 1.2, §4.1.4.3): plain registers. What a write means for the device is
//! said by an [`Effect`].

use super::super::guest_ring::Places;

/// VIRTIO_F_VERSION_1: a driver without it is a legacy one, which this transport does not serve.
pub const F_VERSION_1: u64 = 1 << 32;
/// An interrupt vector that is none.
pub const NO_VECTOR: u16 = 0xffff;

/// Device status bits (virtio 1.2, §2.1).
pub mod status {
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on.
    pub const NEEDS_RESET: u8 = 0x40;
}

mod at {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 0xc;
    pub const MSIX_CONFIG: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const END: usize = 0x38;
}

/// What a write asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Status 0: reset.
    Reset,
    /// DRIVER_OK was set.
    DriverOk,
    /// This queue was enabled.
    Enabled(u16),
}

/// Registers of one queue.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    /// Size and places, as the driver wrote them.
    pub places: Places,
    /// Interrupt vector.
    pub vector: u16,
    /// The driver enabled it.
    pub enabled: bool,
}

/// The registers.
#[derive(Debug)]
pub struct Common {
    offered: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// Device status.
    pub status: u8,
    /// Bits that the status reads as set beside: a reset by the driver is not complete while there are any (virtio 1.2,
    /// §4.1.4.3.1).
    pub resetting: u8,
    /// Counts changes of the configuration.
    pub generation: u8,
    select: u16,
    queue_size: u16,
    vectors: u16,
    /// One of each queue.
    pub queues: Vec<Queue>,
}

impl Common {
    /// Power-up state: `queues` queues of at most `queue_size` entries, `vectors` interrupt vectors.
    pub fn new(offered: u64, queues: u16, queue_size: u16, vectors: u16) -> Self {
        let places = Places { size: queue_size, ..Places::default() };
        let queue = Queue { places, vector: NO_VECTOR, enabled: false };
        Self {
            offered,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            resetting: 0,
            generation: 0,
            select: 0,
            queue_size,
            vectors,
            queues: vec![queue; usize::from(queues)],
        }
    }

    /// As after power-up. The configuration's generation goes on counting, and a reset that is not complete goes on.
    pub fn reset(&mut self) {
        let (generation, resetting) = (self.generation, self.resetting);
        *self = Self::new(self.offered, self.queues.len() as u16, self.queue_size, self.vectors);
        (self.generation, self.resetting) = (generation, resetting);
    }

    /// What the device offers. Takes effect at the next negotiation.
    pub fn offer(&mut self, features: u64) {
        self.offered = features;
    }

    /// Features that both sides agreed on; none before they did.
    pub fn negotiated(&self) -> u64 {
        if self.has(status::FEATURES_OK) { self.accepted } else { 0 }
    }

    /// True if all of `bits` are set in the status.
    pub fn has(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    /// Reads `width` bytes at `offset`.
    pub fn read(&self, offset: u64, width: u8) -> u64 {
        let mut bytes = [0; at::END + 8];
        let queue = self.queues.get(usize::from(self.select));
        let places = queue.map_or(Places::default(), |q| q.places);
        let mut put = |at: u64, value: &[u8]| bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
        put(at::DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(at::DEVICE_FEATURE, &half(self.offered, self.device_select).to_le_bytes());
        put(at::DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(at::DRIVER_FEATURE, &half(self.accepted, self.driver_select).to_le_bytes());
        put(at::MSIX_CONFIG, &self.config_vector.to_le_bytes());
        put(at::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(at::STATUS, &[self.status | self.resetting, self.generation]);
        put(at::QUEUE_SELECT, &self.select.to_le_bytes());
        put(at::QUEUE_SIZE, &places.size.to_le_bytes());
        put(at::QUEUE_MSIX_VECTOR, &queue.map_or(NO_VECTOR, |q| q.vector).to_le_bytes());
        // queue_enable and, after it, queue_notify_off: the queue's number.
        put(at::QUEUE_ENABLE, &[queue.is_some_and(|q| q.enabled).into(), 0]);
        put(at::QUEUE_ENABLE + 2, &self.select.to_le_bytes());
        put(at::QUEUE_DESC, &places.descriptors.to_le_bytes());
        put(at::QUEUE_DRIVER, &places.avail.to_le_bytes());
        put(at::QUEUE_DEVICE, &places.used.to_le_bytes());
        let from = (offset as usize).min(at::END);
        let read: Vec<u8> = bytes[from..].iter().copied().take(usize::from(width)).collect();
        read.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Writes `width` bytes at `offset`. Fields are written whole, 64-bit ones also by halves; all else is ignored.
    pub fn write(&mut self, offset: u64, width: u8, value: u64) -> Effect {
        match (offset, width) {
            (at::DEVICE_FEATURE_SELECT, 4) => self.device_select = value as u32,
            (at::DRIVER_FEATURE_SELECT, 4) => self.driver_select = value as u32,
            (at::DRIVER_FEATURE, 4) if !self.has(status::FEATURES_OK) => self.accept(value as u32),
            (at::MSIX_CONFIG, 2) => self.config_vector = self.vector(value as u16),
            (at::STATUS, 1) => return self.write_status(value as u8),
            (at::QUEUE_SELECT, 2) => self.select = value as u16,
            _ => return self.write_queue(offset, width, value),
        }
        Effect::None
    }

    fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn accept(&mut self, value: u32) {
        let shift = match self.driver_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let old = self.status;
        // NEEDS_RESET is the device's, and only a reset takes it away.
        self.status = value & !status::NEEDS_RESET | old & status::NEEDS_RESET;
        let acceptable = self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0;
        if !acceptable {
            self.status &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        if !self.has(status::FEATURES_OK) {
            self.status &= !status::DRIVER_OK;
        }
        if self.status & !old & status::DRIVER_OK != 0 { Effect::DriverOk } else { Effect::None }
    }

    fn write_queue(&mut self, offset: u64, width: u8, value: u64) -> Effect {
        let (select, vector) = (self.select, self.vector(value as u16));
        let Some(queue) = self.queues.get_mut(usize::from(select)) else { return Effect::None };
        match (offset, width) {
            (at::QUEUE_MSIX_VECTOR, 2) => queue.vector = vector,
            // A queue that is enabled stays where it is until the reset.
            _ if queue.enabled => {}
            (at::QUEUE_SIZE, 2) if value <= u64::from(self.queue_size) => queue.places.size = value as u16,
            (at::QUEUE_ENABLE, 2) if value == 1 => {
                queue.enabled = true;
                return Effect::Enabled(select);
            }
            (at::QUEUE_DESC..=0x37, 4 | 8) if offset.is_multiple_of(u64::from(width)) => {
                let places = &mut queue.places;
                let fields = [&mut places.descriptors, &mut places.avail, &mut places.used];
                for (field, start) in fields.into_iter().zip([at::QUEUE_DESC, at::QUEUE_DRIVER, at::QUEUE_DEVICE]) {
                    match offset.wrapping_sub(start) {
                        0 if width == 8 => *field = value,
                        0 => *field = *field & !0xffff_ffff | value & 0xffff_ffff,
                        4 => *field = *field & 0xffff_ffff | value << 32,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Effect::None
    }
}

/// The 32 feature bits that `select` selects.
fn half(features: u64, select: u32) -> u32 {
    features.checked_shr(select.saturating_mul(32)).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        Common::new(F_VERSION_1 | 0x25, 2, 256, 3)
    }

    #[test]
    fn only_what_is_offered_can_be_agreed_on() {
        let mut c = common();
        c.write(at::DEVICE_FEATURE_SELECT, 4, 1);
        assert_eq!(c.read(at::DEVICE_FEATURE, 4), 1);
        c.write(at::DEVICE_FEATURE_SELECT, 4, 7);
        assert_eq!(c.read(at::DEVICE_FEATURE, 4), 0);
        c.write(at::DRIVER_FEATURE, 4, 0x21);
        c.write(at::STATUS, 1, 0xb);
        assert_eq!((c.status, c.negotiated()), (3, 0), "a legacy driver is refused");
        c.write(at::DRIVER_FEATURE_SELECT, 4, 1);
        c.write(at::DRIVER_FEATURE, 4, 1);
        c.write(at::DRIVER_FEATURE_SELECT, 4, 0);
        c.write(at::DRIVER_FEATURE, 4, 0x23);
        c.write(at::STATUS, 1, 0xb);
        assert_eq!(c.status, 3, "bit 1 was not offered");
        c.write(at::DRIVER_FEATURE, 4, 0x21);
        assert_eq!(c.write(at::STATUS, 1, 7), Effect::None, "features come first");
        assert_eq!(c.status, 3);
        c.write(at::STATUS, 1, 0xb);
        c.write(at::DRIVER_FEATURE, 4, 0);
        assert_eq!(c.negotiated(), F_VERSION_1 | 0x21, "they stay what was agreed on");
        assert_eq!(c.write(at::STATUS, 1, 0xf), Effect::DriverOk);
        assert_eq!(c.write(at::STATUS, 1, 0xf), Effect::None);
        c.status |= status::NEEDS_RESET;
        c.write(at::STATUS, 1, 0xf);
        assert_eq!(c.status, 0x4f);
        assert_eq!(c.write(at::STATUS, 1, 0), Effect::Reset);
        c.reset();
        assert_eq!((c.status, c.read(at::DRIVER_FEATURE, 4)), (0, 0));
    }

    #[test]
    fn queues_are_set_up_and_stay() {
        let mut c = common();
        c.write(at::QUEUE_SELECT, 2, 1);
        assert_eq!((c.read(at::QUEUE_SIZE, 2), c.read(at::QUEUE_ENABLE + 2, 2)), (256, 1));
        c.write(at::QUEUE_SIZE, 2, 512);
        c.write(at::QUEUE_SIZE, 2, 128);
        c.write(at::QUEUE_DESC, 4, 0x1000);
        c.write(at::QUEUE_DESC + 4, 4, 1);
        c.write(at::QUEUE_DRIVER, 8, 0x2000);
        c.write(at::QUEUE_MSIX_VECTOR, 2, 3);
        assert_eq!(c.read(at::QUEUE_MSIX_VECTOR, 2), 0xffff, "there are three");
        c.write(at::QUEUE_MSIX_VECTOR, 2, 2);
        assert_eq!(c.write(at::QUEUE_ENABLE, 2, 1), Effect::Enabled(1));
        c.write(at::QUEUE_DRIVER, 8, 0x3000);
        let places = Places { size: 128, descriptors: 0x1_0000_1000, avail: 0x2000, used: 0 };
        assert_eq!((c.queues[1].places, c.queues[1].vector), (places, 2));
        assert_eq!(c.read(at::QUEUE_DESC, 8), 0x1_0000_1000);
        c.write(at::QUEUE_SELECT, 2, 2);
        assert_eq!(c.read(at::QUEUE_SIZE, 2), 0, "there is no queue 2");
        assert_eq!(c.write(at::QUEUE_ENABLE, 2, 1), Effect::None);
        for (offset, width) in [(0x36, 8), (0x38, 4), (u64::MAX, 8), (0x21, 1)] {
            c.read(offset, width);
            c.write(offset, width, u64::MAX);
        }
    }
}
