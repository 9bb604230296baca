//! One line of text in a fixed buffer, for signal handlers: nothing here allocates, locks or panics.

const SIZE: usize = 512;

/// A line. What does not fit is cut off.
pub struct Line {
    bytes: [u8; SIZE],
    used: usize,
}

impl Line {
    /// An empty line: a line feed alone.
    pub fn new() -> Self {
        Self { bytes: [b'\n'; SIZE], used: 0 }
    }

    /// Appends text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            self.push(byte);
        }
        self
    }

    /// Appends a number in decimal.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.digits(number, 10)
    }

    /// Appends a number in hexadecimal, with 0x before it.
    pub fn hex(&mut self, number: u64) -> &mut Self {
        self.text("0x").digits(number, 16)
    }

    /// The line, ended by a line feed.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used + 1).unwrap_or(&self.bytes)
    }

    fn digits(&mut self, number: u64, base: u64) -> &mut Self {
        let mut unit = 1;
        while number / unit >= base {
            unit *= base;
        }
        while unit > 0 {
            let digit = (number / unit % base) as u8;
            self.push(if digit < 10 { b'0' + digit } else { b'a' - 10 + digit });
            unit /= base;
        }
        self
    }

    /// The last byte stays a line feed.
    fn push(&mut self, byte: u8) {
        if self.used + 1 < SIZE
            && let Some(place) = self.bytes.get_mut(self.used)
        {
            *place = byte;
            self.used += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_the_end_of_the_buffer() {
        let mut line = Line::new();
        line.text("a ").number(0).text(" ").number(u64::MAX).text(" ").hex(0xdead_beef_0000_0001).text(" ").hex(0);
        assert_eq!(line.bytes(), b"a 0 18446744073709551615 0xdeadbeef00000001 0x0\n");
        let mut long = Line::new();
        for _ in 0..100 {
            long.text("0123456789");
        }
        assert_eq!((long.bytes().len(), long.bytes().last()), (SIZE, Some(&b'\n')));
    }
}
