//! Frames for the guest, until it has lent buffers for them. Limited: a TCP stack that finds no room sends later, a datagram
//! is lost.

use std::collections::VecDeque;

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

/// The address of everything on the link but the guest.
pub const OURS: EthernetAddress = EthernetAddress([0x02, 0x62, 0x75, 0x6c, 0xff, 0xff]);
/// Frames that wait at most, beside answers: of these there is one for each frame of the guest.
const LIMIT: usize = 256;
const HEADER: usize = 14;

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    guest: EthernetAddress,
    frames: VecDeque<Vec<u8>>,
    held_back: bool,
}

impl Outbox {
    /// Empty, for a guest with this address.
    pub fn new(guest: EthernetAddress) -> Self {
        Self { guest, frames: VecDeque::new(), held_back: false }
    }

    /// Whether there is room. If not, whoever asked is held back.
    pub fn has_room(&mut self) -> bool {
        let room = self.frames.len() < LIMIT;
        self.held_back |= !room;
        room
    }

    /// Adds a frame whose payload, `length` zeroes, `fill` writes.
    pub fn add<R>(&mut self, kind: EthernetProtocol, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut frame = EthernetFrame::new_unchecked(vec![0; HEADER + length]);
        frame.set_src_addr(OURS);
        frame.set_dst_addr(self.guest);
        frame.set_ethertype(kind);
        let result = fill(frame.payload_mut());
        // An answer to a guest that does not take answers.
        if self.frames.len() < 2 * LIMIT {
            self.frames.push_back(frame.into_inner());
        }
        result
    }

    /// The oldest.
    pub fn first(&self) -> Option<&[u8]> {
        self.frames.front().map(Vec::as_slice)
    }

    /// The oldest is no longer needed.
    pub fn done(&mut self) {
        self.frames.pop_front();
    }

    /// True once after somebody was held back.
    pub fn take_held_back(&mut self) -> bool {
        std::mem::take(&mut self.held_back)
    }
}
