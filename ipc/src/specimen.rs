//! A request that crashed the process it was given to, as it is kept for that device's fuzzer.
//!
//! The vmm makes a [`Specimen`] of its own record and the guest's memory, never of what the device could write. The broker
//! looks at none of its bytes: it puts them into a file at places that depend on their number alone. The file is an input of
//! the fuzzer: one byte that chooses the device, then the beginning of a guest's memory with one chain in its virtqueue, cut
//! into descriptors as the process saw it. Fuzzer, seeds and file share the places below.

use serde::{Deserialize, Serialize};

/// Bytes of the fuzzer's guest memory.
pub const MEMORY: usize = 0x2_0000;
/// Entries of its queue; the descriptor table is at 0.
pub const SIZE: u16 = 16;
/// Where the available ring is.
pub const AVAIL: u64 = 0x100;
/// Where the used ring is.
pub const USED: u64 = 0x140;
/// What follows is free.
pub const FREE: u64 = 0x200;
/// The first byte of an input: the device is read-only.
pub const READ_ONLY: u8 = 1;
/// The first byte of an input: VIRTIO_RING_F_EVENT_IDX was negotiated.
pub const EVENT_IDX: u8 = 2;
/// The first byte of an input: the disk is larger than any real one, so that no sector of a real request is beyond its end.
pub const LARGE: u8 = 4;

/// Most bytes of a request's header, and of its status.
pub const MAX_HEAD: usize = 32;
/// Most bytes of what follows the header that are kept.
pub const MAX_DATA: usize = 32 << 10;
/// Longest description in bytes.
pub const MAX_WHAT: usize = 200;

const HEAD: u64 = FREE;
const TAIL: u64 = FREE + 0x40;
const DATA: u64 = 0x600;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A request, as far as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Specimen {
    /// What it asks for, in words.
    pub what: String,
    /// Requests that were out when the process first crashed, this one among them.
    pub among: u16,
    /// VIRTIO_RING_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Its header, at most [`MAX_HEAD`] bytes.
    pub head: Vec<u8>,
    /// The first bytes of what the device reads after the header, at most [`MAX_DATA`].
    pub data: Vec<u8>,
    /// How many bytes those are in all.
    pub out_bytes: u64,
    /// How many bytes the device may write before the status.
    pub in_bytes: u64,
    /// Bytes of status, at most [`MAX_HEAD`].
    pub tail_bytes: u32,
}

impl Specimen {
    /// Refuses what no honest vmm sends.
    pub fn validate(&self) -> Result<(), String> {
        let bounds = [
            ("description", self.what.len(), MAX_WHAT),
            ("header", self.head.len(), MAX_HEAD),
            ("status", self.tail_bytes as usize, MAX_HEAD),
            ("data", self.data.len(), MAX_DATA),
        ];
        match bounds.into_iter().find(|(_, length, most)| length > most) {
            Some((part, length, most)) => Err(format!("a request's {part} of {length} bytes: at most {most}")),
            None => Ok(()),
        }
    }

    /// The fuzzer's input. A request that is too long for the fuzzer's guest is cut to what fits.
    pub fn input(&self, read_only: bool) -> Vec<u8> {
        let out = self.out_bytes.min(self.data.len() as u64);
        let inner = DATA + out.next_multiple_of(512);
        let parts = [
            (HEAD, self.head.len() as u64, 0),
            (DATA, out, 0),
            (inner, self.in_bytes.min((MEMORY as u64).saturating_sub(inner)), WRITE),
            (TAIL, self.tail_bytes.into(), WRITE),
        ];
        let mut input = vec![0; 1 + DATA as usize + out as usize];
        input[0] = LARGE | if read_only { READ_ONLY } else { 0 } | if self.event_idx { EVENT_IDX } else { 0 };
        let memory = &mut input[1..];
        let mut used = parts.iter().filter(|(_, length, _)| *length > 0).zip(0u16..).peekable();
        while let Some(((address, length, flags), index)) = used.next() {
            let next = used.peek().map_or(0, |(_, next)| *next);
            let flags = flags | if next != 0 { NEXT } else { 0 };
            let word =
                u128::from(*address) | u128::from(*length) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
            put(memory, 16 * u64::from(index), &word.to_le_bytes());
        }
        // One chain is available, the one that begins with descriptor 0.
        put(memory, AVAIL + 2, &1u16.to_le_bytes());
        put(memory, HEAD, &self.head);
        put(memory, DATA, &self.data[..out as usize]);
        input
    }

