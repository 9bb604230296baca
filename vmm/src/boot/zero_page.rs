//! Linux's boot_params, the "zero page" (Documentation/arch/x86/zero-page.rst): 4 KiB that a boot loader fills. Its
//! screen_info stays zero: the board has no VGA, and a kernel that reads no columns and no lines leaves it alone.

use super::memory_map::Region;

/// Offset of the setup header, the same as in the kernel file.
pub const SETUP_HEADER: usize = 0x1f1;
/// First byte after the room for the setup header.
pub const SETUP_HEADER_END: usize = 0x290;
const ALT_MEM_K: usize = 0x1e0;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
const EXT_MEM_K: usize = 0x02;

/// A zero page being filled.
pub struct ZeroPage(Box<[u8; 4096]>);

impl ZeroPage {
    /// All zero but for the setup header, copied from the kernel file.
    pub fn new(header: &[u8]) -> Self {
        let mut page = Box::new([0; 4096]);
        let length = header.len().min(SETUP_HEADER_END - SETUP_HEADER);
        page[SETUP_HEADER..SETUP_HEADER + length].copy_from_slice(&header[..length]);
        Self(page)
    }

    /// Sets one byte of the header, by its offset in the kernel file.
    pub fn set_u8(&mut self, offset: usize, value: u8) {
        self.0[offset] = value;
    }
    /// Sets a field.
    pub fn set_u16(&mut self, offset: usize, value: u16) {
        self.0[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }
    /// Sets a field.
    pub fn set_u32(&mut self, offset: usize, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    /// Sets a field.
    pub fn set_u64(&mut self, offset: usize, value: u64) {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Fills in the memory map, and the sizes older kernels read instead.
    pub fn set_memory_map(&mut self, map: &[Region]) {
        let count = map.len().min(E820_MAX);
        for (i, region) in map[..count].iter().enumerate() {
            let at = E820_TABLE + 20 * i;
            self.set_u64(at, region.start);
            self.set_u64(at + 8, region.size);
            self.set_u32(at + 16, region.kind);
        }
        self.0[E820_ENTRIES] = count as u8;
        let above_1m = map.iter().find(|r| r.start == super::layout::HIGH_START).map_or(0, |r| r.size >> 10);
        self.set_u32(ALT_MEM_K, above_1m as u32);
        self.set_u16(EXT_MEM_K, above_1m.min(0xffff) as u16);
    }

    /// The finished page.
    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }
}
