//! Blocks from pages that mix code and data: they compare their source with guest memory before anything else.
//!
//! Nobody is told of stores to such a page. A block's code stands for bytes that it was decoded from; it goes on only if
//! they are still there, and otherwise trips ([`crate::engine::translate::tripwire`]) to be translated anew. No store
//! comes between the comparison and the end of the block: [`super::super::decode::decode_checked`] ends it at the first.

use iced_x86::Register;

use super::super::block::Point;
use super::Translator;
use super::operand::Place;

impl Translator<'_> {
    /// Compares guest memory at the block's EIP with `bytes`. The comparison belongs to the block's first instruction: a
    /// page that is not mapped yet is mapped as for its own accesses, and it is started again.
    pub(super) fn check_source(&mut self, bytes: &[u8]) -> Option<()> {
        self.mark(self.eip, Point::Start);
        let mut at = 0;
        while at < bytes.len() {
            // The last piece overlaps the one before; what is shorter than a doubleword is compared byte by byte.
            let wide = bytes.len() >= 4;
            let from = if wide { at.min(bytes.len() - 4) } else { at };
            let displacement = self.eip.wrapping_add(from as u32);
            let place = Place::Window { base: Register::None, index: Register::None, scale: 1, displacement };
            let place = self.finish_place(place)?;
            let (value, size) = match bytes.get(from..from + 4) {
                Some(four) => {
                    self.load(Register::R11D, place);
                    (u32::from_le_bytes(four.try_into().ok()?), 4)
                }
                None => {
                    self.load_byte(Register::R11D, place);
                    (bytes[from] as u32, 1)
                }
            };
            self.e.expect_value_or_fault(value, self.eip);
            at = from + size;
        }
        Some(())
    }
}
