//! The table from host offset to guest state, packed: most of what is remembered of a block.
//!
//! Each entry is told by how it differs from the one before. Nearly all take two bytes, or three where ESP moved:
//!
//! * a head: bits 0 and 1 the [`Point`], bit 2 that the ESP delta changed, bit 3 that the long form follows, bits 4 to 7
//!   how far EIP advanced;
//! * how far the offset advanced, one byte;
//! * if it changed, the ESP delta, one byte.
//!
//! The long form is the head, then offset, EIP and ESP delta in four bytes each.

use super::block::{Origin, Point};

const MOVED: u8 = 4;
const LONG: u8 = 8;

/// What an entry of a block at `eip` is told against if it is the first.
fn before_first(eip: u32) -> Origin {
    Origin { offset: 0, eip, esp_delta: 0, point: Point::Start }
}

/// Appends `origins` of a block at `eip` to `to`.
pub fn pack(eip: u32, origins: &[Origin], to: &mut Vec<u8>) {
    let mut last = before_first(eip);
    for &o in origins {
        let head = match o.point {
            Point::Start => 0,
            Point::Shadowed => 1,
            Point::Interruptible => 2,
            Point::Inside => 3,
        };
        let far = (o.offset.wrapping_sub(last.offset), o.eip.wrapping_sub(last.eip));
        match (far, i8::try_from(o.esp_delta)) {
            ((offset @ 0..=255, eip @ 0..=15), Ok(delta)) => {
                let moved = o.esp_delta != last.esp_delta;
                to.extend_from_slice(&[head | (eip as u8) << 4 | if moved { MOVED } else { 0 }, offset as u8]);
                if moved {
                    to.push(delta as u8);
                }
            }
            _ => {
                to.push(head | LONG);
                [o.offset, o.eip, o.esp_delta as u32].iter().for_each(|n| to.extend(n.to_le_bytes()));
            }
        }
        last = o;
    }
}

/// The entries of one block, by ascending offset.
#[derive(Clone, Copy)]
pub struct Origins<'a> {
    bytes: &'a [u8],
    last: Origin,
}

impl<'a> Origins<'a> {
    /// What [`pack`] made of a block at `eip`.
    pub fn new(eip: u32, bytes: &'a [u8]) -> Self {
        Self { bytes, last: before_first(eip) }
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn word(&mut self) -> Option<u32> {
        let (&word, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u32::from_le_bytes(word))
    }
}

impl Iterator for Origins<'_> {
    type Item = Origin;

    #[inline]
    fn next(&mut self) -> Option<Origin> {
        let head = self.byte()?;
        self.last.point = [Point::Start, Point::Shadowed, Point::Interruptible, Point::Inside][head as usize & 3];
        if head & LONG != 0 {
            (self.last.offset, self.last.eip) = (self.word()?, self.word()?);
            self.last.esp_delta = self.word()? as i32;
            return Some(self.last);
        }
        self.last.eip = self.last.eip.wrapping_add((head >> 4) as u32);
        self.last.offset += self.byte()? as u32;
        if head & MOVED != 0 {
            self.last.esp_delta = self.byte()? as i8 as i32;
        }
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_out() {
        let points = [Point::Start, Point::Shadowed, Point::Interruptible, Point::Inside];
        let steps = [0u32, 1, 15, 16, 255, 256, 70_000];
        let deltas = [0i32, -4, 127, -128, 128, -129, i32::MIN, i32::MAX];
        let mut origins = Vec::new();
        let (mut offset, mut eip) = (0u32, 0xffff_fff0u32);
        for (n, &point) in points.iter().cycle().take(400).enumerate() {
            offset += steps[n % steps.len()];
            // Backwards too: traces follow jumps.
            eip = if n % 11 == 10 { eip.wrapping_sub(300) } else { eip.wrapping_add(steps[n / 3 % steps.len()]) };
            origins.push(Origin { offset, eip, esp_delta: deltas[n / 5 % deltas.len()], point });
        }
        let mut bytes = vec![0x55];
        pack(0xffff_fff0, &origins, &mut bytes);
        assert_eq!(bytes[0], 0x55, "what was there before must stay");
        assert_eq!(Origins::new(0xffff_fff0, &bytes[1..]).collect::<Vec<_>>(), origins);
    }

    #[test]
    fn straight_code_takes_two_bytes_an_entry() {
        let origins: Vec<_> =
            (0..64).map(|n| Origin { offset: 20 + 6 * n, eip: 3 * n, esp_delta: 0, point: Point::Start }).collect();
        let mut bytes = Vec::new();
        pack(0, &origins, &mut bytes);
        assert_eq!(bytes.len(), 128);
    }
}