    /// Whether [`Self::input`] holds all of it.
    pub fn whole(&self) -> bool {
        let room = (MEMORY as u64 - DATA).saturating_sub((self.data.len() as u64).next_multiple_of(512));
        self.out_bytes == self.data.len() as u64 && self.in_bytes <= room
    }
}

/// Places and lengths are ours, and inside.
fn put(memory: &mut [u8], at: u64, bytes: &[u8]) {
    if let Some(place) = memory.get_mut(at as usize..at as usize + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a driver that follows virtio 1.2, §2.7 finds: the chain's parts, by place, length and whether it is writable.
    fn chain(input: &[u8]) -> Vec<(usize, usize, bool)> {
        let memory = &input[1..];
        let word = |at: usize| u128::from_le_bytes(memory[at..at + 16].try_into().unwrap());
        assert_eq!(memory[AVAIL as usize + 2..][..4], [1, 0, 0, 0], "one chain, from descriptor 0");
        let (mut parts, mut index) = (Vec::new(), 0);
        loop {
            let d = word(16 * index);
            parts.push((d as u64 as usize, (d >> 64) as u32 as usize, d >> 97 & 1 == 1));
            if d >> 96 & 1 == 0 {
                return parts;
            }
            index = (d >> 112) as usize;
        }
    }

    #[test]
    fn a_read_a_write_and_a_flush_are_chains_of_their_parts() {
        let head = vec![7; 16];
        let read = Specimen { head: head.clone(), in_bytes: 4096, tail_bytes: 1, ..Specimen::default() };
        assert_eq!(chain(&read.input(false)), [(0x200, 16, false), (0x600, 4096, true), (0x240, 1, true)]);
        let data: Vec<u8> = (0..700).map(|i| i as u8).collect();
        let write = Specimen {
            head: head.clone(),
            data: data.clone(),
            out_bytes: 700,
            tail_bytes: 1,
            event_idx: true,
            ..Specimen::default()
        };
        let input = write.input(true);
        assert_eq!((input[0], &input[1 + 0x200..][..16], &input[1 + 0x600..]), (7, &head[..], &data[..]));
        assert_eq!(chain(&input), [(0x200, 16, false), (0x600, 700, false), (0x240, 1, true)]);
        let flush = Specimen { head, tail_bytes: 1, ..Specimen::default() };
        assert_eq!(chain(&flush.input(false)), [(0x200, 16, false), (0x240, 1, true)]);
        assert!(read.whole() && write.whole() && flush.whole());
    }

    #[test]
    fn what_is_too_long_is_cut_or_refused() {
        let long = Specimen { data: vec![1; MAX_DATA], out_bytes: 1 << 20, in_bytes: 1 << 40, ..Specimen::default() };
        assert!(long.validate().is_ok() && !long.whole());
        let input = long.input(false);
        assert_eq!(input.len(), 1 + 0x600 + MAX_DATA);
        let end = chain(&input).iter().map(|(at, length, _)| at + length).max().unwrap();
        assert_eq!(end, MEMORY);
        for wrong in [
            Specimen { what: "x".repeat(MAX_WHAT + 1), ..Specimen::default() },
            Specimen { head: vec![0; MAX_HEAD + 1], ..Specimen::default() },
            Specimen { tail_bytes: MAX_HEAD as u32 + 1, ..Specimen::default() },
            Specimen { data: vec![0; MAX_DATA + 1], ..Specimen::default() },
        ] {
            assert!(wrong.validate().is_err());
        }
        // Lengths that disagree with the bytes are a lie, and no more.
        let liar = Specimen { data: vec![1; 9], out_bytes: 3, ..Specimen::default() };
        assert_eq!(chain(&liar.input(false)), [(0x600, 3, false)]);
        assert!(Specimen::default().input(false).len() == 1 + 0x600);
    }
}
