//! Aligned memory of a worker's own, for what O_DIRECT does not take as the guest has it, and for image formats.

/// More than any file demands.
const ALIGNMENT: usize = 4096;
const BYTES: usize = 256 << 10;

/// A buffer that starts on a page. Untouched it costs no memory.
#[derive(Debug)]
pub struct Scratch {
    memory: Vec<u8>,
    start: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        let memory = vec![0; BYTES + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start }
    }
}

impl Scratch {
    /// Bytes, a multiple of every alignment.
    pub fn len(&self) -> usize {
        BYTES
    }

    /// Never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The first `count` bytes, with what was left there.
    pub fn bytes(&mut self, count: usize) -> &mut [u8] {
        &mut self.memory[self.start..][..count]
    }
}
